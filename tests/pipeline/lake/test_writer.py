"""The sink: what is written, and that exactly one attempt at a unit stands."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.lake.run import committed, create_or_resume, finalize
from pipeline.lake.sink import MapSet, MapTargets, new_attempt
from pipeline.lake.store import LakeStore, MissingObjectError, StoreError
from pipeline.lake.verify import verify
from pipeline.lake.writer import LakeSink
from schemas import layout
from schemas.documents import Commit, Manifest
from schemas.errors import CamlakeError, LakeError
from schemas.registries import SINKS, implementation
from schemas.tables import MAPS, STATISTICS, images_schema
from tests.pipeline.lake.helpers import (
    ATTRIBUTES,
    WrappedStore,
    build,
    contents,
    failing_at,
    make_manifest,
    make_plan,
    make_result,
    sink_for,
    statistics,
    unit_id,
)
from tests.pipeline.lake.helpers import local as local_store

UNIT = unit_id(0)


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest(make_plan(1))


def table(store: LakeStore, path: str) -> Any:
    return pq.read_table(io.BytesIO(store.get(path)))


def test_it_is_the_registered_sink() -> None:
    assert implementation(SINKS, "sink", "heatmaps").SINK is LakeSink


def test_a_unit_is_written_as_the_format_says(any_store: LakeStore, manifest: Manifest) -> None:
    result = make_result(UNIT)
    written = sink_for(any_store, manifest).write(result)
    assert written.ours
    commit = Commit.model_validate_json(any_store.get(f"commits/{UNIT}.json"))
    assert commit == written.commit
    assert (commit.unit_id, commit.attempt, commit.worker, commit.maps) == (UNIT, "a1", "w0", 24)
    assert commit.images == {"decode_error": 1, "ok": 4}
    assert set(commit.seconds) == {"read", "compute", "total", "write"}
    assert sorted(info.path for info in commit.objects) == sorted(
        [
            f"images/{UNIT}-a1.parquet",
            f"maps/{UNIT}-a1.parquet",
            *(
                f"heatmaps/{part}/{UNIT}-a1.zarr/{name}"
                for part in ("grad_cam/layer4", "layer_cam/layer3+layer4", "xgrad_cam/layer4")
                for name in ("zarr.json", "c/0/0/0")
            ),
        ]
    )
    for info in commit.objects:
        data = any_store.get(info.path)
        assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    images, maps = table(any_store, f"images/{UNIT}-a1.parquet"), table(any_store, f"maps/{UNIT}-a1.parquet")
    assert images.schema.equals(images_schema(ATTRIBUTES))
    assert maps.schema.equals(MAPS)
    assert images["image_id"].to_pylist() == [row["image_id"] for row in result.images]
    assert images["age"].to_pylist() == [30, 31, 32, 33, 34]
    assert maps.schema.metadata[b"unit_id"].decode() == UNIT
    assert maps.schema.metadata[b"camlake_format_version"] == b"1"
    assert maps.schema.metadata[b"run_id"] == b"run-1"


def test_rows_point_to_their_own_maps(tmp_path: Path, manifest: Manifest) -> None:
    """Every row of the table, through plain zarr, gives the raw map that the engine handed over for that target."""
    store = local_store(tmp_path)
    result = make_result(UNIT)
    sink_for(store, manifest).write(result)
    maps = table(store, f"maps/{UNIT}-a1.parquet").to_pylist()
    assert len(maps) == 24
    sets = {(s.method, s.layer): s for s in result.map_sets}
    seen = set()
    for row in maps:
        map_set = sets[row["method"], row["layer"]]
        index = [result.images[i]["image_id"] for i in map_set.targets.image_index.tolist()]
        (place,) = [
            i
            for i in range(len(index))
            if index[i] == row["image_id"] and map_set.targets.target_class[i] == row["target_class"]
        ]
        array = zarr.open_array(tmp_path / row["store_path"], mode="r")
        assert array.attrs["method"] == row["method"]
        assert array.attrs["unit"] == UNIT
        raw = np.asarray(array[row["store_row"]], np.float32) * array.attrs["scale"] * np.float32(row["vmax"])
        expected = map_set.maps[place]
        if row["not_finite"]:
            assert np.isnan(raw).all()
        else:
            np.testing.assert_allclose(raw, expected, atol=3e-4 * max(row["vmax"], 1e-30))
        assert row["logit"] == map_set.targets.logit[place]
        assert row["target_name"] == map_set.targets.target_name[place]
        assert row["is_label"] == map_set.targets.is_label[place]
        assert row["target_rank"] == map_set.targets.target_rank[place]
        seen.add((row["store_path"], row["store_row"]))
    assert len(seen) == 24


def test_rows_are_sorted_by_class_and_stable(tmp_path: Path, manifest: Manifest) -> None:
    store = local_store(tmp_path)
    sink_for(store, manifest).write(make_result(UNIT))
    maps = table(store, f"maps/{UNIT}-a1.parquet").to_pandas()
    for _, part in maps.groupby("store_path", observed=True):
        assert part["store_row"].tolist() == list(range(8))
        assert part["target_class"].is_monotonic_increasing
        for _, same in part.groupby("target_class"):
            assert same["image_id"].is_monotonic_increasing


def test_undefined_statistics_are_null_and_required_ones_nan(tmp_path: Path, manifest: Manifest) -> None:
    store = local_store(tmp_path)
    sink_for(store, manifest).write(make_result(UNIT))
    rows = table(store, f"maps/{UNIT}-a1.parquet").to_pylist()
    (zero, *_) = [row for row in rows if row["all_zero"]]
    (bad, *_) = [row for row in rows if row["not_finite"]]
    assert zero["entropy"] is None
    assert zero["vmax"] == 0
    assert bad["gini"] is None
    assert np.isnan(bad["vmax"])
    assert np.isnan(bad["mass"])
    (good, *_) = [row for row in rows if not row["all_zero"] and not row["not_finite"]]
    assert good["entropy"] == 0.25


@pytest.mark.parametrize(
    ("dtype", "unsigned", "signed"), [("float16", "float16", "float16"), ("uint8", "uint8", "int8")]
)
def test_the_stored_type(tmp_path: Path, manifest: Manifest, dtype: str, unsigned: str, signed: str) -> None:
    sink_for(local_store(tmp_path), manifest, dtype).write(make_result(UNIT))
    kinds = {p.parts[-3]: zarr.open_array(p, mode="r").dtype.name for p in tmp_path.glob("heatmaps/*/*/*.zarr")}
    assert kinds == {"grad_cam": unsigned, "layer_cam": unsigned, "xgrad_cam": signed}


def test_a_unit_without_a_good_image(tmp_path: Path, manifest: Manifest) -> None:
    """No maps: no array is written, and the tables are there with no rows of maps."""
    store = local_store(tmp_path)
    result = make_result(UNIT)
    failed = [{**row, "status": "decode_error", "error": "bad"} for row in result.images]
    empty = MapTargets(*([np.empty(0, np.int64)] * 2), [], [], np.empty(0, np.int32), [], *([np.empty(0)] * 3))  # type: ignore[arg-type]
    maps = np.empty((0, 3, 4), np.float32)
    sets = [MapSet("grad_cam", "layer4", False, empty, maps, statistics(maps))]
    written = sink_for(store, manifest).write(dataclasses.replace(result, images=failed, map_sets=sets))
    assert written.commit.maps == 0
    assert written.commit.images == {"decode_error": 5}
    assert [info.path.split("/")[0] for info in written.commit.objects] == ["images", "maps"]
    assert table(store, f"maps/{UNIT}-a1.parquet").schema.equals(MAPS)
    written = sink_for(store, manifest).write(make_result(unit_id(1), images=0))
    assert written.commit.images == {}


def test_what_the_sink_refuses(memory_store: LakeStore, manifest: Manifest) -> None:
    sink = sink_for(memory_store, manifest)
    good = make_result(UNIT)
    first = good.map_sets[0]
    with pytest.raises(ValueError, match="attempt id"):
        sink.write(dataclasses.replace(good, attempt="a-1"))
    with pytest.raises(ValueError, match="give one of the methods a label"):
        sink.write(dataclasses.replace(good, map_sets=[first, first]))
    wrong = dict(first.statistics) | {"vmax": first.statistics["vmax"] * 2}
    with pytest.raises(ValueError, match="vmax"):
        sink.write(dataclasses.replace(good, map_sets=[dataclasses.replace(first, statistics=wrong)]))
    wrong = dict(first.statistics) | {"not_finite": ~first.statistics["not_finite"]}
    with pytest.raises(ValueError, match="not_finite"):
        sink.write(dataclasses.replace(good, map_sets=[dataclasses.replace(first, statistics=wrong)]))
    failed = [{**row, "status": "read_error"} for row in good.images]
    with pytest.raises(ValueError, match="has maps, but its status is not 'ok'"):
        sink.write(dataclasses.replace(good, images=failed))
    assert list(memory_store.list()) == []


def test_what_a_map_set_refuses() -> None:
    first = make_result(UNIT).map_sets[0]
    with pytest.raises(ValueError, match="there are 8 targets"):
        dataclasses.replace(first, maps=first.maps[1:])
    lacking = {name: values for name, values in first.statistics.items() if name != "gini"}
    with pytest.raises(ValueError, match="gini"):
        dataclasses.replace(first, statistics=lacking)
    with pytest.raises(ValueError, match="'mass'"):
        dataclasses.replace(first, statistics=dict(first.statistics) | {"mass": first.statistics["mass"][1:]})
    short = dataclasses.replace(first.targets, is_label=[None])
    with pytest.raises(ValueError, match="'is_label'"):
        dataclasses.replace(first, targets=short)
    assert set(STATISTICS) == set(first.statistics)


# Exactly one attempt stands -----------------------------------------------------------------------------------------


def test_the_first_commit_wins(any_store: LakeStore, manifest: Manifest) -> None:
    sink = sink_for(any_store, manifest)
    assert sink.write(make_result(UNIT, "a1", seed=1)).ours
    before = contents(any_store)
    second = sink.write(make_result(UNIT, "a2", seed=2))
    assert not second.ours
    assert second.commit.attempt == "a1"
    assert contents(any_store) == before


def test_the_same_attempt_again_changes_nothing(memory_store: LakeStore, manifest: Manifest) -> None:
    sink = sink_for(memory_store, manifest)
    sink.write(make_result(UNIT, "a1", seed=1))
    before = contents(memory_store)
    again = sink.write(make_result(UNIT, "a1", seed=2))
    assert again.ours
    assert contents(memory_store) == before


def test_a_zombie_that_goes_on_after_the_commit_changes_nothing(tmp_path: Path, manifest: Manifest) -> None:
    """The zombie looks, sees no commit, is overtaken, and then writes all its objects and its commit."""
    store = local_store(tmp_path)
    rival = sink_for(store, manifest)
    overtaken: list[bool] = []

    def overtake(number: int, path: str) -> None:
        if number == 1:
            overtaken.append(rival.write(make_result(UNIT, "a2", seed=2)).ours)
            overtaken_contents.update(contents(store))

    overtaken_contents: dict[str, bytes] = {}
    zombie = sink_for(WrappedStore(str(tmp_path), before=overtake), manifest)
    written = zombie.write(make_result(UNIT, "zombie", seed=1))
    assert overtaken == [True]
    assert not written.ours
    assert written.commit.attempt == "a2"
    after = contents(store)
    assert {path: after[path] for path in overtaken_contents} == overtaken_contents
    assert all("-zombie." in path for path in set(after) - set(overtaken_contents))


def test_a_lost_reply_to_the_commit_is_success(tmp_path: Path, manifest: Manifest) -> None:
    def lose(number: int, path: str) -> None:
        if path.startswith("commits/"):
            raise StoreError("connection reset")

    sink = sink_for(WrappedStore(str(tmp_path), after=lose), manifest)
    written = sink.write(make_result(UNIT))
    assert written.ours
    assert committed(local_store(tmp_path)) == {UNIT}


def test_a_repeated_request_meets_its_own_commit(tmp_path: Path, manifest: Manifest) -> None:
    """Clients repeat a request whose reply was lost; the store then says that the object exists: it is ours."""

    class Repeats(LakeStore):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            super().put_if_absent(path, data)
            return super().put_if_absent(path, data)

    assert sink_for(Repeats(str(tmp_path)), manifest).write(make_result(UNIT)).ours


def test_a_commit_that_was_not_written_is_an_error(tmp_path: Path, manifest: Manifest) -> None:
    def fail(number: int, path: str) -> None:
        if path.startswith("commits/"):
            raise StoreError("503")

    with pytest.raises(StoreError, match="503"):
        sink_for(WrappedStore(str(tmp_path), before=fail), manifest).write(make_result(UNIT))
    assert committed(local_store(tmp_path)) == set()


def test_a_finished_lake_takes_no_more(memory_store: LakeStore) -> None:
    manifest = build(memory_store, 1)
    memory_store.delete(f"commits/{UNIT}.json")
    with pytest.raises(LakeError, match=r"is finished .*_SUCCESS\.json"):
        sink_for(memory_store, manifest).write(make_result(UNIT, "a2"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_death_at_every_write_then_again(moment: str) -> None:
    """Fail at (or right after) the k-th write, for all k; do it again until done: the lake is whole and clean."""
    number = 0
    while True:
        number += 1
        uri = f"memory://death-{moment}-{number}-{new_attempt()}/lake"
        store = LakeStore(uri)
        plan = make_plan(2)
        hooks: dict[str, Any] = {moment: failing_at(number)}
        failed = False
        for attempt in ("a1", "a2"):
            wrapped = WrappedStore(uri, **hooks)
            try:
                manifest = create_or_resume(wrapped, make_manifest(plan, run_id=f"run-{attempt}"), plan).manifest
                for unit in sorted({unit_id(0), unit_id(1)} - committed(wrapped)):
                    sink_for(wrapped, manifest).write(make_result(unit, attempt))
                finalize(wrapped)
            except CamlakeError as error:
                assert "injected" in str(error)
                failed = True
            if not failed:
                break
            hooks = {}
        result = verify(store)
        assert result.problems == [], (number, result.problems)
        assert result.committed == 2
        assert result.maps == 48
        for entry in list(store.list()):
            store.delete(entry.path)
        # A run of 2 units makes 2 + probe + 2 x (8 + 1) + 1 writes; past those the hook does nothing.
        if not failed and wrapped.puts < number:
            assert number > 22
            return


def _racer(root: str, number: int, units: int, queue: Any) -> None:
    store = LakeStore(root)
    plan = make_plan(units)
    manifest = create_or_resume(store, make_manifest(plan, run_id=f"run-{number}"), plan).manifest
    sink = sink_for(store, manifest)
    ours = [i for i in range(units) if sink.write(make_result(unit_id(i), f"p{number}", seed=number)).ours]
    queue.put((number, manifest.run_id, ours))


def test_processes_race_on_every_unit(tmp_path: Path) -> None:
    """Three processes with different bytes: one manifest, one winner a unit, everything readable."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    units = 6
    processes = [context.Process(target=_racer, args=(str(tmp_path), number, units, queue)) for number in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=90) for _ in processes]
    for process in processes:
        process.join()
    assert len({run for _, run, _ in results}) == 1
    winners = {unit: number for number, _, ours in results for unit in ours}
    assert sorted(unit for _, _, ours in results for unit in ours) == list(range(units))
    store = local_store(tmp_path)
    finalize(store)
    assert verify(store).problems == []
    for unit, number in winners.items():
        document = json.loads(store.get(layout.commit(unit_id(unit))))
        assert document["attempt"] == f"p{number}"
    with pytest.raises(MissingObjectError):
        store.get("commits/none.json")
