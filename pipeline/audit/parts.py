"""Parts of which the maps are made: a non-negative factorisation of the sample (Lee and Seung, Nature 401, 1999).

Maps are mixtures (some evidence on the object, some on a mark in the corner), so parts fit them better than clusters,
which put each whole map into one bin.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.extras import extra
from schemas.audit import GRID

Floats = npt.NDArray[np.float64]

#: Most maps that parts are learnt from; they have no more than GRID^2 numbers each.
_LEARN = 20_000
_SWEEPS = 100
_ROWS = 16_384


@dataclass(frozen=True, eq=False)
class Parts:
    """What :func:`find_parts` found.

    Attributes:
        maps: (K, GRID, GRID) float64 densities of mean 1, the part with most of the sample's mass first.
        loadings: (n, K) float64, the share of each map of the sample that each part explains; rows sum to 1, or to 0
            where no part explains anything.
        learnt: maps that they were learnt from.
    """

    maps: Floats
    loadings: Floats
    learnt: int

    def load(self, maps: npt.NDArray[np.floating[Any]]) -> Floats:
        """Return the loadings (T, K) of maps (T, GRID, GRID) of mean 1; each map's depend on itself alone."""
        return _normalised(_weights(maps.reshape(len(maps), GRID * GRID), self.maps.reshape(-1, GRID * GRID)))


def sample_maps(sample: pa.Table) -> npt.NDArray[np.float32]:
    """Return the maps (n, GRID, GRID) float32 of a sample."""
    chunks = sample["map"].chunks
    flat = [np.asarray(chunk.flatten(), np.float32) for chunk in chunks]
    joined = np.concatenate(flat) if flat else np.empty(0, np.float32)
    return joined.reshape(len(sample), GRID, GRID)


def find_parts(sample: pa.Table, count: int, seed: int) -> Parts:
    """Learn ``count`` parts on half 0 of the sample, and load both halves onto them.

    The same sample gives the same parts, in the same order. Of many maps at most 20,000 teach the parts, each class by
    its smallest keys.

    Args:
        sample: with ``target_class``, ``half`` and ``map``, as :data:`pipeline.audit.sample.SAMPLE` orders it.
        count: of parts; fewer where half 0 has fewer maps, or some explain nothing.
        seed: of the factorisation's start.

    Raises:
        InputError: scikit-learn is not installed.
    """
    maps = sample_maps(sample).reshape(len(sample), GRID * GRID)
    chosen = _teachers(sample)
    parts = _factorised(maps[chosen].astype(np.float64), min(count, len(chosen), GRID * GRID), seed)
    loadings = _normalised(_weights(maps, parts))
    order = np.argsort(-loadings.sum(0), kind="stable")
    return Parts(parts[order].reshape(-1, GRID, GRID), loadings[:, order], len(chosen))


def _teachers(sample: pa.Table) -> npt.NDArray[np.int64]:
    """Rows of half 0, at most ``_LEARN``: the first of each class before the second of any."""
    rows = np.flatnonzero(sample["half"].to_numpy() == 0)
    target = sample["target_class"].to_numpy()[rows]
    order = np.argsort(target, kind="stable")
    starts = np.flatnonzero(np.diff(target[order], prepend=-1))
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return np.sort(rows[np.argsort(rank, kind="stable")[:_LEARN]])


def _factorised(maps: Floats, count: int, seed: int) -> Floats:
    """Return the parts (K, GRID^2), each of mean 1."""
    if count < 2:
        return np.empty((0, GRID * GRID))
    model = extra("sklearn.decomposition").NMF(
        count, init="nndsvda", solver="cd", random_state=seed, max_iter=200, tol=1e-4
    )
    with warnings.catch_warnings():
        # Parts that could still move a little are parts.
        warnings.simplefilter("ignore", extra("sklearn.exceptions").ConvergenceWarning)
        model.fit(maps)
    found = np.asarray(model.components_, np.float64)
    mass = found.mean(1)
    scaled: Floats = found[mass > 0] / mass[mass > 0, None]
    return scaled


def _weights(maps: npt.NDArray[np.floating[Any]], parts: Floats) -> Floats:
    """Return the non-negative weights (T, K) that minimise |map - weights x parts|^2, by cyclic coordinate descent.

    Of each map alone (unlike scikit-learn's, whose stopping looks at the whole batch), after Hsieh and Dhillon, KDD
    2011.
    """
    gram = parts @ parts.T
    found = np.zeros((len(maps), len(parts)))
    for start in range(0, len(maps), _ROWS):
        towards = np.einsum("tc,kc->tk", maps[start : start + _ROWS].astype(np.float64), parts, optimize=False)
        weights = np.zeros_like(towards)
        for _ in range(_SWEEPS):
            for k in range(len(parts)):
                step = (towards[:, k] - weights @ gram[k]) / gram[k, k]
                weights[:, k] = np.maximum(0.0, weights[:, k] + step)
        found[start : start + _ROWS] = weights
    return found


def _normalised(weights: Floats) -> Floats:
    total = weights.sum(1, keepdims=True)
    shares: Floats = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return shares
