"""The bootstrap's sums: how often rows were drawn, and the sum of what was drawn, in each of B resamples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import Integers

#: Rows whose weighted sums stay below 2^53: a value has at most 30 bits, a weight 4.
_EXACT_ROWS = 1 << 18
#: Rows that are drawn at a time.
_TOGETHER = 8192
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
    shape = weights.shape[1], values.shape[1]
    drawn, total = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for at in range(0, len(values), _EXACT_ROWS):
        _draw(weights[at : at + _EXACT_ROWS], values[at : at + _EXACT_ROWS], drawn, total)
    return drawn, total


def _draw(weights: Weights, values: Values, drawn: Integers, total: Integers) -> None:
    """Add what is drawn of at most ``_EXACT_ROWS`` rows."""
    defined = values != UNDEFINED
    some = np.flatnonzero(defined.any(0))
    if not len(some):
        return
    mine = defined[:, some]
    # Most measures are defined together; their counts are the same.
    alike = bool((mine == mine[:, :1]).all())
    counted = mine[:, :1] if alike else mine
    numbers = np.concatenate([counted, np.where(mine, values[:, some], 0)], 1).astype(np.float64)
    # Integers below 2^53 throughout, so these products are exact in floating point, and BLAS is fast.
    product = (weights.T.astype(np.float64) @ numbers).astype(np.int64)
    drawn[:, some] += product[:, : counted.shape[1]]
    total[:, some] += product[:, counted.shape[1] :]


def drawn_by_cell(
    weights: Callable[[int, int], Weights], values: Values, starts: Sequence[int], stops: Sequence[int]
) -> Iterator[tuple[Integers, Integers]]:
    """Yield what :func:`draw` returns of each cell's rows, which lie cell by cell.

    Args:
        weights: returns those (T, B) of the rows from one place to another.
        values: (T, M).
        starts: where each cell begins.
        stops: where it ends, and the next begins.
    """
    first = 0
    while first < len(starts):
        last = first + 1
        while last < len(starts) and stops[last] - starts[first] <= _TOGETHER:
            last += 1
        begin, end = starts[first], stops[last - 1]
        if end - begin <= _TOGETHER:
            together = weights(begin, end)
            for start, stop in zip(starts[first:last], stops[first:last], strict=True):
                yield draw(together[start - begin : stop - begin], values[start:stop])
        else:  # one large cell
            pieces = [(at, min(at + _TOGETHER, end)) for at in range(begin, end, _TOGETHER)]
            parts = [draw(weights(*piece), values[slice(*piece)]) for piece in pieces]
            yield sum(drawn for drawn, _ in parts), sum(total for _, total in parts)  # type: ignore[misc]
        first = last
