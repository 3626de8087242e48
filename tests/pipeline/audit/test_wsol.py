"""MaxBoxAcc, MaxBoxAccV2 and PxAP against OpenCV's components and scikit-learn's average precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.components import LEVELS, boxes_of, components, overlap, scores
from pipeline.audit.localisation import bell, localise, localise_prior
from pipeline.audit.regions.base import PIXELS, Mask, Region
from pipeline.audit.wsol import BINS, DELTAS, Found, outlines
from schemas.view import View

cv2 = pytest.importorskip("cv2")
metrics = pytest.importorskip("sklearn.metrics")

Floats = npt.NDArray[np.float64]


def parts_by_opencv(score: Floats, level: int) -> list[tuple[tuple[int, ...], int]]:
    """Box and pixels of each connected part of the pixels of at least (level + 1) / LEVELS."""
    mask = (np.floor(score * LEVELS) > level).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return [((int(x), int(y), int(x + w), int(y + h)), int(size)) for x, y, w, h, size in stats[1:]]


def iou(one: Any, two: Any) -> float:
    width = max(0.0, min(one[2], two[2]) - max(one[0], two[0]))
    height = max(0.0, min(one[3], two[3]) - max(one[1], two[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return float(width * height / (areas[0] + areas[1] - width * height))


def some_maps(count: int, seed: int) -> tuple[npt.NDArray[np.float32], list[Mask], list[Floats]]:
    """Maps, the regions of one or two boxes, and the boxes."""
    rng = np.random.default_rng(seed)
    maps = rng.random((count, 7, 7)).astype(np.float32) ** 3
    masks, boxes = [], []
    for row in range(count):
        corner = rng.uniform(0, 120, (1 + row % 2, 2))
        truth = np.concatenate([corner, corner + rng.uniform(40, 104, corner.shape)], 1)
        boxes.append(truth)
        masks.append(Region(boxes=tuple(map(tuple, truth.tolist()))).in_view(View(0, 0, PIXELS, PIXELS)))
    return maps, masks, boxes


def found_of(maps: Any, masks: list[Mask], boxes: list[Floats], classes: list[int]) -> Found:
    found = Found()
    found.add(maps, masks, boxes, classes)
    return found


def plateaus(grid: tuple[int, int]) -> Floats:
    """Maps with flat peaks, flat valleys and much that is zero."""
    return np.maximum(np.random.default_rng(9).integers(-3, 4, (2, *grid)), 0).astype(np.float64)


@pytest.mark.parametrize(
    "maps", [np.random.default_rng(0).random((2, 9, 9)), plateaus((7, 7)), plateaus((28, 28)), plateaus((1, 12))]
)
def test_components_are_opencv_s(maps: Floats) -> None:
    for score in scores(maps):
        found = components(score)
        assert set(found.level.tolist()) == set(range(LEVELS))
        several = 0
        for level in range(LEVELS):
            here = found.level == level
            expected = parts_by_opencv(score, level)
            assert sorted(map(tuple, found.boxes[here].tolist())) == sorted(box for box, _ in expected)
            largest = max(size for _, size in expected)
            assert tuple(found.boxes[here & found.largest][0].tolist()) in [
                b for b, size in expected if size == largest
            ]
            several += len(expected) > 1
        assert several > 10


def test_parts_hang_together_by_corners() -> None:
    mask = np.zeros((6, 6), np.bool_)
    mask[[0, 1, 4], [0, 1, 5]] = True
    boxes, sizes = boxes_of(mask)
    assert boxes.tolist() == [[0, 0, 2, 2], [5, 4, 6, 5]]
    assert sizes.tolist() == [2, 1]


def test_overlaps() -> None:
    rng = np.random.default_rng(1)
    one, two = (np.concatenate([low, low + rng.uniform(1, 9, low.shape)], 1) for low in rng.uniform(0, 9, (2, 6, 2)))
    expected = [[iou(a, b) for b in two] for a in one]
    assert overlap(one, two) == pytest.approx(np.array(expected))


def test_accuracies_are_those_of_the_best_threshold() -> None:
    maps, masks, boxes = some_maps(12, 2)
    row = found_of(maps, masks, boxes, [0] * 12).row()
    best, largest = np.zeros((3, LEVELS)), np.zeros(LEVELS)
    for score, truth in zip(scores(maps), boxes, strict=True):
        for level in range(LEVELS):
            parts = parts_by_opencv(score, level)
            overlaps = [max(iou(box, each) for each in truth) for box, _ in parts]
            best[:, level] += max(overlaps) >= np.array(DELTAS)
            sizes = [size for _, size in parts]
            largest[level] += overlaps[sizes.index(max(sizes))] >= 0.5
    expected = best.max(1) / 12
    assert 0 < expected[1] < 1
    assert [row[f"max_box_acc_v2_{name}"] for name in (30, 50, 70)] == pytest.approx(expected.tolist())
    assert row["max_box_acc_v2"] == pytest.approx(expected.mean())
    assert row["max_box_acc"] == pytest.approx(largest.max() / 12)


def test_the_pixels_precision_is_scikit_learn_s() -> None:
    maps, masks, boxes = some_maps(5, 3)
    bins = np.floor(scores(maps) * BINS).ravel()
    expected = metrics.average_precision_score(np.stack(masks).ravel(), bins)
    assert found_of(maps, masks, boxes, [0] * 5).row()["px_ap"] == pytest.approx(expected, abs=1e-12)


def test_a_map_of_the_object_itself_is_perfect() -> None:
    _, masks, boxes = some_maps(4, 4)
    even, truth = masks[::2], [np.round(each) for each in boxes[::2]]  # one box each
    masks = [Region(boxes=tuple(map(tuple, each.tolist()))).in_view(View(0, 0, PIXELS, PIXELS)) for each in truth]
    row = found_of(np.stack(masks).astype(np.float32), masks, truth, [0, 1]).row()
    assert len(even) == 2
    for name in ("max_box_acc", "max_box_acc_v2", "px_ap", "pointing", "energy", "rank_accuracy"):
        assert row[name] == pytest.approx(1), name


def test_maps_that_show_nothing_are_misses() -> None:
    maps, masks, boxes = some_maps(4, 5)
    maps[0], maps[1], maps[2, 3, 3] = 0.3, 0, np.nan
    assert not scores(maps)[:3].any()
    row = found_of(maps, masks, boxes, [0, 0, 0, 1]).row()
    alone = found_of(maps[3:], masks[3:], boxes[3:], [1]).row()
    assert row["maps"] == 4
    assert row["max_box_acc_v2_30"] == pytest.approx(float(alone["max_box_acc_v2_30"] or 0) / 4)
    # What has no peak is no miss of the pointing game.
    assert row["classes"] == 1


def test_scores_reach_from_0_to_1_and_keep_what_is_negative() -> None:
    found = scores(np.random.default_rng(6).normal(size=(2, 7, 7)))
    assert (found.min((1, 2)) == 0).all()
    assert (found.max((1, 2)) == 1).all()
    assert (found > 0).mean() > 0.99


def test_the_prior_is_a_map_like_others() -> None:
    _, masks, boxes = some_maps(6, 8)
    masks[0], boxes[1] = np.ones_like(masks[0]), boxes[1][:0]
    classes = [0, 1, 2] * 2
    prior = np.broadcast_to(np.outer(bell(), bell()), (6, PIXELS, PIXELS))
    short = Found()
    short.add_prior(masks, boxes, classes)
    assert short.boxed == 5
    assert short.row() == pytest.approx(found_of(prior, masks, boxes, classes).row(), abs=2e-6)
    measured = localise(prior, masks)
    for name, values in localise_prior(masks).items():
        assert values == pytest.approx(measured[name], abs=1e-9, nan_ok=True), name


def test_sums_merge() -> None:
    maps, masks, boxes = some_maps(9, 7)
    classes = [0, 1, 2] * 3
    whole = found_of(maps, masks, boxes, classes)
    parts = [found_of(maps[rows], masks[rows], boxes[rows], classes[rows]) for rows in (slice(5), slice(5, 9))]
    parts[1].merge(parts[0])
    assert parts[1].row() == whole.row()
    assert Found().row()["max_box_acc"] is None


def test_objects_outlines_are_their_boxes_in_the_view() -> None:
    view = View(10, 0, 66, 56)
    region = Region(boxes=((0, 0, 24, 14), (70, 0, 80, 9)))
    assert outlines(region, view).tolist() == [[0, 0, 56, 56]]
    drawn = Region(polygons=(np.array([(20, 5), (40, 5), (40, 30)], np.float32),), outlines=((20, 5, 40, 30),))
    assert outlines(drawn, view).tolist() == [[40, 20, 120, 120]]
    mask = np.zeros((56, 66), np.bool_)
    mask[4:8, 10:12] = mask[40:, 60:] = True
    assert outlines(Region(mask=mask), view).tolist() == [[0, 16, 8, 32], [200, 160, 224, 224]]
