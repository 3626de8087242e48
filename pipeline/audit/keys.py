"""Hashes that decide what is sampled and how it is weighted: the same under any partition and after any restart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def keys_of(names: Iterable[str], seed: int) -> Keys:
    """Return a 64-bit hash per name (BLAKE2b), uint64."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def mixed(keys: Keys, number: npt.NDArray[Any] | int) -> Keys:
    """Return keys that depend on both, spread over all 64 bits (SplitMix64; Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state = keys + (np.asarray(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX1
        state = (state ^ (state >> np.uint64(27))) * _MIX2
        return np.asarray(state ^ (state >> np.uint64(31)))


def _poisson_thresholds() -> Keys:
    """Where a uniform 64-bit number passes from k to k + 1 events of a Poisson distribution of mean 1."""
    chance, total, found = np.exp(-1.0), 0.0, []
    for events in range(1, 13):
        total += chance
        found.append(int(min(total, 1 - 2**-53) * 2.0**64))
        chance /= events
    return np.array(found, np.uint64)


_THRESHOLDS = _poisson_thresholds()


def poisson_weights(keys: Keys, resamples: int) -> npt.NDArray[np.uint8]:
    """Return the weights (len(keys), resamples) of a Poisson bootstrap: how often each row is drawn, mean 1.

    Rows of one key (one patient, one video) get the same weights, so they are drawn together.
    """
    draws = mixed(keys[:, None], np.arange(resamples)[None, :])
    weights = np.zeros(draws.shape, np.uint8)
    for threshold in _THRESHOLDS:
        weights += draws >= threshold
    return weights
