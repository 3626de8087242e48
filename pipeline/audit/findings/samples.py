"""What findings take from the sample of maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.audit import GRID

Floats = npt.NDArray[np.float64]


def of_class(sample: pa.Table, target_class: int, column: str = "target_class") -> pa.Table:
    """Return the rows of the sample whose ``column`` holds a class."""
    return where(sample, numbers(sample, column) == target_class)


def where(sample: pa.Table, chosen: npt.NDArray[np.bool_]) -> pa.Table:
    """Return chosen rows (T,) of the sample."""
    return sample.take(pa.array(np.flatnonzero(chosen)))


def numbers(sample: pa.Table, name: str) -> Floats:
    """Return a column (T,) as float64; nulls become NaN."""
    return np.asarray(sample[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def texts(sample: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column (T,) of texts as objects; None where a row has none."""
    return np.array(sample[name].to_pylist(), np.object_)


def densities(sample: pa.Table) -> Floats:
    """Return the maps (T, GRID * GRID), mean 1, float64."""
    if not len(sample):
        return np.empty((0, GRID * GRID))
    flat = sample["map"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float64).reshape(len(sample), GRID * GRID)


def largest(sample: pa.Table, scores: Floats) -> pa.Table:
    """Return the rows whose scores (T,) are defined, the largest first; equal ones in their order."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
    return sample.take(pa.array(order[~np.isnan(scores[order])]))


def plural(count: int, noun: str) -> str:
    """Return "1 map", "12,000 maps"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
