"""A bounded sample of maps: of each class those whose hashes are smallest, which is uniform and merges in any order."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.canonical import expanded
from pipeline.audit.parts import sample_maps
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
_PENDING = 50_000
#: Maps that tell whether it is worth to look at all.
_LOOK = 64


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
        """Return the sample as a Parquet file; its maps on the coarsest grid that holds them."""
        table = self.table
        maps = _coarsest(sample_maps(table))
        cells = pa.FixedSizeListArray.from_arrays(pa.array(maps.ravel()), maps.shape[1] * maps.shape[2])
        place = table.schema.get_field_index("map")
        table = table.set_column(place, pa.field("map", cells.type, metadata={"rows": str(maps.shape[1])}), cells)
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        buffer = io.BytesIO()
        pq.write_table(
            table, buffer, compression="zstd", use_dictionary=texts, use_byte_stream_split=["map.list.element"]
        )
        return buffer.getvalue()

    def load(self, data: bytes) -> None:
        """Add what :meth:`to_bytes` returned."""
        table = pq.read_table(pa.BufferReader(data))
        # Of many parts few rows remain; only those are taken in hand.
        table = table.filter(pa.array(self.room(table["target_class"].to_numpy(), table["key"].to_numpy())))
        place = table.schema.get_field_index("map")
        field = table.schema.field(place)
        height, cells = int(field.metadata[b"rows"]), field.type.list_size
        flat = [np.asarray(chunk.flatten(), np.float32) for chunk in table["map"].chunks]
        maps = np.concatenate([np.empty(0, np.float32), *flat]).reshape(-1, height, cells // height)
        whole = pa.FixedSizeListArray.from_arrays(pa.array(expanded(maps).ravel()), GRID * GRID)
        self.add(table.set_column(place, pa.field("map", whole.type), whole))

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


def _coarsest(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the maps (n, gy, gx) of the fewest rows and columns that give these when they are repeated."""
    for axis in (1, 2):
        for cells in (each for each in range(1, GRID) if GRID % each == 0):
            if _repeats(maps[:_LOOK], axis, cells) and _repeats(maps, axis, cells):
                maps = np.take(maps, np.arange(0, GRID, GRID // cells), axis)
                break
    return np.ascontiguousarray(maps)


def _repeats(maps: npt.NDArray[np.float32], axis: int, cells: int) -> bool:
    """Whether an axis of maps consists of so many cells that are repeated."""
    step = GRID // cells
    apart = maps.reshape(*maps.shape[:axis], cells, step, *maps.shape[axis + 1 :])
    first = np.take(apart, [0], axis + 1)
    return bool((apart == first).all())
