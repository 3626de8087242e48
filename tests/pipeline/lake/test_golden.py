"""Lakes of every released format version open, verify and give the same maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.lake.reader import open_lake
from pipeline.lake.status import status
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    """A copy, so that no test can change the golden one."""
    return Path(shutil.copytree(GOLDEN / "v1", tmp_path / "v1"))


def test_v1_verifies(v1: Path) -> None:
    result = verify(LakeStore(str(v1 / "lake")))
    assert result.problems == []
    assert (result.committed, result.maps, result.arrays) == (2, 24, 6)
    assert status(LakeStore(str(v1 / "lake"))).state == "finished"


def test_v1_reads_back_what_was_written(v1: Path) -> None:
    lake = open_lake(str(v1 / "lake"))
    expected = {
        (entry["image_id"], entry["target_class"], entry["method"], entry["layer"]): np.array(
            [[float(cell) for cell in line] for line in entry["maps"]], np.float32
        )
        for entry in json.loads((v1 / "expected.json").read_text())
    }
    found = {(r["image_id"], r["target_class"], r["method"], r["layer"]): (r, raw) for r, raw in lake.heatmaps()}
    assert set(found) == set(expected)
    for key, (row, raw) in found.items():
        if row["not_finite"]:
            assert np.isnan(raw).all()
        else:
            steps = 2.0**-12 if row["unit_id"].startswith("000000") else 1 / 254
            np.testing.assert_allclose(raw, expected[key], atol=steps * 1.001 * row["vmax"])
    images = lake.images.to_table().to_pylist()
    assert [image["status"] for image in images] == ["ok", "decode_error", "ok"] * 2
    assert [image["age"] for image in images] == [30, 31, 32] * 2


def test_v1_is_small() -> None:
    assert sum(path.stat().st_size for path in (GOLDEN / "v1").rglob("*") if path.is_file()) < 100_000
