"""Maps on the canonical grid."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit.canonical import canonical, overlaps
from schemas.audit import GRID


@pytest.mark.parametrize("cells", [1, 2, 3, 7, 8, 14, 16, 24, 28, 56])
def test_mass_is_neither_lost_nor_invented(cells: int) -> None:
    weights = overlaps(cells)
    assert weights.shape == (GRID, cells) and (weights >= 0).all()
    assert np.allclose(weights.sum(0), 1, atol=1e-15)
    assert np.allclose(weights.sum(1), cells / GRID, atol=1e-13)


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (8, 8), (3, 5), (28, 28), (16, 9), (1, 1)])
def test_cells_are_spread_over_what_they_cover(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    maps = rng.uniform(0, 1, (5, *grid)).astype(np.float32)
    # Both grids on one that is finer than either, and back.
    tall = np.repeat(np.repeat(maps.astype(np.float64), GRID, 1), GRID, 2)
    fine = tall.reshape(5, GRID, grid[0], GRID, grid[1]).sum((2, 4))
    expected = fine / fine.mean((1, 2), keepdims=True)
    found = canonical(maps)
    assert found.dtype == np.float64
    assert np.allclose(found, expected, rtol=1e-12)
    assert np.allclose(found.mean((1, 2)), 1)


def test_negative_evidence_is_none() -> None:
    maps = np.array([[[1.0, -5.0], [0.0, 0.0]]])
    found = canonical(maps)[0]
    assert np.allclose(found[:7, :7], 4) and not found[7:].any() and not found[:, 7:].any()


def test_maps_without_mass_are_undefined() -> None:
    maps = np.ones((4, 7, 7), np.float32)
    maps[0], maps[1, 3, 3], maps[2, 0, 0] = 0, np.nan, np.inf
    found = canonical(maps)
    assert np.isnan(found[:3]).all() and np.allclose(found[3], 1)


@pytest.mark.parametrize("grid", [(7, 7), (8, 8), (16, 9)])
def test_neighbours_do_not_matter_to_the_last_bit(grid: tuple[int, int]) -> None:
    maps = np.random.default_rng(2).uniform(0, 1, (257, *grid)).astype(np.float32)
    together = canonical(maps)
    for rows in (slice(0, 1), slice(3, 10), slice(250, 257)):
        assert canonical(maps[rows]).tobytes() == together[rows].tobytes()
