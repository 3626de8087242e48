"""Boxes that maps draw: the connected parts of a score map above each threshold, and how boxes overlap."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
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

#: More than any edge and any threshold.
_FAR = 1 << 20

#: Pixels hang together by edges and corners.
_TOUCH = np.ones((3, 3), np.int8)


class Components(NamedTuple):
    """The connected parts of a score map at all thresholds.

    ``level`` (n,) in [0, levels): the part is of the pixels of at least (level + 1) / levels. ``boxes`` (n, 4) int64
    x0, y0, x1, y1, edges. ``largest`` (n,): it has the most pixels of its level, or is one of those.
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
    # From each pixel the way up to a peak stays above the pixel's threshold. So a part is what lies above it in the
    # basins of some peaks, and two basins hang together up to the highest pair of neighbours across their border: a few
    # peaks are joined, from the highest threshold to the lowest, instead of pixels at each.
    raised = score * levels
    steps = np.floor(raised).astype(np.int64)
    basins = _basins(raised, steps)
    count = int(basins.max(initial=-1)) + 1
    parts = _Parts(*_profiles(basins, count, steps, levels))
    for one, two, step in _passes(basins, count, steps):
        parts.join(one, two, step)
    level, boxes, sizes = parts.all()
    winner = np.full(levels + 1, -1)
    order = np.argsort(sizes, kind="stable")
    winner[level[order]] = order  # of several values for one place the last one stays
    largest = np.zeros(len(level), np.bool_)
    largest[winner[winner >= 0]] = True
    return Components(level - 1, boxes, largest)


def _basins(raised: Floats, steps: Integers) -> Integers:
    """Return for each pixel (H, W) the number of the peak that the steepest way up leads to; -1 where it has no step.

    Of equal neighbours the later one in reading order counts as higher, so that every way ends; a plateau may have
    several peaks.
    """
    # One number per pixel: its step, what is beyond it, and its place.
    places = (steps.size - 1).bit_length()
    finer = 62 - places - int(steps.max(initial=0)).bit_length()
    code = (((steps << finer) + ((raised - steps) * 2.0**finer).astype(np.int64)) << places) + _reading(steps.shape)
    padded = np.pad(code, 1, constant_values=-1)
    across = np.maximum(np.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    way = np.maximum(np.maximum(across[:-2], across[1:-1]), across[2:]).ravel() & ((1 << places) - 1)
    while not np.array_equal(further := way[way], way):
        way = further
    number = np.full(steps.size, -1)
    peaks = np.flatnonzero((way == _reading(steps.shape).ravel()) & (steps.ravel() > 0))
    number[peaks] = np.arange(len(peaks))
    return np.where(steps > 0, number[way].reshape(steps.shape), -1)


@cache
def _reading(shape: tuple[int, int]) -> Integers:
    return np.arange(shape[0] * shape[1]).reshape(shape)


def _profiles(basins: Integers, count: int, steps: Integers, levels: int) -> tuple[Integers, Integers]:
    """Return of the pixels of each basin with at least 0, 1, ... steps the edges (4, n, levels + 1) and the number.

    Edges are x0, y0, -x1 and -y1, so that the least is always the outer one. The number is (n, levels + 1).
    """
    size = levels + 1
    edges = np.full((4, count * size), _FAR)
    keys = np.where(basins >= 0, basins * size + steps, -1)
    for way, across in enumerate((keys.T, keys)):
        flat = across.ravel()
        place = np.flatnonzero(flat >= 0)
        key, line = flat[place], place // across.shape[1]
        # In order of lines, and of several values for one place the last one stays.
        edges[way, key[::-1]] = line[::-1]
        edges[2 + way, key] = -(line + 1)
    pixels = np.bincount(key, minlength=count * size).reshape(count, size)
    outer = np.minimum.accumulate(edges.reshape(4, count, size)[:, :, ::-1], axis=2)[:, :, ::-1]
    return outer, np.cumsum(pixels[:, ::-1], axis=1)[:, ::-1]


def _passes(basins: Integers, count: int, steps: Integers) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of neighbouring basins and the steps up to which they hang together, the highest first."""
    # With a margin, a neighbour is as far away along the flat array from every pixel.
    margin = [(0, 1), (1, 1)]
    flat, height = np.pad(basins, margin, constant_values=-1).ravel(), np.pad(steps, margin).ravel()
    width = basins.shape[1] + 2
    found = []
    for far in (1, width - 1, width, width + 1):
        border = np.flatnonzero((flat[:-far] != flat[far:]) & (np.minimum(height[:-far], height[far:]) > 0))
        one, two = flat[border], flat[border + far]
        step = np.minimum(height[border], height[border + far])
        found.append((np.minimum(one, two) * count + np.maximum(one, two)) * _FAR + step)
    # Sorted by pair, then steps: the last of each pair is its highest.
    pair, step = np.divmod(np.sort(np.concatenate(found)), _FAR)
    highest = np.flatnonzero(np.diff(pair, append=-1))
    for each in highest[np.argsort(-step[highest], kind="stable")].tolist():
        yield int(pair[each]) // count, int(pair[each]) % count, int(step[each])


class _Parts:
    """Parts at falling thresholds: each grows until it hangs together with another, and both end in a third."""

    def __init__(self, edges: Integers, pixels: Integers) -> None:
        self._edges, self._pixels = list(edges.transpose(1, 0, 2)), list(pixels)
        self._into = list(range(len(pixels)))
        self._from = [int(np.flatnonzero(each)[-1]) for each in pixels]
        self._done: list[tuple[Integers, Integers, Integers]] = []

    def join(self, one: int, two: int, step: int) -> None:
        """Join the parts of two basins at thresholds up to ``step``."""
        one, two = self._find(one), self._find(two)
        if one == two:
            return
        for each in (one, two):
            self._end(each, step)
        self._into[two] = one
        self._edges[one] = np.minimum(self._edges[one], self._edges[two])
        self._pixels[one] = self._pixels[one] + self._pixels[two]
        self._from[one] = step

    def all(self) -> tuple[Integers, Integers, Integers]:
        """End all parts; return thresholds (n,), boxes (n, 4) and numbers of pixels (n,)."""
        for each, into in enumerate(self._into):
            if each == into:
                self._end(each, 0)
        nothing = np.empty(0, np.int64), np.empty((0, 4), np.int64), np.empty(0, np.int64)
        level, boxes, sizes = (np.concatenate(each) for each in zip(nothing, *self._done, strict=True))
        return level, boxes, sizes

    def _find(self, basin: int) -> int:
        while self._into[basin] != basin:
            self._into[basin] = basin = self._into[self._into[basin]]
        return basin

    def _end(self, part: int, step: int) -> None:
        last = self._from[part]
        if last > step:
            edges = self._edges[part][:, step + 1 : last + 1]
            boxes = np.abs(edges.T)
            self._done.append((np.arange(step + 1, last + 1), boxes, self._pixels[part][step + 1 : last + 1]))


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
