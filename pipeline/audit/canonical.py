"""Heatmaps of any grid on the canonical grid, as densities whose mean is 1."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from schemas.audit import GRID

Maps = npt.NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


@cache
def overlaps(cells: int, parts: int = GRID) -> npt.NDArray[np.float64]:
    """Return (parts, cells): how much of the mass of each of ``cells`` equal intervals lies in each of ``parts``.

    Mass is spread evenly over a cell, so nothing is lost or invented; columns sum to 1.
    """
    # In integers (the whole is parts x cells long), so that intervals which only touch share exactly nothing.
    part, cell = np.arange(parts)[:, None] * cells, np.arange(cells)[None, :] * parts
    shared = np.minimum(part + cells, cell + parts) - np.maximum(part, cell)
    found: npt.NDArray[np.float64] = np.clip(shared, 0, None) / parts
    return found


def canonical(maps: npt.NDArray[np.floating[Any]]) -> Maps:
    """Return densities (T, GRID, GRID) float64 with a mean of 1: the positive part of maps (T, h, w) over its mass.

    Maps without mass, and those that are not finite, are NaN throughout.
    """
    return expanded(reduced(maps))


def reduced(maps: npt.NDArray[np.floating[Any]]) -> Maps:
    """Return :func:`canonical` densities on the coarsest grid that holds them: (T, gy, gx) float64.

    A side of h cells that divides GRID stays as it is, since all canonical cells in one of them are equal; any other
    has GRID cells.
    """
    positive = np.maximum(maps.astype(np.float64), 0)
    mass = positive.reshape(len(maps), -1).sum(1)
    defined = np.isfinite(mass) & (mass > 0)
    share = positive * (GRID**2 / np.where(defined, mass, np.nan))[:, None, None]
    return _spread(_spread(share, 1), 2)


def expanded(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return what :func:`reduced` grids (..., gy, gx) hold for each canonical cell: (..., GRID, GRID)."""
    for axis in (-2, -1):
        values = np.repeat(values, GRID // values.shape[axis], axis)
    return values


def _spread(values: Maps, axis: int) -> Maps:
    """Spread one axis (1 or 2) of values (T, h, w) over GRID parts, or over its own cells where they divide GRID.

    One cell after another and no matrix product, whose order of additions depends on the number of maps and of threads.
    """
    cells = values.shape[axis]
    if GRID % cells == 0:
        return np.asarray(values / (GRID // cells))
    weights = overlaps(cells)
    result = np.zeros((*values.shape[:axis], GRID, *values.shape[axis + 1 :]))
    source, target = np.moveaxis(values, axis, 0), np.moveaxis(result, axis, 0)
    for part, cell in zip(*np.nonzero(weights), strict=True):
        target[part] += source[cell] * weights[part, cell]
    return result
