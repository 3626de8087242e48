"""Encoding and decoding of maps, against zarr itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from pipeline.lake import arrays
from schemas.errors import LakeError


def random_maps(rows: int, height: int = 7, width: int = 7, signed: bool = False, scale: float = 1e-7) -> Any:
    rng = np.random.default_rng(3)
    maps = rng.random((rows, height, width)).astype(np.float32)
    return ((maps - 0.5 if signed else maps) * np.float32(scale)).astype(np.float32)


def opened(objects: dict[str, bytes]) -> zarr.Array[Any]:
    store = MemoryStore({path: cpu.Buffer.from_bytes(data) for path, data in objects.items()})
    return zarr.open_array(store, mode="r", zarr_format=3)


def reader(objects: dict[str, bytes]) -> tuple[arrays.ArrayReader, list[tuple[int, int]]]:
    requests: list[tuple[int, int]] = []
    shard = objects["c/0/0/0"]

    def read(start: int, stop: int) -> bytes:
        requests.append((start, stop))
        return shard[start:stop]

    return arrays.ArrayReader(arrays.parse(objects["zarr.json"], "x.zarr"), read, len(shard), "x.zarr"), requests


@pytest.mark.parametrize(
    ("dtype", "signed", "kind", "error"),
    [
        ("float16", False, "float16", 2.0**-12),
        ("float16", True, "float16", 2.0**-12),
        ("uint8", False, "uint8", 1 / 510),
        ("uint8", True, "int8", 1 / 254),
    ],
)
def test_round_trip_error_is_the_theoretical_one(dtype: Any, signed: bool, kind: str, error: float) -> None:
    maps = random_maps(300, signed=signed)
    stored, vmax = arrays.quantise(maps, dtype, signed)
    assert stored.dtype.name == kind
    np.testing.assert_array_equal(vmax, np.abs(maps).max(axis=(1, 2)))
    layout, decoded = arrays.decode(*both(arrays.encode(stored, {})), "x.zarr")
    raw = decoded.astype(np.float32) * np.float32(layout.scale) * vmax[:, None, None]
    worst = (np.abs(raw - maps) / vmax[:, None, None]).max()
    assert error / 2 < worst <= error * 1.0001
    # The largest cell is exact, so that vmax can be verified.
    np.testing.assert_allclose(np.abs(decoded).reshape(300, -1).max(axis=1) * layout.scale, 1.0, rtol=1e-7)


def both(objects: dict[str, bytes]) -> tuple[bytes, bytes]:
    return objects["zarr.json"], objects["c/0/0/0"]


def test_tiny_maps_survive_float16() -> None:
    """Raw float16 would wipe these out: its smallest number is 6e-8."""
    maps = random_maps(4, scale=1e-30)
    stored, vmax = arrays.quantise(maps, "float16", False)
    np.testing.assert_allclose(stored.astype(np.float32) * vmax[:, None, None], maps, rtol=1e-3, atol=1e-34)


@pytest.mark.parametrize(("dtype", "signed"), [("float16", False), ("uint8", False), ("uint8", True)])
def test_zero_and_non_finite_maps(dtype: Any, signed: bool) -> None:
    maps = random_maps(4)
    maps[0] = 0
    maps[1, 2, 3] = np.nan
    maps[2, 0, 0] = np.inf
    stored, vmax = arrays.quantise(maps, dtype, signed)
    assert vmax[0] == 0
    assert np.isnan(vmax[1:3]).all()
    assert vmax[3] > 0
    assert (stored[0] == 0).all()
    for row in (1, 2):
        assert np.isnan(stored[row]).all() if dtype == "float16" else (stored[row] == 0).all()


def test_what_quantise_refuses() -> None:
    with pytest.raises(ValueError, match="negative"):
        arrays.quantise(random_maps(2, signed=True), "float16", False)
    with pytest.raises(ValueError, match="float32"):
        arrays.quantise(random_maps(2).astype(np.float64), "float16", False)
    with pytest.raises(ValueError, match=r"\(T, h, w\)"):
        arrays.quantise(random_maps(2)[0], "float16", False)


def test_no_maps() -> None:
    stored, vmax = arrays.quantise(random_maps(0), "float16", False)
    assert stored.shape == (0, 7, 7)
    assert vmax.shape == (0,)
    with pytest.raises(ValueError, match="no maps"):
        arrays.encode(stored, {})


@pytest.mark.parametrize(
    ("height", "width", "itemsize", "rows"),
    [(7, 7, 2, 512), (14, 14, 2, 128), (28, 28, 2, 32), (56, 56, 2, 8), (7, 7, 1, 1024), (400, 400, 2, 1)],
)
def test_chunks_hold_64_kib(height: int, width: int, itemsize: int, rows: int) -> None:
    assert arrays.chunk_rows(1_000_000, height, width, itemsize) == rows


def test_small_arrays_have_small_chunks() -> None:
    assert [arrays.chunk_rows(n, 7, 7, 2) for n in (1, 2, 3, 300, 512, 513)] == [1, 2, 4, 512, 512, 512]


def test_metadata_is_the_contract() -> None:
    objects = arrays.encode(arrays.quantise(random_maps(300), "float16", False)[0], {"method": "m", "layer": "l"})
    assert sorted(objects) == ["c/0/0/0", "zarr.json"]
    document = json.loads(objects["zarr.json"])
    assert document["zarr_format"] == 3
    assert document["fill_value"] == "NaN"
    assert document["dimension_names"] == ["row", "y", "x"]
    assert document["attributes"] == {"method": "m", "layer": "l", "scale": 1.0}
    assert document["shape"] == [300, 7, 7]
    (codec,) = document["codecs"]
    assert codec["name"] == "sharding_indexed"
    inner = codec["configuration"]["codecs"]
    assert inner[1] == {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
    integers = json.loads(arrays.encode(np.ones((2, 3, 3), np.uint8), {})["zarr.json"])
    assert integers["fill_value"] == 0
    assert integers["attributes"]["scale"] == 1 / 255


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 40), side=st.sampled_from([1, 3, 60, 200]))
def test_reads_agree_with_zarr(data: st.DataObject, rows: int, side: int) -> None:
    maps = random_maps(rows, side, side + 1)
    objects = arrays.encode(arrays.quantise(maps, "float16", False)[0], {})
    whole = np.asarray(opened(objects)[...])
    opened_reader, _ = reader(objects)
    np.testing.assert_array_equal(opened_reader.stored(), whole)
    wanted: Sequence[int] = data.draw(st.lists(st.integers(0, rows - 1), max_size=10))
    np.testing.assert_array_equal(opened_reader.stored(wanted), whole[np.array(wanted, np.int64)])


def test_constant_and_empty_chunks_are_written() -> None:
    """Chunks of NaN only (or 0 only) are the fill value; by default zarr leaves them out."""
    for stored in (np.full((600, 7, 7), np.nan, np.float16), np.zeros((1100, 7, 7), np.uint8)):
        objects = arrays.encode(stored, {})
        np.testing.assert_array_equal(reader(objects)[0].stored(), stored)
        np.testing.assert_array_equal(opened(objects)[...], stored)


def test_one_row_costs_an_index_and_a_chunk() -> None:
    objects = arrays.encode(arrays.quantise(random_maps(3000, 14, 14), "float16", False)[0], {})
    opened_reader, requests = reader(objects)
    opened_reader.stored([1234])
    assert len(requests) == 2  # zarr.json is the third
    assert sum(stop - start for start, stop in requests) < 45_000


def test_near_chunks_are_one_request_and_far_ones_are_not() -> None:
    objects = arrays.encode(arrays.quantise(random_maps(3000, 14, 14), "float16", False)[0], {})
    opened_reader, requests = reader(objects)
    requests.clear()
    opened_reader.stored(range(1000))
    assert len(requests) == 1
    requests.clear()
    opened_reader.stored([0, 2999])
    assert len(requests) == 2
    assert sum(stop - start for start, stop in requests) < 100_000


def test_bytes_per_map_are_near_the_published() -> None:
    """Noise does not compress, so this only bounds the overhead over raw float16: 1 % and the index."""
    objects = arrays.encode(arrays.quantise(random_maps(4096, 14, 14), "float16", False)[0], {})
    assert len(objects["c/0/0/0"]) / 4096 < 14 * 14 * 2


def test_every_flipped_bit_is_found() -> None:
    """Without zstd's checksum, flips in the payload read back as other values without an error."""
    objects = arrays.encode(arrays.quantise(random_maps(40), "float16", False)[0], {})
    metadata, shard = both(objects)
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(shard), 120).tolist():
        damaged = bytearray(shard)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(LakeError, match=r"x\.zarr"):
            arrays.decode(metadata, bytes(damaged), "x.zarr")


def test_truncated_and_missing_chunks_are_found() -> None:
    objects = arrays.encode(arrays.quantise(random_maps(40), "float16", False)[0], {})
    metadata, shard = both(objects)
    for cut in (0, 1, 10, len(shard) - 1):
        with pytest.raises(LakeError, match="damaged"):
            arrays.decode(metadata, shard[:cut], "x.zarr")


def test_rows_out_of_range() -> None:
    opened_reader, _ = reader(arrays.encode(np.ones((4, 2, 2), np.float16), {}))
    for row in (-1, 4):
        with pytest.raises(LakeError, match="rows 0 to 3"):
            opened_reader.stored([row])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(zarr_format=2),
        lambda d: d.update(data_type="float64"),
        lambda d: d["codecs"][0]["configuration"]["codecs"].append({"name": "crc32c"}),
        lambda d: d["codecs"][0]["configuration"].update(index_location="start"),
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[2, 2, 2]),
        lambda d: d["attributes"].pop("scale"),
        lambda d: d.pop("shape"),
    ],
)
def test_other_encodings_are_refused(change: Any) -> None:
    document = json.loads(arrays.encode(np.ones((4, 2, 2), np.float16), {})["zarr.json"])
    change(document)
    with pytest.raises(LakeError, match=r"x\.zarr: zarr\.json"):
        arrays.parse(json.dumps(document).encode(), "x.zarr")
