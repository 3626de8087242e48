"""Do two sets of maps lie in different places? Cell by cell, since a centre of mass may hide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import Cell
from pipeline.audit.fixed import MAP_BITS, SQUARE_BITS, Integers, floating
from pipeline.audit.reading import stacked
from pipeline.audit.table import MAPS
from schemas.audit import GRID

Floats = npt.NDArray[np.float64]

_CELLS = GRID * GRID
#: Added to each cell's standard deviation, in densities of mean 1: cells with next to no mass must not lead (the
#: "fudge factor" of Tusher, Tibshirani and Chu, PNAS 2001).
FUDGE = 0.1
_PERMUTATIONS = 499
#: Permutations beyond the observed number from which their share is taken as it is.
_COUNTED = 10


@dataclass(frozen=True)
class MapSums:
    """Exact sums of the densities of K items: ``count`` (K, 1), ``total`` and ``square`` (K, GRID * GRID); int64."""

    count: Integers
    total: Integers
    square: Integers

    @classmethod
    def of(cls, items: Sequence[Sequence[Cell]]) -> MapSums:
        """Add up the cells of each item."""
        sums = stacked(items, MAPS)
        count = sums["map_count"][:, None]
        total, square = (sums[name].reshape(len(items), _CELLS) for name in ("map_total", "map_square"))
        return cls(count, total, square)

    def _parts(self) -> tuple[Integers, ...]:
        return self.count, self.total, self.square

    def take(self, rows: Sequence[int]) -> MapSums:
        """Return some items."""
        return MapSums(*(part[list(rows)] for part in self._parts()))

    def together(self, rows: Sequence[int] | None = None) -> MapSums:
        """Return the sum of some items, all by default, as one item."""
        parts = self._parts() if rows is None else self.take(rows)._parts()
        return MapSums(*(part.sum(0, keepdims=True) for part in parts))

    def others(self) -> MapSums:
        """Return for each item the sum of all others."""
        return MapSums(*(part.sum(0, keepdims=True) - part for part in self._parts()))

    @property
    def mean(self) -> Floats:
        """Mean densities (K, GRID * GRID); NaN of nothing."""
        return floating(self.total, MAP_BITS) / np.where(self.count, self.count, np.nan)

    @property
    def around(self) -> Floats:
        """Sums of squares around the mean (K, GRID * GRID)."""
        return np.maximum(0.0, floating(self.square, SQUARE_BITS) - self.count * self.mean**2)


def cell_d(own: MapSums, other: MapSums) -> Floats:
    """Return the standardised difference of each cell (K, GRID * GRID); NaN where a side has fewer than two maps."""
    freedom = np.where((own.count > 1) & (other.count > 1), own.count + other.count - 2, np.nan)
    return (own.mean - other.mean) / (np.sqrt((own.around + other.around) / freedom) + FUDGE)


def elsewhere(own: MapSums, other: MapSums) -> Floats:
    """Return the share (K,) of the mass that the two mean maps do not have in the same place (total variation)."""
    return np.asarray(np.abs(own.mean - other.mean).sum(1) / (2 * _CELLS))


def screened_p(own: MapSums, other: MapSums) -> Floats:
    """Return a rough p (K,) of the largest difference: normal tails, times the number of cells.

    It only spares :func:`permutation_p` for what cannot be found anyway.
    """
    scale = np.sqrt(1 / np.where(own.count > 1, own.count, np.nan) + 1 / np.where(other.count > 1, other.count, np.nan))
    largest = np.nan_to_num(np.abs(cell_d(own, other) / scale).max(1), nan=0.0)
    return np.array([min(1.0, _CELLS * math.erfc(each / math.sqrt(2))) for each in largest.tolist()])


def sample_d(own: Floats, other: Floats) -> Floats:
    """Return :func:`cell_d` (GRID * GRID,) of maps (T, GRID * GRID) themselves."""
    around = ((own - own.mean(0)) ** 2).sum(0) + ((other - other.mean(0)) ** 2).sum(0)
    return np.asarray((own.mean(0) - other.mean(0)) / (np.sqrt(around / (len(own) + len(other) - 2)) + FUDGE))


def permutation_p(own: Floats, other: Floats, seed: int, shrink: float = 1.0) -> float:
    """Return p of the largest absolute :func:`sample_d`, were it by chance who is in which set (a max-T test).

    Where hardly any permutation reaches the observed value, the tail is a Gumbel distribution's with the permutations'
    mean and deviation (as for small p in Winkler et al., NeuroImage 2016): its tail is heavier than that of the largest
    of many normal numbers, so p is rather too large than too small.

    Args:
        own: maps (T1, GRID * GRID).
        other: maps (T2, GRID * GRID).
        seed: of the permutations.
        shrink: by which the observed value is multiplied: sqrt(clusters / rows) where rows depend on each other.
    """
    observed = float(np.abs(sample_d(own, other)).max()) * shrink
    maps = np.concatenate([own, other])
    total, n, rest = maps.sum(0), len(own), len(other)
    square = (maps**2).sum(0)
    rng = np.random.default_rng(seed)
    chosen = np.zeros((_PERMUTATIONS, len(maps)))
    chosen[:, :n] = 1
    sums = rng.permuted(chosen, axis=1) @ maps
    around = np.maximum(0.0, square - sums**2 / n - (total - sums) ** 2 / rest)
    differences = sums / n - (total - sums) / rest
    chance = np.abs(differences / (np.sqrt(around / (n + rest - 2)) + FUDGE)).max(1)
    beyond = int((chance >= observed).sum())
    if beyond >= _COUNTED:
        return (beyond + 1) / (_PERMUTATIONS + 1)
    scale = max(float(chance.std()), 1e-12) * math.sqrt(6) / math.pi
    place = (observed - (float(chance.mean()) - np.euler_gamma * scale)) / scale
    return min(-math.expm1(-math.exp(-place)), (_COUNTED + 1) / (_PERMUTATIONS + 1))


def ninths() -> tuple[list[str], Floats]:
    """Return the ninths of the picture in words, and which cells they hold (9, GRID * GRID)."""
    third = ((np.arange(GRID) + 0.5) * 3 // GRID).astype(np.int64)
    names, cells = [], []
    for row, upright in enumerate(("top", "", "bottom")):
        for column, across in enumerate(("left", "", "right")):
            words = " ".join(filter(None, (upright, across)))
            names.append(f"at the {words}" if words else "in the centre")
            cells.append(((third == row)[:, None] & (third == column)).ravel())
    return names, np.array(cells, np.float64)


def place(own: MapSums, other: MapSums) -> tuple[str, Floats, float, float]:
    """Return the ninth of the picture in which the shares of the mass differ most, of one item and its others.

    Returns:
        Its name, its cells (GRID * GRID,) as 0 and 1, the item's share there, and the others'.
    """
    names, cells = ninths()
    shares, other_shares = cells @ own.mean[0] / _CELLS, cells @ other.mean[0] / _CELLS
    most = int(np.argmax(np.abs(shares - other_shares)))
    return names[most], cells[most], float(shares[most]), float(other_shares[most])
