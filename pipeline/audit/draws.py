"""The bootstrap's sums: how often rows were drawn, and the sum of what was drawn, in each of B resamples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import Integers

#: Rows that are drawn at a time. Their weighted sums stay below 2^53: a value has at most 30 bits, a weight 4.
_TOGETHER = 4096
UNDEFINED = np.iinfo(np.int32).min

Values = npt.NDArray[np.int32]
Weights = npt.NDArray[np.uint8]


def narrow(values: Integers, defined: npt.NDArray[np.bool_]) -> Values:
    """Return fixed-point values (T, M) of at most 31 bits as int32, with a mark where they are not defined."""
    return np.where(defined, values, UNDEFINED).astype(np.int32)


def draw(weights: Weights, values: Values) -> tuple[Integers, Integers]:
    """Return how often each measure was drawn, and the sum of what was drawn, both (B, M) int64.

    Args:
        weights: (T, B).
        values: (T, M), as :func:`narrow` returns them.
    """
    drawn, total = draw_cells(lambda start, stop: weights[start:stop], values, [0], [len(values)], weights.shape[1])
    return drawn[0], total[0]


def draw_cells(
    weights: Callable[[int, int], Weights],
    values: Values,
    starts: Sequence[int],
    stops: Sequence[int],
    resamples: int,
) -> tuple[Integers, Integers]:
    """Return what :func:`draw` returns of each of K cells, both (K, B, M) int64; their rows lie cell by cell.

    Args:
        weights: returns those (T, B) of the rows from one place to another.
        values: (T, M).
        starts: where each cell begins.
        stops: where it ends, and the next begins.
        resamples: B.
    """
    shape = len(starts), resamples, values.shape[1]
    drawn, total = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    first = 0
    while first < len(starts):
        last = first + 1
        while last < len(starts) and stops[last] - starts[first] <= _TOGETHER:
            last += 1
        cells = slice(first, last)
        for at in range(starts[first], stops[last - 1], _TOGETHER):  # one large cell may take several turns
            end = min(at + _TOGETHER, stops[last - 1])
            bounds = [
                (max(start, at) - at, min(stop, end) - at)
                for start, stop in zip(starts[cells], stops[cells], strict=True)
            ]
            _draw(weights(at, end), values[at:end], bounds, drawn[cells], total[cells])
        first = last
    return drawn, total


def _draw(weights: Weights, values: Values, bounds: list[tuple[int, int]], drawn: Integers, total: Integers) -> None:
    """Add what is drawn of cells (K, B, M), whose rows lie between bounds."""
    defined = values != UNDEFINED
    some = np.flatnonzero(defined.any(0))
    mine = defined[:, some]
    # Most measures are defined together; their counts are the same.
    counted = mine[:, :1] if (mine == mine[:, :1]).all() else mine
    numbers = np.concatenate([counted, np.where(mine, values[:, some], 0)], 1).astype(np.float64)
    # Integers below 2^53 throughout, so these products are exact in floating point, and BLAS is fast.
    factors = weights.astype(np.float64)
    product = np.empty((len(bounds), weights.shape[1], numbers.shape[1]))
    for cell, (start, stop) in enumerate(bounds):
        np.matmul(factors[start:stop].T, numbers[start:stop], out=product[cell])
    whole = product.astype(np.int64)
    drawn[:, :, some] += whole[:, :, : counted.shape[1]]
    total[:, :, some] += whole[:, :, counted.shape[1] :]
