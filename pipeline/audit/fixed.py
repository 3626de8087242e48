"""Sums that come out the same, to the bit, in any order: integers in place of floating point.

A number is rounded to a multiple of 2^-k and summed as an integer. Integer addition is associative, so it does not
matter which worker adds what, and when. Rounding each number costs at most 2^-(k + 1); the sum itself is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Fractional bits of a measure and of its square, and the largest absolute value that is kept.
SCALAR_BITS = 20
SCALAR_LIMIT = 1024.0
#: Fractional bits of a cell of a map whose mean is 1 (at most GRID^2), and of its square. The lake's own rounding
#: (float16) is 30 times as coarse.
MAP_BITS = 16
SQUARE_BITS = 18

_LARGEST = np.int64(1) << 62

Integers = npt.NDArray[np.int64]


def fixed(values: npt.NDArray[np.floating[Any]], bits: int) -> Integers:
    """Return ``values`` in units of 2^-bits, int64, rounded to even; what is not finite becomes 0."""
    clean = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
    return np.rint(clean * float(1 << bits)).astype(np.int64)


def squares(values: Integers, bits: int, kept: int) -> Integers:
    """Return the squares of numbers with ``bits`` fractional bits, with ``kept`` of them, rounded half up.

    From integers, so that whoever has the number has its square as well.
    """
    away = 2 * bits - kept
    return (values * values + (1 << (away - 1))) >> away


def floating(sums: Integers, bits: int) -> npt.NDArray[np.float64]:
    """Return integer sums as numbers again."""
    return sums.astype(np.float64) / float(1 << bits)


def check(sums: Integers) -> None:
    """Refuse sums that are about to leave int64.

    Raises:
        OverflowError: more was added than the format can hold (some 10^8 maps of one class).
    """
    if sums.size and max(int(sums.max()), -int(sums.min())) >= _LARGEST:
        raise OverflowError("the audit's sums leave 64 bits; split the lake and audit its parts")
