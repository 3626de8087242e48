"""Reading: tables, maps and pictures."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.lake.documents import read_commit, to_bytes
from pipeline.lake.enlarge import lay_over
from pipeline.lake.reader import Lake, open_lake, view_of
from pipeline.lake.run import create_or_resume, finalize, quarantine
from pipeline.lake.store import LakeStore
from schemas import layout
from schemas.errors import InputError, LakeError
from schemas.tables import IMAGES, MAPS
from schemas.view import View
from tests.pipeline.lake.helpers import (
    HEIGHT,
    VIEW,
    WIDTH,
    WrappedStore,
    build,
    hash_seed,
    make_manifest,
    make_plan,
    make_result,
    picture,
    sink_for,
    unit_id,
)
from tests.pipeline.lake.test_run import given_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("read")
    build(LakeStore(str(path)), 3)
    return path


@pytest.fixture
def lake(folder: Path) -> Lake:
    return open_lake(str(folder))


def raw_maps(units: int = 3) -> dict[tuple[str, int, str, str, int], np.ndarray[Any, Any]]:
    """The maps as the engine handed them over, by (image, class, method, layer, occurrence)."""
    found = {}
    for i in range(units):
        result = make_result(unit_id(i))
        for map_set in result.map_sets:
            for place, image in enumerate(map_set.targets.image_index.tolist()):
                key = (
                    result.images[image]["image_id"],
                    int(map_set.targets.target_class[place]),
                    map_set.method,
                    map_set.layer,
                    int(map_set.targets.target_rank[place]),
                )
                found[key] = map_set.maps[place]
    return found


def key_of(row: dict[str, Any]) -> tuple[str, int, str, str, int]:
    return row["image_id"], row["target_class"], row["method"], row["layer"], row["target_rank"]


def test_no_lake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no lake"):
        open_lake(str(tmp_path))


def test_tables(any_store: LakeStore) -> None:
    build(any_store, 2)
    lake = open_lake(any_store.uri, any_store.storage_options)
    assert lake.finished
    assert lake.manifest.run_id == "run-1"
    assert lake.images.schema.names == [*IMAGES.names, "site", "age"]
    assert lake.maps.schema.equals(MAPS)
    assert lake.images.count_rows() == 10
    assert lake.maps.count_rows() == 48
    north = lake.images.to_table(filter=(pc.field("site") == "north") & (pc.field("status") == "ok"))
    assert north["age"].to_pylist() == [33, 33]


def test_heatmap_raw_and_scaled(any_store: LakeStore) -> None:
    build(any_store, 1)
    lake, expected = open_lake(any_store.uri, any_store.storage_options), raw_maps(1)
    rows = lake.maps.to_table().to_pylist()
    assert len(rows) == len(expected) == 24
    for row in rows:
        raw, want = lake.heatmap(row), expected[key_of(row)]
        assert raw.dtype == np.float32
        assert raw.shape == want.shape
        if row["not_finite"]:
            assert np.isnan(raw).all()
            continue
        np.testing.assert_allclose(raw, want, atol=2.5e-4 * row["vmax"])
        scaled = lake.heatmap(row, scaled=True)
        assert np.abs(scaled).max() == (0 if row["all_zero"] else 1)
        np.testing.assert_allclose(scaled * np.float32(row["vmax"]), raw, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_integers_read_back(memory_store: LakeStore, dtype: str) -> None:
    build(memory_store, 1, dtype=dtype)
    expected = raw_maps(1)
    lake = open_lake(memory_store.uri)
    for row, raw in lake.heatmaps():
        if row["not_finite"]:
            assert np.isnan(raw).all()
            assert np.isnan(lake.heatmap(row, scaled=True)).all()
        else:
            np.testing.assert_allclose(raw, expected[key_of(row)], atol=4e-3 * row["vmax"])


def test_heatmap_sizes(lake: Lake) -> None:
    row = next(row for row in lake.maps.to_table().to_pylist() if not row["all_zero"] and not row["not_finite"])
    native = lake.heatmap(row)
    assert lake.heatmap(row, size=(24, 32)).shape == (24, 32)
    original = lake.heatmap(row, size="original")
    assert original.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(original, lay_over(native, View(*VIEW), HEIGHT, WIDTH))
    assert np.isnan(original[:6]).all()
    assert np.isnan(original[:, :10]).all()
    assert np.isfinite(original[6:, 10:]).all()
    assert (lake.heatmap(row, size="original", outside=0.0)[:6] == 0).all()
    # The unit is not needed, only faster.
    short = {name: row[name] for name in ("store_path", "store_row", "vmax", "image_id")}
    np.testing.assert_array_equal(lake.heatmap(short, size="original"), original)


def test_heatmap_takes_pandas_rows(lake: Lake) -> None:
    frame = lake.maps.to_table().to_pandas()
    assert lake.heatmap(frame.iloc[5], size="original").shape == (HEIGHT, WIDTH)


def test_iteration_gives_every_map_once(lake: Lake) -> None:
    expected = raw_maps()
    seen = {}
    for row, raw in lake.heatmaps():
        seen[key_of(row)] = raw
        np.testing.assert_array_equal(raw, lake.heatmap(row))
    assert set(seen) == set(expected)


def test_iteration_by_class_method_layer_and_filter(lake: Lake) -> None:
    rows = [row for row, _ in lake.heatmaps(method="grad_cam", target_class=2)]
    assert rows
    table = lake.maps.to_table(filter=(pc.field("method") == "grad_cam") & (pc.field("target_class") == 2))
    assert [key_of(row) for row in rows] == [key_of(row) for row in table.to_pylist()]
    fused = list(lake.heatmaps(layer="layer3+layer4", scaled=True, size=(5, 5)))
    assert len(fused) == 24
    assert all(raw.shape == (5, 5) for _, raw in fused)
    labels = [
        row for row, _ in lake.heatmaps(pc.field("is_label") & (pc.field("probability") > 0.5), method="xgrad_cam")
    ]
    assert labels
    assert all(row["is_label"] and row["probability"] > 0.5 and row["method"] == "xgrad_cam" for row in labels)
    assert list(lake.heatmaps(target_class=99)) == []
    with pytest.raises(InputError, match=r"no method 'gradcam' \(did you mean grad_cam"):
        next(lake.heatmaps(method="gradcam"))
    with pytest.raises(InputError, match=r"no layer 'layer9'.*it holds: layer3\+layer4, layer4"):
        next(lake.heatmaps(layer="layer9"))


def test_batches_are_the_same_maps(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lake.reader._BLOCK_BYTES", 4 * 48 * 3)  # three maps of 6 x 8
    singles = list(lake.heatmaps(layer="layer3+layer4"))
    batches = list(lake.batches(layer="layer3+layer4"))
    assert [len(table) for table, _ in batches] == [3, 3, 2] * 3
    assert [key_of(row) for table, _ in batches for row in table.to_pylist()] == [key_of(row) for row, _ in singles]
    np.testing.assert_array_equal(np.concatenate([maps for _, maps in batches]), [raw for _, raw in singles])
    scaled = np.concatenate([maps for _, maps in lake.batches(method="grad_cam", scaled=True)])
    assert scaled.dtype == np.float32
    assert np.nanmax(scaled) == 1


def test_one_map_costs_three_requests(folder: Path) -> None:
    lake = open_lake(str(folder))
    row = lake.maps.to_table().to_pylist()[0]
    store = WrappedStore(str(folder))
    counted = Lake(store)
    store.reads.clear()
    counted.heatmap(row)
    assert len(store.reads) == 3
    counted.heatmap({**row, "store_row": row["store_row"] + 1})
    assert len(store.reads) == 4


def test_iteration_opens_each_array_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lake.reader._BLOCK_BYTES", 4 * 12 * 2)  # two maps of 3 x 4 a block
    store = WrappedStore(str(folder))
    counted = Lake(store)
    store.reads.clear()
    assert len(list(counted.heatmaps(method="grad_cam", threads=8))) == 24
    paths = [path for path, _ in store.reads]
    assert sorted(path for path in paths if path.endswith("zarr.json")) == sorted(
        f"heatmaps/grad_cam/layer4/{unit_id(i)}-a1.zarr/zarr.json" for i in range(3)
    )
    assert sum(path.startswith("maps/") for path in paths) == 3
    assert sum(path.endswith("c/0/0/0") for path in paths) == 3 * (1 + 4)


def test_abandoned_iteration_ends(lake: Lake) -> None:
    iterator = lake.heatmaps()
    next(iterator)
    iterator.close()


def test_reading_during_a_run(memory_store: LakeStore) -> None:
    plan = make_plan(3)
    manifest = create_or_resume(memory_store, make_manifest(plan), plan).manifest
    lake = open_lake(memory_store.uri)
    assert not lake.finished
    assert lake.maps.count_rows() == 0
    assert lake.images.to_table().schema.names == [*IMAGES.names, "site", "age"]
    assert list(lake.heatmaps()) == []
    sink = sink_for(memory_store, manifest)
    sink.write(make_result(unit_id(0)))
    memory_store.put(f"maps/{unit_id(1)}-x.parquet", b"an attempt in flight")
    memory_store.put(f"images/{unit_id(1)}-x.parquet", b"an attempt in flight")
    assert lake.maps.count_rows() == 0
    lake.refresh()
    assert lake.maps.count_rows() == 24
    assert len(list(lake.heatmaps())) == 24
    sink.write(make_result(unit_id(1)))
    quarantine(memory_store, given_up(2))
    finalize(memory_store)
    lake.refresh()
    assert lake.finished
    assert list(lake.commits) == [unit_id(0), unit_id(1)]
    assert lake.maps.count_rows() == 48


def test_columns_of_newer_releases_are_kept(memory_store: LakeStore) -> None:
    """By default pyarrow takes the first file's columns and drops those that later files add."""
    build(memory_store, 2)
    path = layout.maps(unit_id(1), "a1")
    table = pq.read_table(io.BytesIO(memory_store.get(path)))
    buffer = io.BytesIO()
    pq.write_table(table.append_column("new", pa.array([7] * len(table))), buffer)
    memory_store.put(path, buffer.getvalue())
    commit = read_commit(memory_store, unit_id(1)).model_copy(update={"created": "2999-01-01T00:00:00+00:00"})
    memory_store.put(layout.commit(unit_id(1)), to_bytes(commit))
    lake = open_lake(memory_store.uri)
    assert lake.maps.to_table()["new"].to_pylist() == [None] * 24 + [7] * 24
    assert {row.get("new") for row, _ in lake.heatmaps()} == {None, 7}


def test_columns_that_older_releases_lack_are_null(memory_store: LakeStore) -> None:
    build(memory_store, 2)
    path = layout.maps(unit_id(0), "a1")
    table = pq.read_table(io.BytesIO(memory_store.get(path))).drop_columns(["corner_mass"])
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    memory_store.put(path, buffer.getvalue())
    lake = open_lake(memory_store.uri)
    assert lake.maps.to_table()["corner_mass"].to_pylist()[:24] == [None] * 24
    assert len(list(lake.heatmaps(pc.field("corner_mass") >= 0))) > 0


def test_images(lake: Lake) -> None:
    image_id = f"{unit_id(2)}/0003"
    row = lake.image(image_id)
    assert row == lake.image(image_id, unit_id(2))
    assert (row["unit_id"], row["site"], row["age"]) == (unit_id(2), "north", 33)
    assert view_of(row) == View(*VIEW)
    with pytest.raises(InputError, match="holds no image 'nobody'"):
        lake.image("nobody")
    with pytest.raises(InputError, match="unit '000000-shard-000' holds no image"):
        lake.image(image_id, unit_id(0))
    with pytest.raises(InputError, match="holds no unit 'u9'"):
        lake.image(image_id, "u9")
    with pytest.raises(LakeError, match=r"has no view \(status 'decode_error': not an image\)"):
        view_of(lake.image(f"{unit_id(0)}/0001"))


def test_arrays_that_no_commit_names_are_not_read(lake: Lake) -> None:
    row = lake.maps.to_table().to_pylist()[0]
    with pytest.raises(LakeError, match="no commit names this array"):
        lake.heatmap({**row, "store_path": "heatmaps/grad_cam/layer4/000000-shard-000-dead.zarr"})


def test_lost_array(memory_store: LakeStore) -> None:
    """Zarr would read a shard that is not there as fill values."""
    build(memory_store, 1)
    lake = open_lake(memory_store.uri)
    row = lake.maps.to_table().to_pylist()[0]
    memory_store.delete(f"{row['store_path']}/c/0/0/0")
    with pytest.raises(LakeError, match=r"c/0/0/0: it is not there"):
        lake.heatmap(row)
    with pytest.raises(LakeError, match=r"c/0/0/0: it is not there"):
        list(lake.heatmaps())


# Pictures -----------------------------------------------------------------------------------------------------------


def lake_with_shard(store: LakeStore, uri: str) -> Lake:
    plan = make_plan(1)
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    sink_for(store, manifest).write(make_result(unit_id(0), uri=uri))
    return open_lake(store.uri, store.storage_options)


def shard_bytes() -> bytes:
    return b"".join(picture(hash_seed(unit_id(0), i)) for i in range(5))


def test_image_bytes_by_one_range(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(shard_bytes())
    lake = lake_with_shard(LakeStore(str(tmp_path / "lake")), str(shard))
    for i in (0, 4):
        assert lake.image_bytes(f"{unit_id(0)}/{i:04d}") == picture(hash_seed(unit_id(0), i))


def test_image_bytes_from_s3_with_the_lakes_credentials(s3_store: Any) -> None:
    uri = s3_store.put("shards/x.tar", shard_bytes())
    lake = lake_with_shard(LakeStore(s3_store.url("lake"), s3_store.storage_options), uri)
    assert lake.image_bytes(f"{unit_id(0)}/0002") == picture(hash_seed(unit_id(0), 2))


def test_image_bytes_with_options_of_the_source(s3_store: Any, tmp_path: Path) -> None:
    uri = s3_store.put("shards/x.tar", shard_bytes())
    lake = lake_with_shard(LakeStore(str(tmp_path / "lake")), uri)
    data = lake.image_bytes(f"{unit_id(0)}/0002", storage_options=s3_store.storage_options)
    assert data == picture(hash_seed(unit_id(0), 2))


def test_image_bytes_that_changed_or_went(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    lake = lake_with_shard(LakeStore(str(tmp_path / "lake")), str(shard))
    image_id = f"{unit_id(0)}/0002"
    with pytest.raises(LakeError, match=r"x\.tar is not there any more"):
        lake.image_bytes(image_id)
    data = bytearray(shard_bytes())
    data[len(picture(hash_seed(unit_id(0), 0))) + len(picture(hash_seed(unit_id(0), 1))) + 50] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(LakeError, match=r"x\.tar has changed since the run"):
        lake.image_bytes(image_id)


def test_image_bytes_that_are_no_range(tmp_path: Path) -> None:
    store = LakeStore(str(tmp_path))
    build(store, 1)
    path = layout.images(unit_id(0), "a1")
    table = pq.read_table(io.BytesIO(store.get(path)))
    place = table.column_names.index("byte_offset")
    table = table.set_column(place, table.schema.field(place), pa.nulls(len(table), pa.int64()))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put(path, buffer.getvalue())
    with pytest.raises(LakeError, match=r"is no byte range of shards/x\.tar"):
        open_lake(str(tmp_path)).image_bytes(f"{unit_id(0)}/0002")


def test_the_room_needs_neither_torch_nor_ray() -> None:
    """An auditor's laptop opens lakes."""
    code = "import sys, pipeline.lake, pipeline.lake.sheet; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
