"""Places in the view at which maps may have a spot of their own, and how much of a map's evidence lies there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.audit import GRID

#: Side of a spot in cells of the canonical grid, and how many places it has along a side.
WINDOW = 3
LATTICE = GRID - WINDOW + 1
#: Windows whose centre is this near to an edge (share of the view's side) lie at the edge.
EDGE = 0.2

_FAR = 2  # windows around a spot that hold less
_ROWS = 8192
_ENDS = (0, LATTICE - 1)
#: Places at which a mark is to be expected before anything is seen: the very corners, and with them the windows beside
#: them along an edge, since a mark in a corner is not always in the middle of the outermost window.
CORNERS, NEAR_CORNERS = "corners-00", "corners-near"
#: Least share of a spot within a part for the map to look at that part.
OF_PART = 0.1
#: Of a part, cells of at least this share of its largest belong to it.
_OF_PART = 0.3

Bools = npt.NDArray[np.bool_]
Shares = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Place:
    """A place, or several that mirror each other.

    Attributes:
        key: its stable name.
        words: where it is, for a sentence.
        zone: (GRID, GRID), the cells that a spot there may cover.
        windows: (LATTICE, LATTICE), the windows whose spots count for it.
        outer: it lies at edges or in corners throughout.
        part: index of the part that it came from; None of a plain place.
    """

    key: str
    words: str
    zone: Bools
    windows: Bools
    outer: bool
    part: int | None = None


def window_shares(maps: npt.NDArray[np.floating[Any]]) -> Shares:
    """Return (T, LATTICE, LATTICE): the share of each map's mass in each window; of maps (T, GRID, GRID) of mean 1."""
    rows = np.add.reduce([maps[:, i : i + LATTICE] for i in range(WINDOW)])
    found = np.add.reduce([rows[:, :, i : i + LATTICE] for i in range(WINDOW)])
    return np.asarray(found, np.float32) / np.float32(GRID**2)


def spots(maps: npt.NDArray[np.floating[Any]]) -> Shares:
    """Return (T, LATTICE, LATTICE): the shares of windows that hold most among those within two cells, 0 elsewhere.

    The flank of a large object that reaches a place is no spot there; a mark beside the object is one.
    """
    found = np.zeros((len(maps), LATTICE, LATTICE), np.float32)
    for start in range(0, len(maps), _ROWS):
        shares = window_shares(maps[start : start + _ROWS])
        found[start : start + _ROWS] = np.where(shares >= _greatest(shares, _FAR), shares, 0)
    return found


def _greatest(values: Shares, reach: int) -> Shares:
    """The largest value within ``reach`` along both axes."""
    for axis in (1, 2):
        width = [(0, 0)] * 3
        width[axis] = (reach, reach)
        padded = np.pad(values, width, constant_values=-np.inf)
        length = values.shape[axis]
        values = np.maximum.reduce([np.take(padded, range(i, i + length), axis) for i in range(2 * reach + 1)])
    return values


def plain_places() -> list[Place]:
    """Return every window with its neighbours, those at the edges with their mirror images, and the very corners.

    A spot in the outermost window is small: an object that lies in the corner has its middle further in.
    """
    found = []
    for y, x in np.ndindex(LATTICE, LATTICE):
        found.append(_place(f"at-{y:02d}-{x:02d}", where(_centre(y), _centre(x)), _near(y, x)))
    found += [_place(f"just-{y:02d}-{x:02d}", where(_centre(y), _centre(x)), _just(y, x)) for y in _ENDS for x in _ENDS]
    half = LATTICE // 2
    for y, x in np.ndindex(half, half):
        if _outer(y) or _outer(x):
            near = _near(y, x)
            found.append(_place(f"mirrored-{y:02d}-{x:02d}", _mirrored(y, x), mirrored(near)))
        if y < 2 and x < 2:
            found.append(_place(f"corners-{y}{x}", _mirrored(y, x), mirrored(_just(y, x))))
    near = _just(0, 0) | _just(0, 1) | _just(1, 0)
    found.append(_place(NEAR_CORNERS, _mirrored(0, 0), mirrored(near)))
    return found


def part_places(parts: npt.NDArray[np.float64]) -> list[Place]:
    """Return the places of parts (K, GRID, GRID) that cover a quarter of the view at most."""
    found = []
    for number, part in enumerate(parts):
        zone = part >= _OF_PART * part.max()
        if zone.mean() > 0.25:
            continue
        inner = slice(WINDOW // 2, WINDOW // 2 + LATTICE)
        windows = zone[inner, inner]
        if not windows.any():
            continue
        weight = part / part.sum()
        along = (np.arange(GRID) + 0.5) / GRID
        y, x = float(weight.sum(1) @ along), float(weight.sum(0) @ along)
        rows, columns = np.nonzero(windows)
        outer = bool((_outer(rows) | _outer(columns)).mean() > 0.5)
        found.append(Place(f"part-{number:02d}", where(y, x), zone, windows, outer, number))
    return found


def loads(found: Shares, places: list[Place], loadings: npt.NDArray[np.float64]) -> Shares:
    """Return (T, P): how much of each map's evidence is a spot at each place.

    Args:
        found: (T, LATTICE, LATTICE) from :func:`spots`.
        places: P of them.
        loadings: (T, K) on the parts; of a part's place they count where the map has a spot there.
    """
    flat = found.reshape(len(found), LATTICE**2)
    result = np.zeros((len(found), len(places)), np.float32)
    for number, place in enumerate(places):
        strongest = flat[:, np.flatnonzero(place.windows)].max(1)
        if place.part is None:
            result[:, number] = strongest
        else:
            result[:, number] = np.where(strongest >= OF_PART, loadings[:, place.part], 0)
    return result


def mirrored(mask: Bools) -> Bools:
    """Return a mask (H, W) together with its mirror images left to right, top to bottom, and both."""
    sideways = mask | mask[:, ::-1]
    return sideways | sideways[::-1]


def along_edges(windows: Bools) -> Bools:
    """Return the windows (LATTICE^2,) along the edges at which ``windows`` (LATTICE, LATTICE) lie, without corners."""
    found = np.zeros((LATTICE, LATTICE), np.bool_)
    for axis, place in enumerate(np.nonzero(windows)):
        if _outer(place).mean() > 0.5:
            for near in (place < LATTICE // 2, place >= LATTICE // 2):
                edge = np.unique(place[near & _outer(place)])
                if len(edge):
                    ends = slice(0, 2) if edge[0] < LATTICE // 2 else slice(LATTICE - 2, LATTICE)
                    found[(ends, slice(None)) if axis == 0 else (slice(None), ends)] = True
    outer = _outer(np.arange(LATTICE))
    return np.asarray(found & ~(outer[:, None] & outer[None, :])).ravel()


def grown(mask: Bools, by: int = 1) -> Bools:
    """Return a mask (H, W) with all cells within ``by`` of it."""
    return np.asarray(_greatest(mask[None].astype(np.float32), by)[0] > 0)


def where(y: float, x: float) -> str:
    """Say where a point of the view is; (0, 0) is the upper left, (1, 1) the lower right."""
    down = "upper" if y <= EDGE else "lower" if y >= 1 - EDGE else None
    across = "left" if x <= EDGE else "right" if x >= 1 - EDGE else None
    if down and across:
        return f"the {down} {across} corner"
    if down or across:
        return f"the {down or across} edge"
    third = ("upper ", "", "lower ")[min(2, int(3 * y))], ("left", "", "right")[min(2, int(3 * x))]
    name = f"{third[0]}{third[1]}".strip()
    return f"the {name} part" if name else "the middle"


def _mirrored(y: int, x: int) -> str:
    if _outer(y) and _outer(x):
        return "the corners"
    return "the upper or lower edge" if _outer(y) else "the left or right edge"


def _centre(window: int) -> float:
    return (window + WINDOW / 2) / GRID


def _outer(window: Any) -> Any:
    """Whether windows lie at an edge along one axis."""
    centre = (np.asarray(window) + WINDOW / 2) / GRID
    return (centre <= EDGE) | (centre >= 1 - EDGE)


@cache
def _window_cells() -> Bools:
    """(LATTICE^2, GRID, GRID): the cells of each window."""
    cells = np.zeros((LATTICE, LATTICE, GRID, GRID), np.bool_)
    for y, x in np.ndindex(LATTICE, LATTICE):
        cells[y, x, y : y + WINDOW, x : x + WINDOW] = True
    return cells.reshape(-1, GRID, GRID)


def _near(y: int, x: int) -> Bools:
    windows = np.zeros((LATTICE, LATTICE), np.bool_)
    windows[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    return windows


def _just(y: int, x: int) -> Bools:
    windows = np.zeros((LATTICE, LATTICE), np.bool_)
    windows[y, x] = True
    return windows


def _place(key: str, words: str, windows: Bools) -> Place:
    rows, columns = np.nonzero(windows)
    zone = np.asarray(_window_cells()[np.flatnonzero(windows)].any(0))
    # The windows next to it count for it too, so half of them at the edge is enough.
    outer = bool((_outer(rows) | _outer(columns)).mean() > 0.5)
    return Place(key, words, zone, windows, outer)
