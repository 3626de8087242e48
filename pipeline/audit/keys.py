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
        state: Keys = np.asarray(keys + (np.asarray(number).astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        for shift, factor in ((30, _MIX1), (27, _MIX2)):
            state = np.asarray(state ^ (state >> np.uint64(shift)))
            state *= factor
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
_UNSURE = 255


def _weights_by_head() -> npt.NDArray[np.uint8]:
    """Weight by the first 16 of 64 bits; ``_UNSURE`` where it takes all of them."""
    heads = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    found = np.searchsorted(_THRESHOLDS, heads, side="right").astype(np.uint8)
    found[(_THRESHOLDS >> np.uint64(48)).astype(np.int64)] = _UNSURE
    return found


_BY_HEAD = _weights_by_head()
#: Numbers that are mixed at a time: they stay in the processor's cache.
_AT_ONCE = 1 << 16


def poisson_weights(keys: Keys, resamples: int) -> npt.NDArray[np.uint8]:
    """Return the weights (len(keys), resamples) of a Poisson bootstrap: how often each row is drawn, mean 1.

    Rows of one key (one patient, one video) get the same weights, so they are drawn together.
    """
    weights = np.empty((len(keys), resamples), np.uint8)
    rows = max(1, _AT_ONCE // max(1, resamples))
    for start in range(0, len(keys), rows):
        draws = mixed(keys[start : start + rows, None], np.arange(resamples)[None, :])
        part = _BY_HEAD[(draws >> np.uint64(48)).astype(np.intp)]
        unsure = part == _UNSURE
        part[unsure] = np.searchsorted(_THRESHOLDS, draws[unsure], side="right")
        weights[start : start + rows] = part
    return weights
