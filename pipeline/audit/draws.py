"""The bootstrap's sums: of large cells per resample, of small ones as the rows themselves until somebody asks.

Two hundred resamples of each measure take more room than some hundred rows, and most cells of a lake with many classes
and groups are smaller than that. Which form a cell has follows from its number of rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import Integers
from pipeline.audit.keys import Keys, poisson_weights

#: Rows that a cell keeps at most.
KEPT = 256
#: Rows whose weighted sums stay below 2^53: a value has at most 30 bits, a weight 4.
_EXACT_ROWS = 1 << 18
#: Rows that are drawn at a time.
_TOGETHER = 8192
_UNDEFINED = np.iinfo(np.int32).min

Values = npt.NDArray[np.int32]
Name = TypeVar("Name")


def narrow(values: Integers, defined: npt.NDArray[np.bool_]) -> Values:
    """Return fixed-point values (T, M) of at most 30 bits as int32, with a mark where they are not defined."""
    return np.where(defined, values, _UNDEFINED).astype(np.int32)


def draw(weights: npt.NDArray[np.uint8], values: Values) -> tuple[Integers, Integers]:
    """Return how often each measure was drawn, and the sum of what was drawn, both (B, M) int64.

    Args:
        weights: (T, B).
        values: (T, M), as :func:`narrow` returns them.
    """
    measures = values.shape[1]
    total: Integers = np.zeros((weights.shape[1], 2 * measures), np.int64)
    defined = values != _UNDEFINED
    for at in range(0, len(values), _EXACT_ROWS):
        part = slice(at, at + _EXACT_ROWS)
        numbers = np.concatenate([defined[part], np.where(defined[part], values[part], 0)], 1).astype(np.float64)
        # Integers below 2^53 throughout, so these products are exact in floating point, and BLAS is fast.
        total += (weights[part].T.astype(np.float64) @ numbers).astype(np.int64)
    return total[:, :measures], total[:, measures:]


class Waiting(Generic[Name]):
    """Rows that wait to be drawn, by the name of their cell."""

    def __init__(self, resamples: int) -> None:
        self._resamples = resamples
        self._rows: dict[Name, list[tuple[Keys, Values]]] = {}
        self._count: dict[Name, int] = {}

    def __contains__(self, name: Name) -> bool:
        return name in self._rows

    def count(self, name: Name) -> int:
        """Rows of a cell."""
        return self._count.get(name, 0)

    def add(self, name: Name, keys: Keys, values: Values) -> None:
        """Add rows (T,), (T, M) of a cell."""
        self._rows.setdefault(name, []).append((keys, values))
        self._count[name] = self.count(name) + len(keys)

    def rows(self, name: Name) -> tuple[Keys, Values]:
        """Return a cell's rows."""
        keys, values = zip(*self._rows[name], strict=True)
        return np.concatenate(keys), np.concatenate(values)

    def names(self) -> list[Name]:
        """Cells that have rows."""
        return list(self._rows)

    def drawn(self, names: list[Name]) -> Iterator[tuple[Name, Integers, Integers]]:
        """Yield (cell, how often each measure was drawn, the sum of what was drawn), and forget the rows."""
        while names:
            together, count = 0, 0
            while together < len(names) and (not together or count + self.count(names[together]) <= _TOGETHER):
                count += self.count(names[together])
                together += 1
            now, names = names[:together], names[together:]
            rows = [self.rows(name) for name in now]
            weights = poisson_weights(np.concatenate([keys for keys, _ in rows]), self._resamples)
            start = 0
            for name, (keys, values) in zip(now, rows, strict=True):
                yield name, *draw(weights[start : start + len(keys)], values)
                start += len(keys)
                del self._rows[name], self._count[name]
