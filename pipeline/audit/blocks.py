"""Rows that are added to the sums: as they come, with names and floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.keys import Keys

Floats = npt.NDArray[np.float64]


class Coded(NamedTuple):
    """A column of text by codes: ``codes`` (T,) are places among ``names``, -1 where a row has none."""

    codes: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: pa.ChunkedArray | npt.NDArray[Any]) -> Coded:
        """Code a column; numbers as their text."""
        if not isinstance(values, pa.ChunkedArray):
            values = pa.chunked_array([pa.array([None if each is None else str(each) for each in values], pa.string())])
        # One chunk, since every chunk would have a dictionary of its own.
        whole = values.combine_chunks()
        encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
        codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
        return cls(codes, tuple(str(each) for each in encoded.dictionary.to_pylist()))

    def take(self, rows: npt.NDArray[np.int64]) -> Coded:
        """Return some rows."""
        return Coded(self.codes[rows], self.names)

    def texts(self) -> pa.Array:
        """Return the column as text."""
        codes = pa.array(self.codes, mask=self.codes < 0, type=pa.int64())
        return pa.array(self.names, pa.string()).take(codes)


@dataclass
class Block:
    """Rows to be added: T maps, or images, of one series.

    Attributes:
        series: index of the (method, layer) pair.
        target_class: (T,) int64.
        outcome: (T,) int64, index into ``OUTCOMES``.
        groups: attribute -> (T,) values as text, None where a row has none; or the same coded.
        values: (T, M) float64, a column per measure; NaN where it is not defined.
        flags: (T, 3) bool: all zero, constant, not finite. Such maps count as flagged only.
        maps: (T, gy, gx) float64 densities of mean 1 (NaN: no mass), where gy and gx divide GRID; None for rows without
            maps.
        weights: (T, B) bootstrap weights; None where there is no bootstrap, or ``keys`` tell them.
        keys: (T,) uint64 hashes of what rows depend on, from which the weights follow; better than ``weights``, since
            small cells then keep their rows in place of B sums.
    """

    series: int
    target_class: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int64]
    groups: Mapping[str, npt.NDArray[np.object_] | Coded]
    values: Floats
    flags: npt.NDArray[np.bool_]
    maps: Floats | None = None
    weights: npt.NDArray[np.uint8] | None = None
    keys: Keys | None = None
