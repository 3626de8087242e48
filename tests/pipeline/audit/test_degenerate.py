"""Rates of degenerate maps, by method and class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.cells import Block
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.degenerate import KIND
from pipeline.audit.frame import make_frame as frame_of
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import MEASURES, Settings
from schemas.tables import MAPS
from tests.pipeline.audit.evidence import find, make_evidence, tables
from tests.pipeline.audit.lakes import make_lake

CLASSES, N = 4, 200
NO_MAPS = tables(maps=MAPS.empty_table())


def evidence_of(flags: npt.NDArray[np.bool_], methods: tuple[str, ...] = ("grad_cam",)) -> Evidence:
    """Flags (CLASSES * N, 3) of the last method's maps; those of the others are sound."""
    target = np.repeat(np.arange(CLASSES), N)
    evidence = make_evidence(target, np.ones((len(target), 14, 14)), methods=methods, lake=NO_MAPS, flags=flags)
    if len(methods) > 1:
        evidence = make_evidence(target, np.ones((len(target), 14, 14)), methods=methods, lake=NO_MAPS)
        values = np.full((len(target), len(MEASURES)), np.nan)
        evidence.state.maps.add(Block(len(methods) - 1, target, target * 0, {}, values, flags))
    return evidence


def none() -> npt.NDArray[np.bool_]:
    return np.zeros((CLASSES * N, 3), np.bool_)


def test_a_class_with_zero_maps_is_named() -> None:
    flags = none()
    flags[2 * N : 2 * N + 40, :2] = True  # zeros are constant too
    (found,) = find(KIND, evidence_of(flags))
    assert (found.measure, found.n, found.effect) == ("all_zero", CLASSES * N, 0.05)
    assert found.details["counts"] == {"all_zero": 40, "constant": 0, "not_finite": 0}
    (worst,) = found.details["classes"]
    assert (worst["target_class"], worst["target_name"], worst["share"], worst["n"]) == (2, "name-2", 0.2, N)
    assert worst["interval"][0] < 0.2 < worst["interval"][1]
    assert "most for 'name-2', 20.0%" in found.sentence


def test_only_the_method_that_fails_is_named() -> None:
    flags = none()
    flags[::10, 1] = True
    (found,) = find(KIND, evidence_of(flags, ("one", "two")))
    assert (found.finding_id, found.measure) == ("degenerate:two:layer4", "constant")


def test_a_single_map_that_is_not_finite_is_told_and_other_single_ones_are_not() -> None:
    for flag, count in ((0, 0), (1, 0), (2, 1)):
        flags = none()
        flags[5, flag] = True
        found = find(KIND, evidence_of(flags))
        assert len(found) == count
    assert found[0].measure == "not_finite"
    assert find(KIND, evidence_of(none())) == []


def test_small_numbers_are_not_flagged() -> None:
    target = np.zeros(60, np.int64)
    flags = np.zeros((60, 3), np.bool_)
    flags[:30, 0] = True
    assert find(KIND, make_evidence(target, np.ones((60, 14, 14)), flags=flags, lake=NO_MAPS)) == []


@pytest.mark.parametrize("targets", ["predicted", "label", "all"])
def test_images_are_looked_up(tmp_path: Path, targets: Literal["predicted", "label", "all"]) -> None:
    lake = open_lake(make_lake(tmp_path / "lake", units=8, images=10, methods=("grad_cam", "other"), accuracy=0.5))
    frame = frame_of(lake, Settings(targets=targets))
    state = State(frame)
    for unit in lake.commits:
        add_unit(state, lake, unit, None)
    found = find(KIND, Evidence(frame, state, lake, state.sample.table))
    assert [each.finding_id for each in found] == ["degenerate:grad_cam:layer4", "degenerate:other:layer4"]
    rows = [row for row in lake.maps.to_table().to_pylist() if row["method"] == "grad_cam"]
    counted = [row for row in rows if targets == "all" or row[f"is_{targets}"]]
    bad = {(row["image_id"], row["store_path"], row["store_row"]) for row in counted if row["not_finite"]}
    assert 0 < len(bad) < 8 or targets == "all"
    assert found[0].measure == "not_finite"
    assert {(each.image_id, each.store_path, each.store_row) for each in found[0].images} == bad
    assert (found[0].n, found[0].details["counts"]["not_finite"]) == (len(counted), len(bad))
