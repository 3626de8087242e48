"""Fixed-point sums."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, check, fixed, floating


def test_numbers_come_back_within_half_a_step() -> None:
    values = np.random.default_rng(0).normal(0, 30, 1000)
    assert np.abs(floating(fixed(values, SCALAR_BITS), SCALAR_BITS) - values).max() <= 2.0 ** -(SCALAR_BITS + 1)


def test_sums_are_the_same_in_any_order_where_floats_are_not() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 196, 5000)
    orders = [rng.permutation(len(values)) for _ in range(20)]
    assert len({float(np.cumsum(values[order])[-1]) for order in orders}) > 1
    assert len({int(np.cumsum(fixed(values, MAP_BITS)[order])[-1]) for order in orders}) == 1


def test_what_is_not_finite_counts_nothing() -> None:
    assert fixed(np.array([np.nan, np.inf, -np.inf, 1.0]), 4).tolist() == [0, 0, 0, 16]


def test_single_precision_is_rounded_as_double() -> None:
    values = np.array([0.1, 1 / 3], np.float32)
    assert np.array_equal(fixed(values, 40), fixed(values.astype(np.float64), 40))


def test_sums_near_the_end_of_64_bits_are_refused() -> None:
    check(np.array([2**61], np.int64))
    check(np.array([], np.int64))
    with pytest.raises(OverflowError, match="split the lake"):
        check(np.array([-(2**62)], np.int64))
