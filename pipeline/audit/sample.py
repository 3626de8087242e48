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

Maps = npt.NDArray[np.float32]


def sample_schema(groups: tuple[str, ...]) -> pa.Schema:
    """Return :data:`SAMPLE` with a text column ``group:NAME`` for each attribute."""
    return pa.schema([*SAMPLE, *(pa.field(f"group:{name}", pa.string()) for name in groups)])


class Sample:
    """At most ``most`` maps of each class."""

    def __init__(self, most: int, groups: tuple[str, ...] = ()) -> None:
        self.most = most
        self._schema = sample_schema(groups)
        self._plain = pa.schema([field for field in self._schema if field.name != "map"])
        # Rows without their maps, and these on a grid as coarse as it came: they are most of the sample.
        self._parts: list[tuple[pa.Table, Maps]] = []
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

    def add(self, table: pa.Table, maps: Maps | None = None) -> None:
        """Add rows (T); ``maps`` (T, gy, gx), where gy and gx divide GRID, stand for the column ``map``."""
        if not len(table):
            return
        maps = sample_maps(table) if maps is None else maps
        self._parts.append((table.select(self._plain.names).cast(self._plain), maps))
        self._pending += len(table)
        if self._pending > max(self.most, _PENDING):
            self._compact()

    def merge(self, other: Sample) -> None:
        """Add another's rows."""
        self.add(*other._whole())

    @property
    def table(self) -> pa.Table:
        """The sample, sorted by class and key."""
        table, maps = self._whole()
        cells = pa.FixedSizeListArray.from_arrays(pa.array(expanded(maps).ravel()), GRID * GRID)
        place = self._schema.get_field_index("map")
        return table.add_column(place, self._schema.field(place), cells)

    def to_bytes(self) -> bytes:
        """Return the sample as a Parquet file; its maps on the grid that they came on."""
        table, maps = self._whole()
        cells = pa.FixedSizeListArray.from_arrays(pa.array(maps.ravel()), maps.shape[1] * maps.shape[2])
        table = table.append_column(pa.field("map", cells.type, metadata={"rows": str(maps.shape[1])}), cells)
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
        field = table.schema.field("map")
        height, cells = int(field.metadata[b"rows"]), field.type.list_size
        flat = [np.asarray(chunk.flatten(), np.float32) for chunk in table["map"].chunks]
        self.add(table, np.concatenate([np.empty(0, np.float32), *flat]).reshape(-1, height, cells // height))

    def _whole(self) -> tuple[pa.Table, Maps]:
        """Return the rows, sorted by class and key, and their maps."""
        self._compact()
        return self._parts[0] if self._parts else (self._plain.empty_table(), np.empty((0, GRID, GRID), np.float32))

    def _compact(self) -> None:
        if self._pending == 0:
            return
        table = pa.concat_tables([part for part, _ in self._parts])
        maps = [each for _, each in self._parts]
        if len({each.shape[1:] for each in maps}) > 1:
            maps = [expanded(each) for each in maps]
        classes, keys = table["target_class"].to_numpy(), table["key"].to_numpy()
        # A map's key and class name it, so a tie would be the same map.
        order, starts, stops = _by_class(classes, keys)
        kept = order[self.room(classes, keys)[order]]
        self._parts = [(table.take(pa.array(kept)).combine_chunks(), np.concatenate(maps)[kept])]
        self._pending = 0
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
