"""Boxes that maps draw: the connected parts of a score map above each threshold, and how boxes overlap."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import Integers
from pipeline.audit.localisation import Floats, enlarge
from pipeline.audit.regions.base import Mask
from schemas.errors import InputError

#: Thresholds of a score map, 1 / LEVELS apart (wsolevaluation has 255 different ones).
LEVELS = 100

#: Pixels hang together by edges and corners.
_TOUCH = np.ones((3, 3), np.int8)


class Components(NamedTuple):
    """The connected parts of a score map at all thresholds.

    ``level`` (n,) in [0, levels): the part is of the pixels of at least (level + 1) / levels. ``boxes`` (n, 4) int64
    x0, y0, x1, y1, edges. ``largest`` (n,): it has the most pixels of its level, the first of equals.
    """

    level: Integers
    boxes: Integers
    largest: npt.NDArray[np.bool_]


@cache
def _ndimage() -> Any:
    # Named by a string: Ray workers import this module's neighbours and need no scipy.
    try:
        return importlib.import_module("scipy.ndimage")
    except ImportError as error:
        raise InputError("the audit's boxes need scipy; install it: pip install 'camlake[audit]'") from error


def boxes_of(mask: Mask) -> tuple[Integers, Integers]:
    """Return boxes (n, 4) int64 around the parts of a mask that hang together by edges or corners, and sizes (n,).

    Raises:
        InputError: scipy is missing.
    """
    labels, count = _ndimage().label(mask, structure=_TOUCH)
    if count == 1:
        # Most maps are one part at most thresholds.
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        return np.array([box], np.int64), np.array([np.count_nonzero(mask)], np.int64)
    found = [(x.start, y.start, x.stop, y.stop) for y, x in _ndimage().find_objects(labels)]
    return np.array(found, np.int64).reshape(-1, 4), np.bincount(labels.ravel())[1:].astype(np.int64)


def components(score: Floats, levels: int = LEVELS) -> Components:
    """Return the connected parts of a score map (H, W) in [0, 1] at each threshold; a map of zeros has none."""
    steps = np.floor(score * levels).astype(np.int16)
    tops, sides = steps.max(1), steps.max(0)
    level: list[int] = []
    boxes: list[Integers] = []
    largest: list[int] = []
    for number in range(1, int(steps.max(initial=0)) + 1):
        # What is above a threshold lies in what was above the last, and is soon small.
        rows, columns = np.flatnonzero(tops >= number), np.flatnonzero(sides >= number)
        y, x = int(rows[0]), int(columns[0])
        found, sizes = boxes_of(steps[y : rows[-1] + 1, x : columns[-1] + 1] >= number)
        largest.append(len(level) + int(sizes.argmax()))
        level += [number - 1] * len(found)
        boxes.append(found + np.array([x, y, x, y]))
    is_largest = np.zeros(len(level), np.bool_)
    is_largest[largest] = True
    joined = np.concatenate(boxes) if boxes else np.empty((0, 4), np.int64)
    return Components(np.array(level, np.int64), joined, is_largest)


def overlap(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> Floats:
    """Return the intersections over unions (n, m) of boxes (n, 4) and (m, 4) that have an area."""
    low, high = np.maximum(one[:, None, :2], two[None, :, :2]), np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = [(each[:, 2] - each[:, 0]) * (each[:, 3] - each[:, 1]) for each in (one, two)]
    return np.asarray(shared / (areas[0][:, None] + areas[1][None, :] - shared), np.float64)


def scores(maps: npt.NDArray[np.floating[Any]]) -> Floats:
    """Return score maps (T, PIXELS, PIXELS) float64 in [0, 1] of maps (T, h, w)."""
    finite = np.isfinite(maps).all((1, 2), keepdims=True)
    large = enlarge(np.where(finite, maps, 0).astype(np.float64))
    least = large.min((1, 2), keepdims=True)
    width = large.max((1, 2), keepdims=True) - least
    # What is constant may differ by the rounding of the enlargement.
    varies = width > 1e-12 * np.abs(large).max((1, 2), keepdims=True)
    return np.asarray(np.where(varies, (large - least) / np.where(varies, width, 1), 0.0), np.float64)
