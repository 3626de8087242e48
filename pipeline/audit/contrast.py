"""One against others, from sums: classes against the other classes, a group against the other groups of its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.audit.cell import Cell
from pipeline.audit.fixed import SCALAR_BITS, Integers, floating
from pipeline.audit.intervals import benjamini_hochberg, bootstrap_p, cohens_d, effective_number, percentile_interval
from pipeline.audit.reading import CellReader, stacked
from pipeline.audit.table import COUNTS, DRAWN

#: Items whose resamples are added up at a time.
_DRAWN_ITEMS = 32

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

#: Standardised differences beyond this are cut: hardly anything varies on either side.
MOST_D = 10.0
#: Enrichments below this are next to nothing; a ratio to them would say how little, not how much.
LEAST_OTHER = 0.01
#: Effective clusters below which the bootstrap's error is not to be trusted, and nothing is tested.
LEAST_CLUSTERS = 10


class Groups(Mapping[tuple[str, int], dict[str, list[Cell]]]):
    """The cells of a series by attribute and class: value -> one cell per outcome. Class by class, as they lie."""

    def __init__(self, cells: CellReader, series: int) -> None:
        self._cells, self._series, self._index = cells, series, cells.index(series)
        self._spans = {(name, target): (start, stop) for name, target, start, stop in self._index.spans()}

    def __getitem__(self, group: tuple[str, int]) -> dict[str, list[Cell]]:
        start, stop = self._spans[group]
        found: dict[str, list[Cell]] = {}
        for place, key in zip(range(start, stop), self._index[start:stop], strict=True):
            found.setdefault(key.value, []).append(self._cells.at(self._series, (place,)))
        return found

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)


def by_group(cells: CellReader, series: int) -> Groups:
    """Return the cells of a series: (attribute, class) -> value -> one cell per outcome, everything in order."""
    return Groups(cells, series)


@dataclass(frozen=True)
class Sums:
    """Exact sums of K items over M measures: ``count``, ``total``, ``square`` (K, M) and, of B resamples, ``drawn`` and
    ``drawn_total`` (K, M, B); int64. B is 0 where there is no bootstrap."""

    count: Integers
    total: Integers
    square: Integers
    drawn: Integers
    drawn_total: Integers

    @classmethod
    def of(cls, items: Sequence[Sequence[Cell]], measures: Sequence[int]) -> Sums:
        """Add up the cells of each item, for some measures."""
        columns = list(measures)
        plain = stacked(items, COUNTS)
        count, total, square = (plain[name][:, columns] for name in ("count", "total", "square"))
        if DRAWN[0] not in items[0][0].sums:
            drawn = np.zeros((len(items), len(columns), 0), np.int64)
            return cls(count, total, square, drawn, drawn)
        # Few at a time: of all measures they are large.
        parts = [stacked(items[at : at + _DRAWN_ITEMS], DRAWN) for at in range(0, len(items), _DRAWN_ITEMS)]
        drawn, drawn_total = (
            np.concatenate([part[name][:, :, columns].transpose(0, 2, 1) for part in parts]) for name in DRAWN
        )
        return cls(count, total, square, drawn, drawn_total)

    def _parts(self) -> tuple[Integers, ...]:
        return self.count, self.total, self.square, self.drawn, self.drawn_total

    def take(self, rows: Sequence[int]) -> Sums:
        """Return some items."""
        return Sums(*(part[list(rows)] for part in self._parts()))

    def together(self, rows: Sequence[int] | None = None) -> Sums:
        """Return the sum of some items, all by default, as one item."""
        parts = self._parts() if rows is None else self.take(rows)._parts()
        return Sums(*(part.sum(0, keepdims=True) for part in parts))

    def minus(self, other: Sums) -> Sums:
        """Return these without others that they hold."""
        return Sums(*(part - less for part, less in zip(self._parts(), other._parts(), strict=True)))

    def others(self) -> Sums:
        """Return for each item the sum of all others."""
        return self.together().minus(self)

    @property
    def mean(self) -> Floats:
        """Means (K, M); NaN of nothing."""
        return _ratio(floating(self.total, SCALAR_BITS), self.count)

    @property
    def variance(self) -> Floats:
        """Unbiased variances (K, M); NaN below two rows."""
        mean = self.mean
        around = floating(self.square, SCALAR_BITS) - self.count * mean**2
        return np.maximum(0.0, _ratio(around, np.where(self.count > 1, self.count - 1, 0)))

    @property
    def resampled(self) -> Floats:
        """Means over the resamples (K, M, B); NaN where nothing was drawn."""
        return _ratio(floating(self.drawn_total, SCALAR_BITS), self.drawn)

    @cached_property
    def clusters(self) -> Floats:
        """Effective number of clusters (K, M); the rows where there is no bootstrap."""
        if not self.drawn.shape[2]:
            return self.count.astype(np.float64)
        return np.asarray(effective_number(self.count, self.drawn))


class Contrast:
    """K items, each with what it is compared with, over M measures.

    Attributes:
        n: (K, M) rows of the item; ``other_n`` of the others.
        mean: (K, M); ``other_mean`` of the others.
        difference: (K, M) mean - other mean.
        d: (K, M) difference over the pooled standard deviation, cut at ``MOST_D``.
        ratio: (K, M) mean over other mean; an other mean below ``LEAST_OTHER`` counts as that.
    """

    def __init__(self, own: Sums, other: Sums) -> None:
        self.own, self.other = own, other
        self.n, self.other_n = own.count, np.broadcast_to(other.count, own.count.shape)
        self.mean, self.other_mean = own.mean, np.broadcast_to(other.mean, own.count.shape)
        self.difference = self.mean - self.other_mean
        d = cohens_d(self.mean, own.variance, self.n, self.other_mean, other.variance, self.other_n)
        self.d = np.clip(d, -MOST_D, MOST_D)
        self.ratio = _quotient(self.mean, self.other_mean)

    def p(self, least: int) -> Floats:
        """Return two-sided p (K, M) of each difference by the bootstrap, in which both sides get the same weights.

        NaN (not tested) where either side has fewer than ``least`` rows or ``LEAST_CLUSTERS`` effective clusters.
        """
        clusters = np.minimum(self.own.clusters, self.other.clusters)
        enough = (self.n >= least) & (self.other_n >= least) & (clusters >= LEAST_CLUSTERS)
        difference = self.own.resampled - self.other.resampled
        return np.where(enough, bootstrap_p(self.difference, difference, clusters - 1), np.nan)

    def difference_interval(self, item: int, measure: int) -> tuple[float, float]:
        """Return the 95% interval of one difference."""
        return percentile_interval(
            self._resampled(self.own, item, measure) - self._resampled(self.other, item, measure)
        )

    def ratio_interval(self, item: int, measure: int) -> tuple[float, float]:
        """Return the 95% interval of one ratio."""
        own, other = (self._resampled(sums, item, measure) for sums in (self.own, self.other))
        return percentile_interval(_quotient(own, other))

    @staticmethod
    def _resampled(sums: Sums, item: int, measure: int) -> Floats:
        place = item if len(sums.count) > 1 else 0
        drawn, total = sums.drawn[place, measure], sums.drawn_total[place, measure]
        return _ratio(floating(total, SCALAR_BITS), drawn)


class Family:
    """The tests of one kind, by Benjamini and Hochberg; NaNs are no tests.

    Attributes:
        threshold: the largest p that is found at the rate ``q``; below 0 where none is.
    """

    def __init__(self, p: Floats, q: float) -> None:
        tested = np.sort(p[~np.isnan(p)])
        self._p, self._q = tested, benjamini_hochberg(tested)
        found = tested[self._q < q]
        self.threshold = float(found[-1]) if len(found) else -1.0

    def q(self, p: float) -> float:
        """Return the rate at which a test of this p would be found among these; NaN where there are none."""
        if not len(self._p):
            return float("nan")
        return float(self._q[min(int(np.searchsorted(self._p, p)), len(self._q) - 1)])


def strength_of_d(d: float) -> float:
    """Return how strong a standardised difference is, [0, 1): 1/2 at one standard deviation."""
    return abs(d) / (1 + abs(d))


def strength_of_ratio(ratio: float) -> float:
    """Return how strong a ratio is, [0, 1): 1/2 for twice or half as much; 1 against nothing."""
    return 1 - min(ratio, 1 / ratio) if ratio > 0 else 1.0


def _quotient(own: Floats, other: Floats) -> Floats:
    return own / np.maximum(other, LEAST_OTHER)


def _ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """Divide; NaN by 0."""
    below = np.asarray(below, np.float64)
    return np.asarray(above, np.float64) / np.where(below == 0, np.nan, below)
