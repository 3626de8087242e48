from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.off_object import KIND
from pipeline.audit.frame import make_frame
from pipeline.audit.regions import Region, RegionSource, open_regions
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import Settings
from tests.pipeline.audit.lakes import VIEW, Maps, Rows, centres, make_lake

#: The class whose maps are led astray.
ASTRAY = 2


def evidence(path: Path | str, source: RegionSource | None = None, **settings: Any) -> Evidence:
    lake = open_lake(str(path))
    frame = make_frame(lake, Settings.model_validate({"boxes": "boxes", "bootstrap": 100, **settings}))
    state = State(frame)
    regions = source or open_regions(frame.settings, lake)
    for unit in sorted(lake.commits):
        add_unit(state, lake, unit, regions)
    return Evidence(frame, state, lake, state.sample.table)


def astray(share: float) -> Any:
    """Moves the maps of one class, a share of them, to the other side of the view."""

    def paint(
        maps: Maps, rows: Rows, image: npt.NDArray[np.int64], target: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        chosen = (target == ASTRAY) & (rng.random(len(target)) < share)
        maps[chosen] = maps[chosen, ::-1, ::-1]

    return paint


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lake") / "lake"
    return make_lake(path, units=3, images=300, boxes=True, accuracy=0.95, paint=astray(0.7))


def test_the_class_whose_maps_lie_elsewhere_is_found(planted: str) -> None:
    found = evidence(planted)
    (finding,) = KIND().find(found)
    assert (finding.finding_id, finding.target_name) == ("off_object:2", "name-2")
    sample = found.sample
    energy, target = sample["energy"].to_numpy().astype(np.float64), sample["target_class"].to_numpy()
    known = np.isfinite(energy)
    # The objects are all of one size, so other classes' maps are what is expected.
    expected = energy[known & (target == ASTRAY)].mean() - energy[known & (target != ASTRAY)].mean()
    assert finding.effect == pytest.approx(expected, abs=1e-5)
    assert finding.low is not None
    assert finding.high is not None
    assert finding.low < expected < finding.high < -0.05
    error = np.sqrt(
        energy[known & (target == ASTRAY)].var() / finding.n
        + energy[known & (target != ASTRAY)].var() / (finding.reference_n or 1)
    )
    assert finding.high - finding.low == pytest.approx(2 * 1.96 * error, rel=0.3)
    assert finding.q is not None
    assert finding.q < 1e-6
    assert finding.n == (known & (target == ASTRAY)).sum()
    assert 0 < finding.severity <= 70
    assert f"{finding.details['energy']:.0%} of their weight on the object" in finding.sentence
    assert finding.details["pointing_low"] < finding.details["pointing"] < finding.details["pointing_high"] < 0.5


def test_its_images_are_the_worst_ones(planted: str) -> None:
    found = evidence(planted)
    (finding,) = KIND().find(found)
    rows = [
        row
        for row in found.sample.to_pylist()
        if row["target_class"] == ASTRAY and row["enrichment"] == row["enrichment"]
    ]
    rows.sort(key=lambda row: (row["enrichment"], row["image_id"]))
    assert [each.image_id for each in finding.images] == [row["image_id"] for row in rows[:24]]


def test_few_maps_are_never_flagged(planted: str) -> None:
    assert KIND().find(evidence(planted, flagged_from=400)) == []


def test_a_small_loss_is_not_flagged(tmp_path: Path) -> None:
    uri = make_lake(tmp_path / "lake", units=3, images=300, boxes=True, accuracy=0.95, paint=astray(0.15))
    found = evidence(uri)
    assert KIND().find(found) == []
    # It is there, and significant; only it is small.
    assert [each.target_class for each in KIND().find(evidence(uri, effect_ratio=1.0))] == [ASTRAY]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, seed: int) -> None:
    uri = make_lake(tmp_path / "lake", units=2, images=250, boxes=True, seed=seed)
    assert KIND().find(evidence(uri)) == []


def test_nothing_is_said_without_regions(tmp_path: Path) -> None:
    uri = make_lake(tmp_path / "lake", units=1, images=200)
    found = evidence(uri, boxes=None)
    assert found.state.counts["regions"] == 0
    assert KIND().find(found) == []


class Sizes(RegionSource):
    """Boxes around the explained class's blob: of the first class mostly small ones, else large ones."""

    def region(self, image: Mapping[str, Any], target_class: int, target_name: str | None) -> Region | None:
        rare = int(image["image_id"][-1]) < 3
        half = 0.08 if (target_class == 0) != rare else 0.25
        y, x = centres(4)[target_class]
        left, top = VIEW[0] + 48 * (x - half), VIEW[1] + 48 * (y - half)
        return Region(boxes=((left, top, left + 96 * half, top + 96 * half),))

    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        return frozenset()

    def about(self) -> str:
        return "boxes of two sizes"


def test_a_class_of_small_objects_is_not_blamed_for_them(tmp_path: Path) -> None:
    uri = make_lake(tmp_path / "lake", units=2, images=300)
    found = evidence(uri, Sizes(), effect_ratio=1.0)
    cells = [found.cell(target) for target in range(4)]
    energy = [cell.mean(8) for cell in cells if cell is not None]
    assert energy[0] < min(energy[1:]) - 0.1
    assert KIND().find(found) == []


def test_a_lake_whose_maps_are_nowhere_near_is_told_once(tmp_path: Path) -> None:
    def uniform(maps: Maps, *_: Any) -> None:
        maps[:] = np.random.default_rng(0).uniform(0.9, 1, maps.shape)

    (finding,) = KIND().find(evidence(make_lake(tmp_path / "lake", units=2, images=200, boxes=True, paint=uniform)))
    assert finding.finding_id == "off_object:all"
    assert finding.effect == pytest.approx(0, abs=0.01)
    assert finding.high is not None
    assert finding.high < 0.05
    assert "9% of their weight on the objects, which cover 9%" in finding.sentence
