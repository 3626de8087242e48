"""A bounded sample of maps: of each class those whose hashes are smallest, which is uniform and merges in any order."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.audit import GRID, MEASURES

#: Columns of the sample: one row per map of the audit's method and layer. ``half`` is 0 or 1 by hash of the cluster:
#: findings that are looked for in one half are tested on the other. ``map`` is the canonical density, mean 1, row by
#: row.
SAMPLE = pa.schema(
    [
        pa.field("key", pa.uint64(), False),
        pa.field("half", pa.int8(), False),
        pa.field("target_class", pa.int64(), False),
        pa.field("image_id", pa.string(), False),
        pa.field("unit_id", pa.string(), False),
        pa.field("store_path", pa.string(), False),
        pa.field("store_row", pa.int32(), False),
        pa.field("outcome", pa.int64(), False),
        pa.field("label", pa.int32()),
        pa.field("label_name", pa.string()),
        pa.field("label_probability", pa.float32()),
        pa.field("predicted_class", pa.int32()),
        pa.field("predicted_name", pa.string()),
        pa.field("predicted_probability", pa.float32()),
        *(pa.field(measure.name, pa.float32()) for measure in MEASURES),
        pa.field("map", pa.list_(pa.float32(), GRID * GRID)),
    ]
)


_LARGEST = 2**64 - 1
#: Rows that wait until the sample is cut again.
_PENDING = 20_000


def sample_schema(groups: tuple[str, ...]) -> pa.Schema:
    """Return :data:`SAMPLE` with a text column ``group:NAME`` for each attribute."""
    return pa.schema([*SAMPLE, *(pa.field(f"group:{name}", pa.string()) for name in groups)])


class Sample:
    """At most ``most`` maps of each class."""

    def __init__(self, most: int, groups: tuple[str, ...] = ()) -> None:
        self.most = most
        self._schema = sample_schema(groups)
        self._tables: list[pa.Table] = []
        self._pending = 0
        #: Of classes that are full: the largest key that is kept. No larger one can come in any more.
        self._limits: dict[int, int] = {}

    def room(self, target_class: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which rows (T,) may be among the kept ones: of each class the ``most`` smallest keys."""
        order, starts, stops = _by_class(target_class, keys)
        rank = np.arange(len(order)) - np.repeat(starts, stops - starts)
        chosen = np.zeros(len(order), np.bool_)
        chosen[order] = rank < self.most
        if self._limits:
            names, codes = np.unique(target_class, return_inverse=True)
            limits = np.array([self._limits.get(name, _LARGEST) for name in names.tolist()], np.uint64)
            chosen &= keys <= limits[codes]
        return chosen

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        if not len(table):
            return
        self._tables.append(table.select(self._schema.names).cast(self._schema))
        self._pending += len(table)
        if self._pending > max(self.most, _PENDING):
            self._compact()

    def merge(self, other: Sample) -> None:
        """Add another's rows."""
        self.add(other.table)

    @property
    def table(self) -> pa.Table:
        """The sample, sorted by class and key."""
        self._compact()
        return self._tables[0] if self._tables else self._schema.empty_table()

    def to_bytes(self) -> bytes:
        """Return the sample as a Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(self.table, buffer, compression="zstd")
        return buffer.getvalue()

    def load(self, data: bytes) -> None:
        """Add what :meth:`to_bytes` returned."""
        self.add(pq.read_table(pa.BufferReader(data)))

    def _compact(self) -> None:
        if self._pending == 0:
            return
        table = pa.concat_tables(self._tables)
        classes, keys = table["target_class"].to_numpy(), table["key"].to_numpy()
        # A map's key and class name it, so a tie would be the same map.
        order, starts, stops = _by_class(classes, keys)
        kept = order[self.room(classes, keys)[order]]
        self._tables, self._pending = [table.take(pa.array(kept)).combine_chunks()], 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            if stop - start >= self.most:
                last = order[start + self.most - 1]
                self._limits[int(classes[last])] = int(keys[last])


def _by_class(
    target_class: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the rows in the order of class and key, and where each class begins and ends."""
    order = np.lexsort((keys, target_class))
    classes = target_class[order]
    starts = np.flatnonzero(np.append(True, classes[1:] != classes[:-1])[: len(order)])
    return order, starts, np.append(starts[1:], len(order))[: len(starts)]
