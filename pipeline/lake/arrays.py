"""Heatmaps as zarr v3 arrays: encoded in memory to whole objects, decoded from few ranged reads.

One array (row, y, x) holds the maps of one unit, method and layer: one shard, inner chunks of about 64 KiB, zstd
level 3 with a checksum (without it, every one of 60 flipped bits went unnoticed). A map is stored divided by its own
largest absolute value ``vmax`` (float16 of the raw map loses maps below about 1e-7), so raw = stored x scale x vmax,
where ``scale`` is the array's attribute: 1 for float16, 1/255 for uint8, 1/127 for int8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from schemas.errors import LakeError

Dtype = Literal["float16", "uint8"]
FloatMaps = npt.NDArray[np.float32]

METADATA: Final = "zarr.json"
SHARD: Final = "c/0/0/0"
CHUNK_BYTES: Final = 64 * 1024
#: Ranged reads closer than this are made one.
MERGE_GAP: Final = 64 * 1024
_SCALES: Final = {"float16": 1.0, "uint8": 1 / 255, "int8": 1 / 127}
_EMPTY: Final = 2**64 - 1
_ZSTD: Final = Zstd()


def stored_dtype(dtype: Dtype, signed: bool) -> str:
    """Name of the stored type: signed maps need int8 where the job asks for uint8."""
    return "int8" if dtype == "uint8" and signed else dtype


def quantise(maps: FloatMaps, dtype: Dtype, signed: bool) -> tuple[npt.NDArray[Any], FloatMaps]:
    """Scale raw maps by their own largest absolute value and round them to the stored type.

    Args:
        maps: (T, h, w) float32, raw. A map that holds NaN or infinity has no scale: it is stored as NaN (as 0 in an
            integer type, which has none) and its vmax is NaN. A map of zeros stays zero, with vmax 0.
        dtype: ``float16``, or ``uint8`` for 1/255 steps (1/127 steps of int8 where ``signed``).
        signed: maps may be negative.

    Returns:
        stored (T, h, w) of the stored type and vmax (T,) float32.

    Raises:
        ValueError: wrong shape or type, or a negative value in maps that are not signed.
    """
    if maps.ndim != 3 or maps.dtype != np.float32:
        raise ValueError(f"maps must be (T, h, w) float32, not {maps.shape} {maps.dtype}")
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(maps).all(axis=(1, 2)))
    vmax = np.where(finite, np.abs(np.where(finite[:, None, None], maps, 0)).max(axis=(1, 2), initial=0), np.nan)
    vmax = vmax.astype(np.float32)
    if not signed and bool((maps[finite] < 0).any()):
        raise ValueError("maps of a method that is not signed hold negative values; declare it signed, or apply ReLU")
    divisor = np.where(vmax > 0, vmax, np.float32(1))[:, None, None]
    unit = np.where(finite[:, None, None], maps, np.nan if dtype == "float16" else 0).astype(np.float32) / divisor
    kind = stored_dtype(dtype, signed)
    if kind == "float16":
        return unit.astype(np.float16), vmax
    return np.rint(unit * np.float32(255 if kind == "uint8" else 127)).astype(kind), vmax


def chunk_rows(rows: int, height: int, width: int, itemsize: int) -> int:
    """Rows of an inner chunk: the largest power of two within 64 KiB (at least 1), and no more than hold ``rows``."""
    fit = max(1, CHUNK_BYTES // (height * width * itemsize))
    most = 1 << (fit.bit_length() - 1)
    return min(most, 1 << max(0, rows - 1).bit_length())


def encode(stored: npt.NDArray[Any], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode (T, h, w) stored maps as one zarr v3 array.

    Args:
        stored: float16, uint8 or int8 with T >= 1; of no maps no array is written, since zarr readers disagree on
            shards of none.
        attributes: members of the array's attributes; ``scale`` is added.

    Returns:
        Objects by path relative to the array: ``zarr.json`` and ``c/0/0/0``.
    """
    if stored.shape[0] == 0:
        raise ValueError("an array of no maps is not written")
    kind = stored.dtype.name
    count, height, width = stored.shape
    rows = chunk_rows(count, height, width, stored.dtype.itemsize)
    objects: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(objects),
        shape=stored.shape,
        dtype=kind,
        chunks=(rows, height, width),
        shards=(-(-count // rows) * rows, height, width),
        compressors=ZstdCodec(level=3, checksum=True),
        # A shard that is missing reads as the fill value without an error, so it must not look like a zero map.
        # Integers have no NaN; there the digests of the commit tell.
        fill_value=np.nan if kind == "float16" else 0,
        dimension_names=("row", "y", "x"),
        attributes={**attributes, "scale": _SCALES[kind]},
        zarr_format=3,
        # Without this, zarr deletes a chunk whose every map is the fill value.
        config={"write_empty_chunks": True},
    )
    array[...] = stored
    return {path: value.to_bytes() for path, value in objects.items()}


@dataclass(frozen=True)
class Layout:
    """What a reader needs of an array's ``zarr.json``."""

    rows: int
    height: int
    width: int
    chunk_rows: int
    dtype: np.dtype[Any]
    scale: float
    attributes: dict[str, Any]

    @property
    def chunks(self) -> int:
        """Number of inner chunks."""
        return -(-self.rows // self.chunk_rows)

    @property
    def index_bytes(self) -> int:
        """Size of the shard's index at its end: (offset, size) per chunk and a CRC-32C."""
        return 16 * self.chunks + 4


def parse(metadata: bytes, name: str) -> Layout:
    """Read an array's ``zarr.json``.

    Raises:
        LakeError: it is no array of lake format 1; ``name`` is the array's in the message.
    """
    try:
        document = json.loads(metadata)
        (codec,) = document["codecs"]
        inner = codec["configuration"]
        rows, height, width = document["shape"]
        shard = document["chunk_grid"]["configuration"]["chunk_shape"]
        chunk = inner["chunk_shape"]
        layout = Layout(
            rows=rows,
            height=height,
            width=width,
            chunk_rows=chunk[0],
            dtype=np.dtype(document["data_type"]).newbyteorder("<"),
            scale=float(document["attributes"]["scale"]),
            attributes=document["attributes"],
        )
        sound = (
            document["zarr_format"] == 3
            and codec["name"] == "sharding_indexed"
            and [part["name"] for part in inner["codecs"]] == ["bytes", "zstd"]
            and [part["name"] for part in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
            and chunk[1:] == [height, width] == shard[1:]
            and shard[0] == layout.chunks * layout.chunk_rows
            and document["data_type"] in _SCALES
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LakeError(f"{name}: zarr.json is no array of this format ({error}); run 'camlake verify'") from error
    if not sound:
        raise LakeError(f"{name}: zarr.json describes another encoding than lake format 1; open it with zarr itself")
    return layout


#: Reads the bytes ``start:stop`` of the shard.
ReadRange = Callable[[int, int], bytes]


class ArrayReader:
    """An array opened for reading rows: its index is read once, then one request per run of near chunks.

    Args:
        layout: of the array.
        read: ranged read of its shard.
        shard_size: size of the shard in bytes, as the commit says.
        name: of the array, for messages.
    """

    def __init__(self, layout: Layout, read: ReadRange, shard_size: int, name: str) -> None:
        self.layout = layout
        self.name = name
        self._read = read
        raw = read(max(0, shard_size - layout.index_bytes), shard_size)
        body, checksum = raw[:-4], raw[-4:]
        if len(raw) != layout.index_bytes or int.from_bytes(checksum, "little") != google_crc32c.value(body):
            raise self._damaged("the shard's index fails its checksum")
        self._index = np.frombuffer(body, "<u8").reshape(-1, 2)

    def _damaged(self, reason: str) -> LakeError:
        return LakeError(f"{self.name}: {reason}; the object is damaged, run 'camlake verify'")

    def stored(self, rows: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """Return stored maps (T, h, w) in the stored type, in the order of ``rows`` (default: all).

        Raises:
            LakeError: a row is out of range, or a chunk does not decode.
        """
        layout = self.layout
        wanted = np.arange(layout.rows) if rows is None else np.asarray(rows, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= layout.rows):
            raise LakeError(f"{self.name} has rows 0 to {layout.rows - 1}, not {int(wanted.max())}; check store_row")
        result = np.empty((wanted.size, layout.height, layout.width), layout.dtype.newbyteorder("="))
        chunk_of = wanted // layout.chunk_rows
        for number, data in self._chunks(np.unique(chunk_of)):
            chosen = chunk_of == number
            result[chosen] = data[wanted[chosen] - number * layout.chunk_rows]
        return result

    def _chunks(self, numbers: npt.NDArray[np.int64]) -> list[tuple[int, npt.NDArray[Any]]]:
        places = []
        for number in numbers.tolist():
            offset, size = (int(value) for value in self._index[number])
            if offset == _EMPTY:
                raise self._damaged(f"chunk {number} is not there")
            places.append((offset, size, number))
        found = []
        for run in _runs(sorted(places)):
            start, stop = run[0][0], max(offset + size for offset, size, _ in run)
            data = memoryview(self._read(start, stop))
            for offset, size, number in run:
                found.append((number, self._decode(data[offset - start : offset - start + size], number)))
        return found

    def _decode(self, data: memoryview, number: int) -> npt.NDArray[Any]:
        layout = self.layout
        shape = (layout.chunk_rows, layout.height, layout.width)
        try:
            return np.frombuffer(_ZSTD.decode(data), layout.dtype).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(f"chunk {number} does not decode ({error})") from error


def _runs(places: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Group sorted (offset, size, number) whose gaps are at most :data:`MERGE_GAP`."""
    runs: list[list[tuple[int, int, int]]] = []
    end = 0
    for place in places:
        if runs and place[0] - end <= MERGE_GAP:
            runs[-1].append(place)
        else:
            runs.append([place])
        end = max(end, place[0] + place[1])
    return runs


def decode(metadata: bytes, shard: bytes, name: str) -> tuple[Layout, npt.NDArray[Any]]:
    """Decode a whole array held in memory: (layout, stored (T, h, w)).

    Raises:
        LakeError: it is damaged or of another encoding.
    """
    layout = parse(metadata, name)
    reader = ArrayReader(layout, lambda start, stop: shard[start:stop], len(shard), name)
    return layout, reader.stored()
