"""Labels made of stored maps: the same as the model's where nothing is lost, and ignored where nothing is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import build
from jobs.demo.scenes import make_scenes
from jobs.pseudo_labels import job_of_lake
from pipeline.engine.run import Resolved, make_manifest
from pipeline.lake import Lake, LakeStore, create_or_resume, finalize, new_attempt, open_lake, read_plan, verify
from pipeline.lake.plan import FrozenPlan, plan_bytes
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.from_lake import StoredMapsWorker
from pipeline.pseudolabels.stored import choose_maps
from pipeline.pseudolabels.view_part import Part, laid, part_in_view
from schemas.errors import InputError, LakeError
from schemas.view import View
from tests.pipeline.pseudolabels.conftest import SETTINGS, heatmap_lake, index_of, label_lake


@pytest.fixture(scope="module")
def square(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of just the model's size: its view is the whole picture, and scale 1 is what it is shown."""
    folder = tmp_path_factory.mktemp("square")
    for number, scene in enumerate(make_scenes(3, split="test", seed=8)):
        path = folder / "images" / ("one", "two")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.pixels).save(path)
    (folder / "net.safetensors").write_bytes((pictures / "net.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def maps(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake of heatmaps of two methods, one at two layers."""
    methods = ["grad_cam", {"name": "layer_cam", "layers": ["stage3", "stage4"]}]
    return heatmap_lake(pictures, tmp_path_factory.mktemp("maps") / "lake", methods=methods)


def overrides(output: Path, **settings: Any) -> list[str]:
    return [
        f"output.uri={output}",
        *(f"pseudo_labels.{name}={json.dumps(value)}" for name, value in {**SETTINGS, **settings}.items()),
    ]


def from_lake(lake: Lake, output: Path, *more: str, layer: str | None = None, **settings: Any) -> Lake:
    """What the command does with the settings of the other labels here, in this process."""
    return label_stored(lake, output, [*overrides(output, **settings), *more], layer)


def label_stored(lake: Lake, output: Path, given: list[str], layer: str | None = None) -> Lake:
    """What the command does, in this process; ``given`` are overrides of the job file."""
    job = job_of_lake(lake, None, [f"output.uri={output}", *given], layer)
    plan = FrozenPlan(plan_bytes(lake.store, lake.manifest), lake.manifest.units, lake.manifest.inputs_digest)
    info = choose_maps(lake.manifest, job.methods[0].key, job.stored.layer if job.stored else None)
    store = LakeStore(str(output))
    manifest = create_or_resume(
        store, make_manifest(job, Resolved(lake.manifest.model, [info], []), plan), plan
    ).manifest
    worker = StoredMapsWorker(job, manifest, "inline")
    worker.start()
    for unit in read_plan(store):
        worker.process(unit, new_attempt())
    finalize(store)
    verified = verify(store)
    assert verified.ok, verified.problems
    return open_lake(store.uri)


@pytest.mark.parametrize("refine", [{"method": "none"}, {"method": "pamr", "iterations": 3, "dilations": [1, 4]}])
def test_same_labels_where_nothing_is_lost(square: Path, tmp_path: Path, refine: dict[str, Any]) -> None:
    stored = heatmap_lake(square, tmp_path / "maps")
    found = from_lake(stored, tmp_path / "found", refine=refine)
    expected = label_lake(square, tmp_path / "expected", **{**SETTINGS, "refine": refine})
    ours, theirs = LabelLake(found), LabelLake(expected)
    pixels = wrong = 0
    for mine, other in zip(next(ours.parts()), next(theirs.parts()), strict=True):
        assert mine == other
        scores, ids = ours.scores(mine.soft or "")
        reference, _ = theirs.scores(other.soft or "")
        assert ids == ((3,) if mine.name.startswith("one") else (7,)) and reference.max() > 0.9
        np.testing.assert_allclose(scores, reference, atol=2e-3)  # stored and kept as float16
        pixels += scores[0].size
        wrong += int((ours.read(mine.mask) != theirs.read(other.mask)).sum())
    assert wrong <= 0.002 * pixels
    columns = ["image_id", "status", "label", "predicted_class", "width", "height"]
    assert found.images.to_table(columns) == expected.images.to_table(columns)


def test_what_was_not_shown_is_ignored(maps: Lake, pictures: Path, tmp_path: Path) -> None:
    found = from_lake(maps, tmp_path / "labels", "methods=[grad_cam]")
    cut = 0
    for row in found.images.to_table().to_pylist():
        index = index_of(found, row["image_id"].rpartition(".")[0])
        assert index.shape == (row["height"], row["width"])
        y, x = np.arange(row["height"]) + 0.5, np.arange(row["width"]) + 0.5
        seen = ((y >= row["view_y0"]) & (y < row["view_y1"]))[:, None] & (x >= row["view_x0"]) & (x < row["view_x1"])
        np.testing.assert_array_equal(index == 255, ~seen)
        cut += int((~seen).sum())
        scores, _ = LabelLake(found).scores(f"soft/{row['image_id'].rpartition('.')[0]}.npz")
        np.testing.assert_array_equal(np.isnan(scores[0]), ~seen)
    assert cut > 0
    provenance = json.loads((tmp_path / "labels" / "provenance.json").read_text())
    assert provenance["stored_maps"]["run_id"] == maps.manifest.run_id
    assert [each.partition(":")[0] for each in provenance["stored_maps"]["lost"]] == [
        "scales",
        "precision",
        "surroundings",
    ]
    assert "96x96 pixels, of 12x12 cells" in provenance["stored_maps"]["lost"][0]


def test_maps_are_laid_over_the_part_in_view() -> None:
    view = View(-2.0, 1.5, 8.0, 6.5)
    part = part_in_view(view, 9, 6)
    assert part == Part(1, 6, 0, 6) and part.size == (5, 6)  # rows 1.5 to 5.5: both edges are centres
    assert part_in_view(View(0, 0, 9, 9), 9, 9) == Part(0, 9, 0, 9)
    values = np.array([[-1.0, 3.0]], np.float32)
    # Columns at 0.5 ... 5.5 lie at 2.5 ... 7.5 of the view's ten, between the cells' centres at 2.5 and 7.5.
    expected = np.maximum(np.linspace(-1, 3, 6), 0)
    np.testing.assert_allclose(laid(values, view, part, part.size), np.tile(expected, (5, 1)), atol=1e-6)


def test_layer_and_targets_are_chosen(maps: Lake, pictures: Path, tmp_path: Path) -> None:
    first, second = (
        from_lake(maps, tmp_path / layer, "methods=[layer_cam]", layer=layer) for layer in ("stage3", "stage4")
    )
    assert any((index_of(first, name) != index_of(second, name)).any() for name in ("one/0", "two/1"))
    assert second.manifest.methods[0].layers == ["stage4"]
    many = heatmap_lake(pictures, tmp_path / "many", targets={"label": True, "top_k": 3})
    classes = [{"id": 1 + number, "name": name, "classes": [number]} for number, name in enumerate("abcdefghij")]
    for target, count in (("label", 1), ("predicted", 1), ("{top_k: 2}", 2)):
        lake = from_lake(many, tmp_path / f"best-{count}-{len(target)}", f"targets={target}", classes=classes)
        rows = [row for unit in lake.commits for row in _rows(lake, unit)]
        assert len(rows) == 7 * count and {row["target_kind"] for row in rows} == {target.strip("{}").partition(":")[0]}
    with pytest.raises(
        InputError, match=r"need not have maps of the 4 best classes \(its own targets are label True, top"
    ):
        job_of_lake(many, None, [*overrides(tmp_path / "x"), "targets={top_k: 4}"], None)
    with pytest.raises(InputError, match="need not have maps of the predicted class"):
        job_of_lake(maps, None, [*overrides(tmp_path / "x"), "targets=predicted", "methods=[grad_cam]"], None)


def _rows(lake: Lake, unit: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    path = Path(lake.store.uri) / "labels" / f"{unit}-{lake.commits[unit].attempt}.parquet"
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_pictures_that_are_gone_fail_by_themselves(square: Path, tmp_path: Path) -> None:
    stored = heatmap_lake(square, tmp_path / "maps")
    (square / "images" / "two" / "1.png").rename(square / "1.png")
    try:
        found = from_lake(stored, tmp_path / "labels", refine={"method": "pamr", "iterations": 1, "dilations": [1]})
    finally:
        (square / "1.png").rename(square / "images" / "two" / "1.png")
    rows = {row["image_id"]: row for row in found.images.to_table().to_pylist()}
    assert rows["two/1.png"]["status"] == "read_error" and "not there any more" in rows["two/1.png"]["error"]
    assert [name for name in rows if rows[name]["status"] == "ok"] == ["one/0.png", "one/2.png"]
    assert not (tmp_path / "labels" / "masks" / "two").exists()


@pytest.mark.parametrize(
    ("given", "layer", "words"),
    [
        (
            ["methods=[grad_cam]", "pseudo_labels.scales=[1.0, 2.0]"],
            None,
            r"pseudo_labels.scales: stored maps are of one",
        ),
        (["methods=[grad_cam]", "pseudo_labels.flip=true"], None, r"pseudo_labels.flip: stored maps"),
        (["model.name=x"], None, "model: with --from this is the lake's own"),
        ([], None, r"maps of grad_cam, layer_cam; name one: --set 'methods=\[grad_cam\]'"),
        (["methods=[gradcam]"], None, r"no maps of 'gradcam' \(did you mean grad_cam"),
        (["methods=[layer_cam]"], None, "--layer: the lake has maps of layer_cam at stage3, stage4; name one"),
        (["methods=[layer_cam]"], "stage2", "no maps of layer_cam at 'stage2'"),
        (["methods=grad_cam"], None, "a list of one name"),
    ],
)
def test_what_is_not_stored_is_refused(
    maps: Lake, tmp_path: Path, given: list[str], layer: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        job_of_lake(maps, None, [f"output.uri={tmp_path / 'x'}", *given], layer)


def test_other_lakes_are_refused(maps: Lake, labels: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a lake of labels, not of heatmaps"):
        job_of_lake(labels, None, [f"output.uri={tmp_path / 'x'}"], None)
    with pytest.raises(InputError, match="is a lake of heatmaps, not of labels"):
        LabelLake(maps)
    job = job_of_lake(maps, None, [*overrides(tmp_path / "x"), "methods=[grad_cam]"], None)
    assert job.stored is not None
    other = job.model_copy(update={"stored": job.stored.model_copy(update={"run_id": "another"})})
    assert other.digest() != job.digest()
    moved = job.model_copy(update={"stored": job.stored.model_copy(update={"uri": "elsewhere"})})
    assert moved.digest() == job.digest()
    with pytest.raises(InputError, match="is the lake of another run"):
        StoredMapsWorker(other, maps.manifest, "inline").start()
    (tmp_path / "open").mkdir()
    worker = StoredMapsWorker(job, from_lake(maps, tmp_path / "y", "methods=[grad_cam]").manifest, "inline")
    worker.start()
    del worker.lake.commits[next(iter(worker.lake.commits))]
    with pytest.raises(LakeError, match=r"gave unit .* up"):
        worker.process(next(read_plan(maps.store)), new_attempt())


def test_command_does_what_is_left(maps: Lake, tmp_path: Path, local_ray: None) -> None:
    output = tmp_path / "labels"
    from_lake(maps, output, "methods=[grad_cam]")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}
    # As after a kill between the files of a unit and its commit.
    (output / "_SUCCESS.json").unlink()
    unit = min(path.stem for path in (output / "commits").iterdir())
    (output / "commits" / f"{unit}.json").unlink()
    arguments = ["pseudo-labels", "--from", maps.store.uri]
    for each in [*overrides(output), "methods=[grad_cam]"]:
        arguments += ["--set", each]
    result = CliRunner().invoke(build("pseudo-labels"), arguments)
    assert result.exit_code == 0, result.output
    assert "resumed: 1 of 2 units are done" in result.output
    assert "lost     scales:" in result.output and "lost     surroundings:" in result.output
    assert "2 + 0 quarantined = 2 units; images: 7 ok = 7; 7 labels" in result.output
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.png")} == before
    assert verify(LakeStore(str(output))).ok
