"""Rows on their way into cells: which cell each belongs to, and the integers that are added there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.audit.draws import narrow
from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, SCALAR_LIMIT, SQUARE_BITS, Integers, fixed
from pipeline.audit.keys import Keys, poisson_weights
from schemas.audit import BINS, OUTCOMES, Measure

Floats = npt.NDArray[np.float64]


@dataclass
class Block:
    """Rows to be added: T maps, or images, of one series.

    Attributes:
        series: index of the (method, layer) pair.
        target_class: (T,) int64.
        outcome: (T,) int64, index into ``OUTCOMES``.
        groups: attribute -> (T,) values as text; None where a row has none.
        values: (T, M) float64, a column per measure; NaN where it is not defined.
        flags: (T, 3) bool: all zero, constant, not finite. Such maps count as flagged only.
        maps: (T, GRID, GRID) float64 densities of mean 1 (NaN: no mass); None for rows without maps.
        weights: (T, B) bootstrap weights; None where there is no bootstrap, or ``keys`` tell them.
        keys: (T,) uint64 hashes of what rows depend on, from which the weights follow; better than ``weights``, since
            small cells then keep their rows in place of B sums.
    """

    series: int
    target_class: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int64]
    groups: dict[str, npt.NDArray[np.object_]]
    values: Floats
    flags: npt.NDArray[np.bool_]
    maps: Floats | None = None
    weights: npt.NDArray[np.uint8] | None = None
    keys: Keys | None = None


def partition(
    block: Block, values: npt.NDArray[np.object_] | None
) -> tuple[list[tuple[int, str, int]], npt.NDArray[np.intp], npt.NDArray[np.intp]] | None:
    """Return what cells the rows belong to: (class, value, outcome) of each, the rows cell by cell, where each begins.

    Rows without a value are in no cell; None where none is left.
    """
    if values is None:
        names, codes = np.array([""]), np.zeros(len(block.target_class), np.int64)
        rows = np.arange(len(codes))
    else:
        rows = np.flatnonzero([value is not None for value in values])
        if not len(rows):
            return None
        names, codes = np.unique(values[rows].astype(np.str_), return_inverse=True)
    combined = (block.target_class[rows] * len(names) + codes) * len(OUTCOMES) + block.outcome[rows]
    order = np.argsort(combined, kind="stable")
    sorted_codes = combined[order]
    starts = np.flatnonzero(np.append(True, sorted_codes[1:] != sorted_codes[:-1]))
    found = []
    for code in sorted_codes[starts].tolist():
        rest, outcome = divmod(code, len(OUTCOMES))
        target, name = divmod(rest, len(names))
        found.append((target, str(names[name]), outcome))
    return found, rows[order], starts


class Numbers:
    """The integers behind a block's sums."""

    def __init__(self, block: Block, measures: Sequence[Measure], resamples: int) -> None:
        defined = np.isfinite(block.values)
        values = np.clip(np.where(defined, block.values, np.nan), -SCALAR_LIMIT, SCALAR_LIMIT)
        low = np.array([measure.low for measure in measures])
        width = np.array([(measure.high - measure.low) / BINS for measure in measures])
        place = np.nan_to_num((values - low) / width, nan=0.0)
        bins = np.clip(np.floor(place), 0, BINS - 1).astype(np.int64)
        self.defined = defined
        #: Place of each value in a table of (measure, bin).
        self.bins = bins + np.arange(len(measures)) * BINS
        self.values = fixed(values, SCALAR_BITS)
        self.columns: dict[str, Integers] = {
            "flags": block.flags.astype(np.int64),
            "count": defined.astype(np.int64),
            "total": self.values,
            "square": fixed(values**2, SCALAR_BITS),
        }
        if block.maps is not None:
            self.columns["map_count"] = np.isfinite(block.maps[:, 0, 0]).astype(np.int64)
            self.columns["map_total"] = fixed(block.maps, MAP_BITS)
            self.columns["map_square"] = fixed(block.maps**2, SQUARE_BITS)
        self.drawn = block.weights is not None or block.keys is not None
        self.keys = block.keys
        self._weights = block.weights
        self._resamples = resamples

    @property
    def weights(self) -> npt.NDArray[np.uint8]:
        """Bootstrap weights (T, B) of the rows, made when they are asked for."""
        if self._weights is None:
            assert self.keys is not None
            self._weights = poisson_weights(self.keys, self._resamples)
        return self._weights

    def narrow(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """Return the values of some rows as :mod:`pipeline.audit.draws` keeps them."""
        return narrow(self.values[rows], self.defined[rows])

    def sums(
        self, order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]
    ) -> Iterator[tuple[str, Iterable[Integers]]]:
        """Yield (name, sums by cell) over rows that lie cell by cell in ``order``, each from its start to its stop."""
        yield "rows", [np.asarray(length) for length in stops - starts]
        for name, column in self.columns.items():
            yield name, np.add.reduceat(column[order], starts, axis=0)
        yield "histogram", self._histograms(order, starts, stops)

    def _histograms(
        self, order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp], stops: npt.NDArray[np.intp]
    ) -> Integers:
        measures = self.bins.shape[1]
        size = measures * BINS
        cell = np.repeat(np.arange(len(starts)), stops - starts)
        flat = (self.bins[order] + cell[:, None] * size)[self.defined[order]]
        return np.bincount(flat, minlength=len(starts) * size).reshape(-1, measures, BINS)
