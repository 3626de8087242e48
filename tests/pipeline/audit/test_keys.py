"""Hashes of the sample and of the bootstrap."""

from __future__ import annotations

import math

import numpy as np

from pipeline.audit.keys import keys_of, mixed, poisson_weights

MASK = 2**64 - 1


def split_mix(state: int) -> int:
    """SplitMix64's output function, as published."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def test_keys_are_those_of_the_release() -> None:
    # Numbers of an audit must not change with a release, so these stand.
    assert keys_of(["a", "b"], 0).tolist() == keys_of(["b", "a"], 0).tolist()[::-1]
    assert keys_of(["a"], 0) != keys_of(["a"], 1)
    assert keys_of([], 0).shape == (0,)
    assert keys_of(["ä", ""], -3).dtype == np.uint64


def test_mixing_is_split_mix() -> None:
    # The first outputs of SplitMix64 for the seed 1234567, as the reference implementation prints them.
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert mixed(np.full(3, 1234567, np.uint64), np.arange(3)).tolist() == first
    key, golden = 2**63 + 5, 0x9E3779B97F4A7C15
    assert mixed(np.array([key], np.uint64), 7).tolist() == [split_mix((key + 8 * golden) & MASK)]


def test_weights_are_poisson() -> None:
    weights = poisson_weights(keys_of([str(i) for i in range(2000)], 0), 200)
    assert weights.shape == (2000, 200) and weights.dtype == np.uint8
    share = np.bincount(weights.ravel(), minlength=8) / weights.size
    for events in range(6):
        expected = math.exp(-1) / math.factorial(events)
        assert abs(share[events] - expected) < 5 * math.sqrt(expected / weights.size)
    # Neither rows nor resamples hang together.
    assert abs(weights.sum(0) / 2000 - 1).max() < 5 / math.sqrt(2000)
    assert abs(np.corrcoef(weights[:, :20].T.astype(float)) - np.eye(20)).max() < 5 / math.sqrt(2000)


def test_rows_of_a_key_are_drawn_together_wherever_they_stand() -> None:
    keys = keys_of(["x", "y", "x", "z"], 3)
    weights = poisson_weights(keys, 50)
    assert np.array_equal(weights[0], weights[2]) and not np.array_equal(weights[0], weights[1])
    assert np.array_equal(poisson_weights(keys[::-1].copy(), 50), weights[::-1])
    # More resamples begin with the same ones.
    assert np.array_equal(poisson_weights(keys, 80)[:, :50], weights)
