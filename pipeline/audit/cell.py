"""One cell of an audit's sums: one series, class, attribute, value and outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, SQUARE_BITS, Integers, check, floating
from schemas.audit import BINS, GRID, Measure

Floats = npt.NDArray[np.float64]

#: Rows whose squares, of 40 bits each, cannot fill 62 bits.
_MANY = 1 << 22


class Key(NamedTuple):
    """What a cell is about.

    ``series`` counts (method, layer) pairs; ``attribute`` and ``value`` name a group, or are empty for all maps;
    ``outcome`` is an index into :data:`schemas.audit.OUTCOMES`.
    """

    series: int
    target_class: int
    attribute: str
    value: str
    outcome: int


@dataclass
class Cell:
    """Sums of one cell, all integers (see :mod:`pipeline.audit.fixed`).

    With M measures and B resamples: ``rows`` (), ``flags`` (3,), ``count``, ``total``, ``square`` (M,), ``histogram``
    (M, BINS), ``map_count`` (), ``map_total`` and ``map_square`` (GRID, GRID), ``drawn`` and ``drawn_total`` (B, M).
    """

    sums: dict[str, Integers] = field(default_factory=dict)

    def add(self, name: str, value: Integers) -> None:
        """Add ``value`` to the sums called ``name``."""
        if name in self.sums:
            np.add(self.sums[name], value, out=self.sums[name])
        else:
            self.sums[name] = np.array(value, np.int64)

    def merge(self, other: Cell) -> None:
        """Add another cell's sums.

        Raises:
            OverflowError: they leave 64 bits.
        """
        for name, value in other.sums.items():
            self.add(name, value)
        # Of fewer rows no sum can come near the end of 64 bits; looking at all would take longer than adding.
        if "rows" not in self.sums or self.rows >= _MANY:
            for value in self.sums.values():
                check(value)

    # What the sums say -----------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Maps or images, the flagged ones too."""
        return int(self.sums["rows"])

    def count(self, measure: int) -> int:
        """Rows for which a measure is defined."""
        return int(self.sums["count"][measure])

    def mean(self, measure: int) -> float:
        """Mean of a measure; NaN of nothing."""
        n = self.count(measure)
        return float(floating(self.sums["total"][measure], SCALAR_BITS)) / n if n else float("nan")

    def variance(self, measure: int) -> float:
        """Unbiased variance of a measure; NaN below two rows."""
        n = self.count(measure)
        if n < 2:
            return float("nan")
        square = float(floating(self.sums["square"][measure], SCALAR_BITS))
        return max(0.0, (square - n * self.mean(measure) ** 2) / (n - 1))

    def resampled_means(self, measure: int) -> Floats:
        """Means (B,) of a measure over the bootstrap's resamples; NaN where a resample is empty."""
        drawn = self.sums["drawn"][:, measure].astype(np.float64)
        total = floating(self.sums["drawn_total"][:, measure], SCALAR_BITS)
        means: Floats = np.divide(total, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
        return means

    def quantile(self, measure: int, share: float, spec: Measure) -> float:
        """Quantile of a measure from its histogram, evenly spread over each bin; NaN of nothing."""
        bins = self.sums["histogram"][measure]
        total = int(bins.sum())
        if not total:
            return float("nan")
        below = np.concatenate([[0], np.cumsum(bins)])
        place = int(np.clip(np.searchsorted(below, share * total, side="right") - 1, 0, BINS - 1))
        inside = (share * total - below[place]) / max(int(bins[place]), 1)
        return spec.low + (place + min(1.0, float(inside))) * (spec.high - spec.low) / BINS

    @property
    def maps(self) -> int:
        """Maps that have mass."""
        return int(self.sums.get("map_count", np.int64(0)))

    def mean_map(self) -> Floats:
        """Mean density (GRID, GRID), 1 throughout for uniform maps; NaN of nothing."""
        if not self.maps:
            return np.full((GRID, GRID), np.nan)
        mean: Floats = floating(self.sums["map_total"], MAP_BITS) / self.maps
        return mean

    def variance_map(self) -> Floats:
        """Unbiased variance (GRID, GRID) of the density over maps; NaN below two."""
        n = self.maps
        if n < 2:
            return np.full((GRID, GRID), np.nan)
        square = floating(self.sums["map_square"], SQUARE_BITS)
        return np.maximum(0.0, (square - n * self.mean_map() ** 2) / (n - 1))
