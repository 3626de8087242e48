"""``camlake attribute`` from end to end: a real Ray, real shards, and a lake that is whole."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import Result

from jobs.config import parse_job
from pipeline.lake import LakeStore, open_lake, verify

pytestmark = pytest.mark.usefixtures("local_ray")

ALL_METHODS: list[Any] = [
    "cam",
    "grad_cam",
    "grad_cam_pp",
    {"name": "smooth_grad_cam_pp", "samples": 2},
    "score_cam",
    {"name": "layer_cam", "layers": ["stage3", "stage4"], "fuse": "tanh_max"},
    "hires_cam",
    "xgrad_cam",
    {"name": "eigen_cam", "layers": ["stage3", "stage4"]},
]
Run = Callable[..., Result]


def write_job(document: dict[str, Any], folder: Path, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


def all_maps(uri: str) -> dict[tuple[str, str, str, int], np.ndarray]:
    lake = open_lake(uri)
    return {
        (row["image_id"], row["method"], row["layer"], row["target_class"]): values for row, values in lake.heatmaps()
    }


def test_all_methods_on_two_workers(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document |= {"methods": ALL_METHODS, "workers": {"max": 2}}
    result = camlake("attribute", write_job(document, tmp_path))
    assert result.exit_code == 0, result.output
    lake = open_lake(document["output"]["uri"])
    images, maps = lake.images.to_table().to_pylist(), lake.maps.to_table().to_pylist()
    assert len(images) == 24 and {row["status"] for row in images} == {"ok"}
    targets = sum(len({row["label"], row["predicted_class"]}) for row in images)
    # Ten maps per target: eigen_cam stores its two layers apart.
    assert len(maps) == 10 * targets
    assert {row["site"] for row in images} <= {"north", "south", "east"}
    assert all(isinstance(row["sticker"], bool) for row in images)
    assert {(row["method"], row["layer"]) for row in maps} >= {("layer_cam", "stage3+stage4"), ("cam", "stage4")}
    assert verify(LakeStore(document["output"]["uri"])).ok
    assert "24 images" in result.output and "grid of 12x12" in result.output
    assert f"{len(maps)} maps" in result.output


def test_what_workers_did_with_their_time_is_printed(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document |= {"methods": ["score_cam"], "workers": {"max": 2}}
    began = time.monotonic()
    result = camlake("attribute", write_job(document, tmp_path))
    took = time.monotonic() - began
    assert result.exit_code == 0, result.output
    commits = [json.loads(path.read_text()) for path in (tmp_path / "lake" / "commits").glob("*.json")]
    workers = {commit["worker"] for commit in commits}
    number = r"(\d+\.\d)"
    line = rf"(worker-\d+): computed (\d+)% of {number} s; idle {number} s waiting for images, {number} s writing or"
    found = re.findall(line, result.output)
    assert {worker for worker, *_ in found} == workers and len(found) == len(workers)
    for worker, *figures in found:
        share, active, waiting, other = map(float, figures)
        seconds = [commit["seconds"] for commit in commits if commit["worker"] == worker]
        computed = sum(each["compute"] for each in seconds)
        assert 0 < active < took and 0 < share <= 100
        # Printed figures are rounded to a tenth of a second and to a percent.
        assert share / 100 * active == pytest.approx(computed, abs=0.06 + 0.006 * active)
        assert waiting == pytest.approx(sum(each["wait"] for each in seconds), abs=0.06)
        assert computed + waiting + other == pytest.approx(active, abs=0.16)


def test_the_same_command_again_does_nothing_and_changes_nothing(
    document: dict[str, Any], tmp_path: Path, camlake: Run
) -> None:
    job = write_job(document, tmp_path)
    assert camlake("attribute", job).exit_code == 0
    lake = tmp_path / "lake"
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file()}
    again = camlake("attribute", job)
    assert again.exit_code == 0 and "resumed: 3 of 3 units are done" in again.output
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file()} == before


def test_a_resumed_lake_equals_an_undisturbed_one(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["methods"] = ["grad_cam", "score_cam", {"name": "smooth_grad_cam_pp", "samples": 2}]
    whole = dict(document, output={"uri": str(tmp_path / "whole")})
    assert camlake("attribute", write_job(whole, tmp_path, "whole.yaml")).exit_code == 0
    assert camlake("attribute", write_job(document, tmp_path)).exit_code == 0
    lake = tmp_path / "lake"
    # As if the run had been killed after its first commit: two units have left objects, but no commit.
    (lake / "_SUCCESS.json").unlink()
    for commit in sorted((lake / "commits").glob("*.json"))[1:]:
        commit.unlink()
    resumed = camlake("attribute", write_job(document, tmp_path))
    assert resumed.exit_code == 0 and "resumed: 1 of 3 units are done" in resumed.output
    assert verify(LakeStore(str(lake))).ok
    left, right = all_maps(str(lake)), all_maps(str(tmp_path / "whole"))
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[key], right[key]) for key in left)


BUDGET = {"name": "score_cam", "label": "budget", "budget": 2, "expected_correlation": 0.1}


def test_a_budget_says_what_each_map_took(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["methods"] = ["grad_cam", "score_cam", BUDGET]
    assert camlake("attribute", write_job(document, tmp_path)).exit_code == 0
    rows = open_lake(document["output"]["uri"]).maps.to_table().to_pylist()
    took = {name: [row for row in rows if row["method"] == name] for name in ("grad_cam", "score_cam", "budget")}
    assert all(row["masks_scored"] is row["expected_correlation"] is None for row in took["grad_cam"])
    assert all(row["expected_correlation"] is None for row in took["score_cam"])
    for exact, row in zip(took["score_cam"], took["budget"], strict=True):
        assert min(2, exact["masks_scored"]) <= row["masks_scored"] <= exact["masks_scored"]
        assert (row["expected_correlation"] is None) == (row["masks_scored"] == exact["masks_scored"])
        assert row["expected_correlation"] is None or 0.1 <= row["expected_correlation"] <= 1
    assert any(row["expected_correlation"] is not None for row in took["budget"])
    commits = [json.loads(path.read_text()) for path in (tmp_path / "lake" / "commits").glob("*.json")]
    assert all(commit["compute"] == {"batch_size": 4, "mask_batch": 8} for commit in commits)


@pytest.mark.slow
def test_a_compiled_job_writes_the_same_maps(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["methods"] = ["grad_cam", "score_cam"]
    assert camlake("attribute", write_job(document, tmp_path)).exit_code == 0
    other = dict(document, output={"uri": str(tmp_path / "other")})
    other["compute"] = {**document["compute"], "compile": True}
    assert camlake("attribute", write_job(other, tmp_path, "other.yaml")).exit_code == 0
    left, right = all_maps(document["output"]["uri"]), all_maps(str(tmp_path / "other"))
    assert left.keys() == right.keys()
    # Stored in float16 of the map's own maximum; compiled kernels round otherwise.
    assert all(np.allclose(left[key], right[key], atol=2e-3 * np.abs(left[key]).max()) for key in left)


def test_maps_do_not_depend_on_workers_batches_or_order(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["methods"] = ["grad_cam", "score_cam", {"name": "smooth_grad_cam_pp", "samples": 2}, BUDGET]
    assert camlake("attribute", write_job(document, tmp_path)).exit_code == 0
    other = dict(document)
    other["output"] = {"uri": str(tmp_path / "other")}
    other["workers"] = {"max": 3}
    reverse = [document["source"]["uri"].replace("{000000..000002}", f"00000{number}") for number in (2, 0, 1)]
    other["source"] = {**document["source"], "uri": reverse}
    assert camlake("attribute", write_job(other, tmp_path, "other.yaml")).exit_code == 0
    # The id of an image begins with its shard's name, wherever the shard stands in the plan.
    left, right = all_maps(document["output"]["uri"]), all_maps(str(tmp_path / "other"))
    assert left.keys() == right.keys() and len(left) > 60
    assert all(np.array_equal(left[key], right[key]) for key in left)
    other["output"] = {"uri": str(tmp_path / "third")}
    other["compute"] = {"batch_size": 7, "mask_batch": 5}
    assert camlake("attribute", write_job(other, tmp_path, "third.yaml")).exit_code == 0
    third = all_maps(str(tmp_path / "third"))
    assert third.keys() == left.keys()
    for key, values in left.items():
        np.testing.assert_allclose(third[key], values, rtol=1e-3, atol=1e-3 * np.abs(values).max())


def test_what_lenient_weights_lack_is_listed(
    document: dict[str, Any], dataset: Path, tmp_path: Path, camlake: Run
) -> None:
    tensors = load_file(dataset / "net.safetensors")
    del tensors["head.bias"]
    save_file(tensors | {"extra": tensors["head.weight"].clone()}, tmp_path / "partial.safetensors")
    document["model"] |= {
        "weights": str(tmp_path / "partial.safetensors"),
        "strict": False,
        "preprocess": {"resize": 96, "crop": 96, "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    result = camlake("attribute", write_job(document, tmp_path))
    assert result.exit_code == 0, result.output
    assert "1 missing: head.bias" in result.output and "1 unexpected: extra" in result.output


def damaged_shard(source: Path, target: Path) -> None:
    """Copy a shard; its first image becomes HTML, its second loses its label, its third gets one beyond the classes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(source) as tar, tarfile.open(target, "w") as out:
        names = [member.name for member in tar.getmembers()]
        keys = sorted({name.split(".")[0] for name in names})
        for name in names:
            data = tar.extractfile(name).read()  # type: ignore[union-attr]
            if name == f"{keys[0]}.png":
                data = b"<html>not found</html>"
            if name == f"{keys[1]}.cls":
                continue
            if name == f"{keys[2]}.cls":
                data = b"44"
            header = tarfile.TarInfo(name)
            header.size = len(data)
            out.addfile(header, io.BytesIO(data))


def test_bad_images_become_rows_and_the_rest_is_done(
    document: dict[str, Any], dataset: Path, tmp_path: Path, camlake: Run
) -> None:
    shard = tmp_path / "bad" / "bad-000000.tar"
    damaged_shard(dataset / "shards" / "scenes-000000.tar", shard)
    document["source"]["uri"] = str(shard)
    job = write_job(document, tmp_path)
    result = camlake("attribute", job)
    assert result.exit_code == 1, result.output
    images = open_lake(document["output"]["uri"]).images.to_table().to_pylist()
    statuses = [row["status"] for row in images]
    assert statuses == ["decode_error", "label_error", "label_error"] + ["ok"] * 5
    assert all(row["error"] for row in images[:3])
    assert "44" in images[2]["error"]
    assert verify(LakeStore(document["output"]["uri"])).ok
    assert camlake("attribute", job, "--max-failed", "3").exit_code == 0
    assert camlake("attribute", job, "--max-failed", "0.5").exit_code == 0
    assert camlake("attribute", job, "--max-failed", "0.1").exit_code == 1


def test_a_truncated_shard_keeps_its_good_images_and_says_where_it_broke(
    document: dict[str, Any], dataset: Path, tmp_path: Path, camlake: Run
) -> None:
    whole = (dataset / "shards" / "scenes-000000.tar").read_bytes()
    shard = tmp_path / "cut.tar"
    shard.write_bytes(whole[: len(whole) * 2 // 3])
    document["source"]["uri"] = str(shard)
    result = camlake("attribute", write_job(document, tmp_path))
    assert result.exit_code == 1, result.output
    images = open_lake(document["output"]["uri"]).images.to_table().to_pylist()
    assert [row["status"] for row in images][-1] == "read_error"
    assert 3 <= sum(row["status"] == "ok" for row in images) < 8
    assert images[-1]["image_id"].endswith("#damaged") and "cut.tar" in images[-1]["error"]


def test_the_lake_of_another_job_is_refused_and_the_difference_named(
    document: dict[str, Any], tmp_path: Path, camlake: Run
) -> None:
    assert camlake("attribute", write_job(document, tmp_path)).exit_code == 0
    document["targets"] = {"top_k": 2}
    result = camlake("attribute", write_job(document, tmp_path))
    assert result.exit_code == 2
    assert "lake of another job" in result.stderr and "targets.top_k was null and is 2" in result.stderr


def test_the_manifest_holds_the_resolved_job(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["output"]["storage_options"] = {}
    assert camlake("attribute", write_job(document, tmp_path), "--set", "output.dtype=uint8").exit_code == 0
    manifest = json.loads((tmp_path / "lake" / "camlake.json").read_text())
    assert manifest["job"]["output"]["dtype"] == "uint8"
    assert manifest["model"]["layers"] == [{"name": "stage4", "channels": 8, "height": 12, "width": 12}]
    assert manifest["model"]["class_names"][3] == "three"
    assert parse_job({**document, "output": {"uri": "x", "dtype": "uint8"}}).digest() != manifest["job_digest"]
