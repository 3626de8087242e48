"""Lakes of labels of every released format version open, verify, are measured and exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from jobs.evaluate_labels import evaluate
from pipeline.lake import LakeStore, open_lake, verify
from pipeline.lake.status import status
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.trainset import export_trainset
from pipeline.pseudolabels.truth import open_truth

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ["one/0", "one/2", "two/1", "two/3"]


@pytest.fixture
def v1(tmp_path: Path) -> Iterator[Path]:
    """A copy, so that no test can change the golden one, whose pictures lie where the lake says."""
    memory = fsspec.filesystem("memory")
    memory.put(str(GOLDEN / "labels-v1" / "images"), "/golden/images", recursive=True)
    yield Path(shutil.copytree(GOLDEN / "labels-v1", tmp_path / "v1"))
    memory.rm("/golden", recursive=True)


def test_v1_verifies(v1: Path) -> None:
    store = LakeStore(str(v1 / "lake"))
    result = verify(store)
    assert result.problems == [] and status(store).state == "finished"
    assert (result.committed, dict(result.images)) == (2, {"ok": 4, "decode_error": 1})


def test_v1_is_measured_and_exported(v1: Path, tmp_path: Path) -> None:
    labels = LabelLake(open_lake(str(v1 / "lake")))
    assert labels.classes == {3: "class one", 7: "class two"}
    found = evaluate(labels, open_truth(str(v1 / "truth"), labels), str(v1 / "truth"), missing="error")
    # By hand, of the files alone.
    hits = union = 0
    for name in NAMES:
        index, truth = (np.asarray(Image.open(v1 / place / f"{name}.png")) for place in ("lake/masks", "truth"))
        hits += int(((index == 3) & (truth == 3)).sum())
        union += int(((index == 3) | (truth == 3)).sum())
    [one] = [each for each in found.classes if each.id == 3]
    assert hits > 0 and one.iou == hits / union and one.name == "class one"
    exported = export_trainset(labels, tmp_path / "set")
    assert (exported.images, exported.missing) == (4, 0)
    coco = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert [entry["file_name"] for entry in coco["images"]] == [f"{name}.png" for name in NAMES]
    areas = {entry["id"]: 0 for entry in coco["images"]}
    for each in coco["annotations"]:
        areas[each["image_id"]] += each["area"]
    for entry in coco["images"]:
        index = np.asarray(Image.open(v1 / "lake" / "masks" / entry["file_name"]))
        assert areas[entry["id"]] == (index > 0).sum() > 0
        scores, _ = labels.scores(f"soft/{entry['file_name'].removesuffix('.png')}.npz")
        assert (scores.max(0) > 0.4).mean() == pytest.approx((index > 0).mean(), abs=0.01)


def test_v1_is_small() -> None:
    assert sum(path.stat().st_size for path in (GOLDEN / "labels-v1").rglob("*") if path.is_file()) < 100_000
