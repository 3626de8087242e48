"""Pseudo-label jobs in this process: what they write, what must not change it, and what is found when it is damaged."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import Result

from jobs.config import absolute, parse_job, parse_label_job
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, finalize, open_lake, read_plan, verify
from pipeline.lake.documents import read_commits, read_manifest
from pipeline.models.replica import load_replica
from pipeline.pseudolabels.explain import LabelExplainer
from pipeline.pseudolabels.seeds import SeedMaker
from schemas.errors import InputError
from schemas.job import Model
from tests.hostile import pixels
from tests.hostile_containers import image, tar
from tests.jobs.inline import images_of, run_inline
from tests.jobs.test_hostile import hostile_members, write_shards
from tests.lakes import assert_equal_lakes
from tests.s3_server import S3Store

ALL_FILES = {"confidence": True, "soft": True}


@pytest.fixture
def labels(document: dict[str, Any]) -> dict[str, Any]:
    """The job of the conftest with a section of labels; two scales."""
    return document | {
        "targets": {"label": True},
        "pseudo_labels": {"scales": [1.0, 0.5], "files": dict(ALL_FILES)},
    }


def masks(lake: str | Path) -> dict[str, bytes]:
    """Index images by name."""
    folder = Path(lake) / "masks"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def worker_of(document: dict[str, Any]) -> AttributionWorker:
    job = absolute(parse_label_job(document))
    worker = AttributionWorker(job, read_manifest(LakeStore(job.output.uri)), "again", device="cpu")
    worker.start()
    return worker


def test_every_image_has_its_files_rows_and_place_in_the_lists(labels: dict[str, Any], tmp_path: Path) -> None:
    success = run_inline(labels)
    lake = tmp_path / "lake"
    assert success.images == {"ok": 24}
    store = LakeStore(str(lake))
    rows = images_of(labels)
    table = pa.concat_tables(pq.read_table(path) for path in sorted((lake / "labels").glob("*.parquet"))).to_pylist()
    assert len(table) == success.maps == 24
    names = (lake / "splits" / "all.txt").read_text().splitlines()
    assert names == sorted(rows) and len(names) == 24
    assert {f"{name}.png" for name in names} == set(masks(lake))
    classes = json.loads((lake / "classes.json").read_text())
    assert classes["0"] == "background" and classes["4"] == "three" and len(classes) == 11
    told = json.loads((lake / "provenance.json").read_text())
    assert told["classes_from"] == ["label: the image's labels"] and told["scales"] == [1.0, 0.5]
    assert told["model"]["digest"] == read_manifest(store).model.digest and told["ignore"] == 255
    for row in table:
        assert row["label_id"] == rows[row["image_id"]]["label"] + 1 and row["target_kind"] == "label"
        with Image.open(lake / row["mask_path"]) as picture:
            assert picture.mode == "L"
            index = np.asarray(picture)
        assert index.shape == (rows[row["image_id"]]["height"], rows[row["image_id"]]["width"])
        assert set(np.unique(index)) <= {0, row["label_id"]} and (index > 0).sum() == row["area"]
        name = row["mask_path"].removeprefix("masks/").removesuffix(".png")
        scores = np.load(io.BytesIO((lake / "soft" / f"{name}.npz").read_bytes()))
        assert scores["ids"].tolist() == [0, row["label_id"]]
        with Image.open(lake / "confidence" / f"{name}.png") as picture:
            confidence = np.asarray(picture) / 255
        assert np.abs(confidence - scores["scores"].max(0)).max() < 1 / 255 + 1e-3
    assert all((commit.seconds["refine"], commit.seconds["write"]) > (0, 0) for commit in read_commits(store))
    # An image of labels is read by what reads lakes, too.
    assert open_lake(str(lake)).manifest.kind == "labels"


@pytest.mark.parametrize(
    "change",
    [
        {"background": {"rule": "power", "power": 8}, "refine": {"method": "none"}},
        {"background": {"rule": "band"}, "refine": {"method": "pamr", "iterations": 2, "dilations": [1, 3]}},
        {"background": {"rule": "band"}, "refine": {"method": "crf", "iterations": 2}},
    ],
    ids=["power", "band", "crf"],
)
def test_rules_and_refinements(labels: dict[str, Any], change: dict[str, Any], tmp_path: Path) -> None:
    if change["refine"]["method"] == "crf":
        pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed (it compiles C++)")
    labels["pseudo_labels"] |= change
    run_inline(labels)
    shown = set()
    for data in masks(tmp_path / "lake").values():
        with Image.open(io.BytesIO(data)) as picture:
            shown |= set(np.unique(np.asarray(picture)).tolist())
    assert (255 in shown) == (change["background"]["rule"] == "band")


def test_classes_of_the_labels_are_made_of_the_models(labels: dict[str, Any], tmp_path: Path) -> None:
    labels["targets"] = {"classes": [0, 1, 2, 9]}
    labels["pseudo_labels"]["classes"] = [
        {"id": 300, "name": "round", "classes": ["zero", 9]},
        {"id": 7, "name": "straight", "classes": ["one"]},
    ]
    run_inline(labels)
    table = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "lake" / "labels").glob("*.parquet"))
    assert set(zip(table["label_id"].to_pylist(), table["label_name"].to_pylist(), strict=True)) == {
        (7, "straight"), (300, "round"),
    }  # fmt: skip
    with Image.open(io.BytesIO(next(iter(masks(tmp_path / "lake").values())))) as picture:
        assert picture.mode == "I;16"


def test_images_with_several_labels(labels: dict[str, Any], tmp_path: Path) -> None:
    given = {"a": b"[1, 3]", "b": b'["seven"]', "c": b"[]", "d": b'["none such"]', "e": b"5"}
    members: list[Any] = []
    for number, (name, value) in enumerate(given.items()):
        members += [(f"{name}.png", image(number)), (f"{name}.json", b'{"classes": %s}' % value)]
    (tmp_path / "s.tar").write_bytes(tar(members))
    labels["source"] = {"uri": str(tmp_path / "s.tar"), "format": "webdataset", "label": "json.classes"}
    assert run_inline(labels).images == {"label_error": 1, "ok": 4}
    rows = {name.rpartition("/")[2]: row for name, row in images_of(labels).items()}
    assert {name: (row["label"], row["labels"]) for name, row in rows.items() if name != "d"} == {
        "a": (None, [1, 3]), "b": (None, [7]), "c": (None, []), "e": (5, None),
    }  # fmt: skip
    table = pq.read_table(next((tmp_path / "lake" / "labels").glob("*.parquet")))
    found = {(row["image_id"].rpartition("/")[2], row["label_id"]) for row in table.to_pylist()}
    assert found == {("a", 2), ("a", 4), ("b", 8), ("e", 6)}
    with Image.open(tmp_path / "lake" / "masks" / "s" / "c.png") as picture:
        assert not np.asarray(picture).any()


def test_hostile_images_have_their_rows_and_change_no_neighbour(labels: dict[str, Any], tmp_path: Path) -> None:
    hostile = hostile_members()
    common = {"targets": "predicted", "methods": ["grad_cam"], "pseudo_labels": {"scales": [1.0, 0.5]}}
    found = {}
    for name, bad in {"alone": {}, "among": {name: item.data for name, item in hostile.items()}}.items():
        source = {"uri": write_shards(tmp_path / name, bad), "format": "webdataset"}
        document = labels | common | {"source": source, "output": {"uri": str(tmp_path / f"lake {name}")}}
        run_inline(document)
        found[name] = images_of(document), masks(tmp_path / f"lake {name}")
    rows, written = found["among"]
    failed = {name for name, row in rows.items() if row["status"] != "ok"}
    assert len(failed) == sum(item.reason is not None for item in hostile.values())
    assert len(written) == len(rows) - len(failed) and len(found["alone"][1]) == 15
    assert {name: written[name] for name in found["alone"][1]} == found["alone"][1]


def test_an_attempt_that_died_before_its_commit_leaves_files_that_stand(labels: dict[str, Any], tmp_path: Path) -> None:
    run_inline(labels)
    whole, lake = tmp_path / "lake", tmp_path / "other"
    shutil.copytree(whole, lake)
    labels["output"] = {"uri": str(lake)}
    store = LakeStore(str(lake))
    unit = next(iter(read_plan(store)))
    for path in ("_SUCCESS.json", f"commits/{unit.unit_id}.json"):
        store.delete(path)
    # One that other attempts wrote with other pixels, as another kind of processor may.
    rows = pq.read_table(next((whole / "images").glob(f"{unit.unit_id}-*"))).to_pylist()
    standing = f"masks/{rows[0]['image_id']}.png"
    index = np.array(Image.open(io.BytesIO(store.get(standing))))
    index[:5, :7] = rows[0]["label"] + 1
    buffer = io.BytesIO()
    Image.fromarray(index).save(buffer, "PNG")
    store.put(standing, buffer.getvalue())
    # And one of an image that fails this time.
    worker = worker_of(labels)
    explainer, broken = worker.explainer, rows[1]["image_id"]
    prepared = worker.prepared

    def failing(samples: Any, clock: Any) -> Any:
        for item in prepared(samples, clock):
            if item.sample.image_id == broken:
                item.status, item.error, item.tensor = "read_error", "gone", None
            yield item

    worker.prepared = failing  # type: ignore[method-assign]
    outcome = worker.process(unit, "again")
    assert worker.explainer is explainer and outcome.images == {"ok": 7, "read_error": 1}
    (lake / "masks" / "mine.png").write_bytes(b"x")
    success = finalize(store)
    assert success.orphans_removed == 5  # two tables of the first attempt, and three files of the image that failed
    assert not (lake / f"masks/{broken}.png").exists() and (lake / "masks" / "mine.png").exists()
    assert broken not in (lake / "splits" / "all.txt").read_text().splitlines()
    assert [(problem.kind, problem.path) for problem in verify(store).problems] == [("foreign", "masks/mine.png")]
    assert store.get(standing) == buffer.getvalue()
    table = pq.read_table(lake / f"labels/{unit.unit_id}-again.parquet").to_pylist()
    assert {row["image_id"]: row["area"] for row in table}[rows[0]["image_id"]] == (index > 0).sum()


def test_masks_whose_images_table_is_lost_are_told_from_foreign_ones(labels: dict[str, Any], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        members: list[Any] = []
        for each in range(3):
            classes = b"[4]" if each else b"[]"
            members += [(f"{each}.png", image(3 * number + each)), (f"{each}.json", b'{"classes": %s}' % classes)]
        (shards / f"s-{number}.tar").write_bytes(tar(members))
    labels["source"] = {"uri": str(shards / "s-{0..1}.tar"), "format": "webdataset", "label": "json.classes"}
    run_inline(labels)
    whole, lake = tmp_path / "whole", tmp_path / "lake"
    shutil.copytree(lake, whole)
    store = LakeStore(str(lake))
    unit = next(iter(read_plan(store)))
    for path in ("_SUCCESS.json", f"commits/{unit.unit_id}.json"):
        store.delete(path)
    (lake / "masks" / "mine.png").write_bytes(b"x")

    def problems() -> dict[str, str]:
        return {problem.path: problem.kind for problem in verify(store).problems}

    # The images table tells all; the labels table is as good for images that have a class.
    assert problems() == {f"commits/{unit.unit_id}.json": "unit_missing", "_SUCCESS.json": "unfinished",
                          "masks/mine.png": "foreign"}  # fmt: skip
    next((lake / "images").glob(f"{unit.unit_id}-*")).unlink()
    riddles = {path for path, kind in problems().items() if kind == "riddle"}
    assert riddles == {"masks/mine.png", "masks/s-0/0.png", "confidence/s-0/0.png", "soft/s-0/0.npz"}
    found = next(problem for problem in verify(store).problems if problem.path == "masks/s-0/0.png")
    assert unit.unit_id in found.message and "run the job again" in found.message
    given_up = lake / "quarantine" / f"{unit.unit_id}.json"
    given_up.parent.mkdir()
    given_up.write_text("{}")
    assert any("the unit is given up" in each.message and each.kind == "riddle" for each in verify(store).problems)
    given_up.unlink()
    next((lake / "labels").glob(f"{unit.unit_id}-*")).unlink()
    assert sum(kind == "riddle" for kind in problems().values()) == 1 + 3 * 3
    worker_of(labels).process(unit, "again")
    finalize(store)
    assert problems() == {"masks/mine.png": "foreign"}
    (lake / "masks" / "mine.png").unlink()
    assert_equal_lakes(str(whole), str(lake))


def test_a_folder_plan_tells_whose_masks_are(labels: dict[str, Any], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        (pictures / f"{number}.png").write_bytes(image(number))
    labels |= {"source": {"uri": str(pictures), "format": "folder"}, "targets": "predicted"}
    run_inline(labels)
    store = LakeStore(str(tmp_path / "lake"))
    [unit] = read_plan(store)
    for path in ("_SUCCESS.json", f"commits/{unit.unit_id}.json"):
        store.delete(path)
    for folder in ("images", "labels"):
        shutil.rmtree(tmp_path / "lake" / folder)
    (tmp_path / "lake" / "masks" / "mine.png").write_bytes(b"x")
    problems = [(problem.kind, problem.path) for problem in verify(store).problems]
    assert ("foreign", "masks/mine.png") in problems and len(problems) == 3


def test_the_same_unit_again_is_the_same_lake(labels: dict[str, Any], tmp_path: Path) -> None:
    run_inline(labels)
    store = LakeStore(str(tmp_path / "lake"))
    first = tmp_path / "first"
    shutil.copytree(tmp_path / "lake", first)
    worker = worker_of(labels)
    store.delete("_SUCCESS.json")
    for unit in reversed(list(read_plan(store))):
        store.delete(f"commits/{unit.unit_id}.json")
        worker.process(unit, "second")
    finalize(store)
    assert verify(store).ok
    assert_equal_lakes(str(first), str(tmp_path / "lake"))
    labels["pseudo_labels"]["background"] = {"rule": "constant", "threshold": 0.3}
    with pytest.raises(InputError, match=r"pseudo_labels\.background\.threshold was 0\.15 and is 0\.3"):
        run_inline(labels)
    with pytest.raises(InputError, match="is a lake of labels, which holds no maps"):
        list(open_lake(str(tmp_path / "lake")).heatmaps())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verify_finds_what_is_damaged_lost_or_foreign(labels: dict[str, Any], tmp_path: Path) -> None:
    run_inline(labels)
    whole = tmp_path / "lake"
    some = {folder: sorted((whole / folder).rglob("*.*"))[0].relative_to(whole)
            for folder in ("masks", "confidence", "soft", "labels", "images")}  # fmt: skip
    changes: list[tuple[str, Callable[[Path], object], str]] = [
        *((str(path), flip, "object_differs") for path in some.values()),
        *((str(path), Path.unlink, "object_missing") for path in some.values()),
        ("classes.json", flip, "document"),
        ("provenance.json", Path.unlink, "document"),
        ("splits/all.txt", lambda path: path.write_text(""), "document"),
        ("masks/another.png", lambda path: path.write_bytes(b""), "foreign"),
        ("labels/notes.txt", lambda path: path.write_bytes(b""), "foreign"),
    ]
    for number, (path, change, kind) in enumerate(changes):
        lake = tmp_path / str(number)
        shutil.copytree(whole, lake)
        change(lake / path)
        problems = verify(LakeStore(str(lake))).problems
        assert [(problem.kind, problem.path) for problem in problems] == [(kind, path)]
        shutil.rmtree(lake)


def test_what_is_wrong_is_said_at_the_start(
    labels: dict[str, Any], camlake: Callable[..., Result], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pseudo_labels is a section of 'camlake pseudo-labels'"):
        parse_job(labels)
    for change, words in [
        ({"methods": ["grad_cam", "cam"]}, "there are 2 methods; keep one"),
        ({"methods": [{"name": "grad_cam", "layers": ["stage3", "stage4"]}]}, "'grad_cam' has 2 layers; name one"),
        ({"compute": {"compile": True}}, "compute.compile: images of many sizes"),
        ({"pseudo_labels": {"scales": [1.0, 1.0]}}, "give different numbers above 0"),
    ]:
        with pytest.raises(InputError, match=words):
            parse_label_job(labels | change)
    labels["pseudo_labels"]["classes"] = [{"id": 1, "name": "x", "classes": ["nine hundred"]}]
    with pytest.raises(InputError, match=r"pseudo_labels\.classes: 'x': the model has no class 'nine hundred'"):
        run_inline(labels)


def test_a_model_of_one_size_takes_no_scales_and_sees_the_whole_image(labels: dict[str, Any], tmp_path: Path) -> None:
    labels["model"] = {"name": "timm:vit_tiny_patch16_224", "weights": "random",
                       "options": {"num_classes": 10, "img_size": 64, "depth": 1}}  # fmt: skip
    labels["source"].pop("label")
    labels["targets"] = "predicted"
    with pytest.raises(InputError, match=r"takes images of 64x64 and no other, .* give scales: \[1.0\]"):
        run_inline(labels)
    labels["pseudo_labels"]["scales"] = [1.0]
    assert run_inline(labels).images == {"ok": 24}
    replica = load_replica(Model.model_validate(labels["model"]))
    assert replica.preprocess.input_size == (64, 64)


def test_plan_says_what_labels_will_cost_and_writes_nothing(
    labels: dict[str, Any], tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    labels["pseudo_labels"]["scales"] = [0.5, 1.5]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(labels))
    result = camlake("plan", path, "--sample", "8")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "lake").exists()
    said = " ".join(result.output.split())
    assert "labels 1.0 per image of grad_cam" in said and "scales 0.5, 1.5, with mirror images" in said
    # Two scales and their mirror images; the classes are chosen at scale 1, whose maps are not asked for.
    assert "forwards 5.0 per image" in said and "refined by pamr" in said
    success = run_inline(labels)
    expected = success.bytes / 24
    told = int(re.search(r"(\d+) bytes per image with its rows", said).group(1))  # type: ignore[union-attr]
    # The images tables of three small units are left out.
    assert 0.6 * expected < told < 1.1 * expected
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (40, 40)).save(pictures / name)
    path.write_text(yaml.safe_dump(labels | {"source": {"uri": str(pictures), "format": "folder"}}))
    refused = camlake("plan", path)
    assert refused.exit_code == 2 and "would have the same mask" in refused.stderr


def test_a_lake_in_a_bucket(labels: dict[str, Any], dataset: Path, s3_store: S3Store) -> None:
    options = s3_store.storage_options
    labels["source"]["uri"] = str(dataset / "shards" / "scenes-000000.tar")
    labels["output"] = {"uri": s3_store.url("lake"), "storage_options": options}
    assert run_inline(labels).images == {"ok": 8}
    store = LakeStore(s3_store.url("lake"), options)
    names = store.get("splits/all.txt").decode().splitlines()
    assert len(names) == 8 and all(store.exists(f"masks/{name}.png") for name in names)


def test_images_of_many_sizes_share_forwards_where_the_device_gains_by_it(
    labels: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(60, 44), (50, 70), (60, 44), (90, 90), (50, 70), (60, 44), (50, 70)]
    members = []
    for number, size in enumerate(sizes):
        buffer = io.BytesIO()
        Image.fromarray(pixels(number, size)).save(buffer, "PNG")
        members += [(f"{number}.png", buffer.getvalue()), (f"{number}.cls", b"%d" % number)]
    (tmp_path / "s.tar").write_bytes(tar(members))
    labels["source"] = {"uri": str(tmp_path / "s.tar"), "format": "webdataset", "label": "cls"}
    run_inline(labels)
    alone = masks(tmp_path / "lake")

    batches: list[int] = []
    one_by_one, explain = LabelExplainer.seed_maker, SeedMaker.__call__

    def together(self: LabelExplainer) -> SeedMaker:
        maker = one_by_one(self)
        maker._forward_pixels = 2 * 2 * 60 * 44  # two images of the first size, or one of the others
        return maker

    def counted(self: SeedMaker, images: Any, *rest: Any) -> Any:
        batches.append(len(images))
        return explain(self, images, *rest)

    monkeypatch.setattr(LabelExplainer, "seed_maker", together)
    monkeypatch.setattr(SeedMaker, "__call__", counted)
    labels["output"] = {"uri": str(tmp_path / "together")}
    run_inline(labels)
    assert sorted(batches) == [1, 1, 1, 1, 1, 2]
    found = masks(tmp_path / "together")
    for name, data in alone.items():
        with Image.open(io.BytesIO(data)) as one, Image.open(io.BytesIO(found[name])) as two:
            assert one.size == two.size
            assert (np.asarray(one) == np.asarray(two)).mean() > 0.999
