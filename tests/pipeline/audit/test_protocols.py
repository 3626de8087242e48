"""Localisation beside the definitions of wsolevaluation and Quantus, on the same maps: how far apart, and by what."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.localisation import enlarge, localise
from pipeline.audit.regions.base import Mask, Region
from pipeline.audit.wsol import Found
from schemas.view import View

protocols = pytest.importorskip("tests.pipeline.audit.protocols")  # needs OpenCV

Floats = npt.NDArray[np.float64]
SIDE = 224


def like_maps(count: int, seed: int) -> tuple[npt.NDArray[np.float32], list[Floats], list[Mask]]:
    """Maps (T, 7, 7) of one to three blobs with zeros between, boxes around where the first is, and their masks."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((7, 7)) + 0.5
    maps, boxes = np.zeros((count, 7, 7), np.float32), []
    for number in range(count):
        middle = rng.uniform(1.5, 5.5, 2)
        for place in [middle, *rng.uniform(0, 7, (int(rng.integers(0, 3)), 2))]:
            width = rng.uniform(0.7, 1.8, 2)
            distance = ((y - place[0]) / width[0]) ** 2 + ((x - place[1]) / width[1]) ** 2
            maps[number] += rng.uniform(0.5, 1.0) * np.exp(-distance / 2)
        maps[number] = np.maximum(maps[number] + rng.normal(0, 0.05, (7, 7)) - 0.1, 0)
        half = rng.uniform(30, 70, 2)
        truth = np.concatenate([32 * middle[::-1] - half, 32 * middle[::-1] + half]) + rng.normal(0, 12, 4)
        boxes.append(np.clip(truth, 0, SIDE)[None])
    masks = [Region(boxes=tuple(map(tuple, each.tolist()))).in_view(View(0, 0, SIDE, SIDE)) for each in boxes]
    return maps, boxes, masks


COUNT = 40


@pytest.fixture(scope="module")
def case() -> tuple[npt.NDArray[np.float32], list[Floats], list[Mask]]:
    return like_maps(COUNT, 1)


@pytest.fixture(scope="module")
def ours(case: Any) -> dict[str, Any]:
    maps, boxes, masks = case
    found = Found()
    found.add(maps, masks, boxes, [0] * COUNT)
    return found.row()


NAMES = ("max_box_acc", "max_box_acc_v2", "max_box_acc_v2_30", "max_box_acc_v2_50", "max_box_acc_v2_70")


def test_the_protocol_with_our_switches_is_ours(case: Any, ours: dict[str, Any]) -> None:
    found = protocols.box_accuracies(case[0], case[1], protocols.CAMLAKE)
    for name in NAMES:
        assert ours[name] == pytest.approx(found[name], abs=1e-12), name
    assert 0.2 < ours["max_box_acc_v2"] < 0.95  # there is something to agree on


@pytest.mark.parametrize("switch", [{}, {"cubic": False}, {"steps": 0}, {"lattice": False}])
def test_wsolevaluation_s_protocol_is_near(case: Any, ours: dict[str, Any], switch: dict[str, Any]) -> None:
    found = protocols.box_accuracies(case[0], case[1], protocols.WSOLEVALUATION._replace(**switch))
    for name in NAMES:
        # Single images move: one of 40 is 0.025.
        assert ours[name] == pytest.approx(found[name], abs=0.051), name
    assert ours["max_box_acc_v2"] == pytest.approx(found["max_box_acc_v2"], abs=0.02)


def test_the_measures_of_one_map_are_those_of_quantus(case: Any) -> None:
    maps, _, masks = case
    found = localise(maps, masks)
    for row, (attribution, mask) in enumerate(zip(enlarge(maps.astype(np.float64)), masks, strict=True)):
        mass = protocols.relevance_mass_accuracy(attribution, mask)
        assert found["energy"][row] == pytest.approx(mass, abs=1e-12)
        # It orders pixels that are equal somehow.
        rank = protocols.relevance_rank_accuracy(attribution, mask)
        assert found["rank_accuracy"][row] == pytest.approx(rank, abs=1e-3)
        assert found["pointing"][row] == protocols.pointing_game(attribution, mask)
    assert 0.2 < found["pointing"].mean() < 0.95


def test_quantus_counts_a_hit_where_any_of_equal_pixels_is_inside() -> None:
    # At an edge the enlarged map is flat over half a cell; the peak is the cell, and its centre is not in the region.
    maps, corner = np.zeros((1, 7, 7)), np.zeros((SIDE, SIDE), np.bool_)
    maps[0, 0, 0], corner[:9, :9] = 1, True
    assert protocols.pointing_game(enlarge(maps)[0], corner) == 1
    assert localise(maps, [corner])["pointing"][0] == 0
    # A map without a peak always hits there, and counts neither way here.
    assert protocols.pointing_game(np.ones((SIDE, SIDE)), corner) == 1
    assert np.isnan(localise(np.ones((1, 7, 7)), [corner])["pointing"][0])


def test_without_a_region_there_is_no_pointing_game() -> None:
    nothing = np.zeros((SIDE, SIDE), np.bool_)
    assert np.isnan(protocols.pointing_game(np.ones((SIDE, SIDE)), nothing))
    assert np.isnan(localise(np.random.default_rng(0).random((1, 7, 7)), [nothing])["pointing"][0])
