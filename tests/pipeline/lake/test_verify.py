"""Verification finds each kind of damage and names it, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.lake import arrays
from pipeline.lake.documents import read_commit, read_manifest, to_bytes
from pipeline.lake.run import create_or_resume
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from schemas import layout
from schemas.documents import ObjectInfo, Success
from schemas.errors import InputError, LakeError
from tests.pipeline.lake.helpers import build, contents, make_manifest, make_plan, make_result, sink_for, unit_id

UNIT = unit_id(1)
ARRAY = f"heatmaps/grad_cam/layer4/{UNIT}-a1.zarr"
SHARD = f"{ARRAY}/c/0/0/0"
IMAGES = f"images/{UNIT}-a1.parquet"
MAPS = f"maps/{UNIT}-a1.parquet"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = LakeStore(str(tmp_path_factory.mktemp("lake")))
    build(store, 3)
    return contents(store)


@pytest.fixture
def lake(pristine: dict[str, bytes], memory_store: LakeStore) -> LakeStore:
    for path, data in pristine.items():
        memory_store.put(path, data)
    return memory_store


def problems(store: LakeStore) -> list[tuple[str, str]]:
    return [(problem.kind, problem.path) for problem in verify(store).problems]


def recommit(store: LakeStore, changes: dict[str, bytes | None], **members: Any) -> None:
    """Write objects and a commit that names them: damage that no digest shows."""
    commit = read_commit(store, UNIT)
    infos = {info.path: info for info in commit.objects}
    for path, data in changes.items():
        if data is None:
            store.delete(path)
            infos.pop(path, None)
        else:
            store.put(path, data)
            infos[path] = ObjectInfo(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    changed = commit.model_copy(update={"objects": list(infos.values()), **members})
    store.put(layout.commit(UNIT), to_bytes(changed))
    store.delete(layout.SUCCESS)


def edit(store: LakeStore, path: str, change: Callable[[pa.Table], pa.Table]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(store.get(path)))), buffer)
    return buffer.getvalue()


def with_column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        values = pa.array(change(table[name].to_pylist()), field.type)
        return table.set_column(table.column_names.index(name), field, values)

    return apply


def test_a_whole_lake(any_store: LakeStore) -> None:
    build(any_store, 2)
    before = contents(any_store)
    seen: list[tuple[int, int]] = []
    result = verify(any_store, progress=lambda done, total: seen.append((done, total)))
    assert result.problems == []
    assert result.ok
    assert result.finished
    assert (result.planned, result.committed, result.quarantined, result.orphans) == (2, 2, 0, 0)
    assert (result.images, result.maps, result.arrays, result.objects) == ({"ok": 8, "decode_error": 2}, 48, 6, 16)
    assert result.bytes == sum(len(data) for path, data in before.items() if path.split("/")[0] in DATA)
    assert seen == [(1, 2), (2, 2)]
    assert contents(any_store) == before


DATA = ("images", "maps", "heatmaps")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_every_stored_type_verifies(memory_store: LakeStore, dtype: str) -> None:
    build(memory_store, 1, dtype=dtype)
    assert verify(memory_store).problems == []


def test_no_lake(memory_store: LakeStore) -> None:
    with pytest.raises(InputError, match="holds no lake"):
        verify(memory_store)


def test_an_unfinished_lake(memory_store: LakeStore) -> None:
    plan = make_plan(2)
    manifest = create_or_resume(memory_store, make_manifest(plan), plan).manifest
    sink_for(memory_store, manifest).write(make_result(unit_id(0)))
    memory_store.put(f"maps/{unit_id(1)}-x.parquet", b"in flight")
    memory_store.put(f"maps/{unit_id(0)}-x.parquet", b"a losing attempt's")
    result = verify(memory_store)
    assert not result.ok
    assert not result.finished
    assert result.orphans == 2
    assert [(p.kind, p.path) for p in result.problems] == [
        ("unit_missing", layout.commit(unit_id(1))),
        ("unfinished", layout.SUCCESS),
    ]
    assert "run the job again" in result.problems[0].message


@pytest.mark.parametrize("path", [SHARD, f"{ARRAY}/zarr.json", IMAGES, MAPS])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_objects(lake: LakeStore, path: str, damage: str) -> None:
    data = bytearray(lake.get(path))
    if damage == "flip":
        data[len(data) // 2] ^= 4
        lake.put(path, bytes(data))
    elif damage == "truncate":
        lake.put(path, bytes(data[:-3]))
    else:
        lake.delete(path)
    found = verify(lake).problems
    kinds = {"flip": "object_differs", "truncate": "object_differs", "delete": "object_missing"}
    assert (found[0].kind, found[0].path) == (kinds[damage], path)
    assert lake.where(path) in found[0].message
    assert f"delete commits/{UNIT}.json" in found[0].message
    # What follows is about the same unit only, never about another.
    assert all(UNIT in problem.path for problem in found)


def test_a_deleted_commit(lake: LakeStore) -> None:
    lake.delete(layout.commit(UNIT))
    result = verify(lake)
    kinds = [(problem.kind, problem.path) for problem in result.problems]
    assert kinds[0] == ("unit_missing", layout.commit(UNIT))
    assert all(kind == "totals" for kind, _ in kinds[1:])
    assert any("committed is 3, and the lake holds 2" in problem.message for problem in result.problems)
    assert result.orphans == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"format_version": 2}', "format_version is 2"),
        (b'{"format_version": 1}', "'unit_id' is not valid"),
    ],
)
def test_a_damaged_commit(lake: LakeStore, data: bytes, message: str) -> None:
    lake.put(layout.commit(UNIT), data)
    found = verify(lake).problems
    assert (found[0].kind, found[0].path) == ("commit", layout.commit(UNIT))
    assert message in found[0].message
    assert {problem.kind for problem in found[1:]} == {"totals"}


def test_a_commit_in_the_wrong_place(lake: LakeStore) -> None:
    lake.put(layout.commit(UNIT), lake.get(layout.commit(unit_id(0))))
    assert "is the commit of unit '000000-shard-000'" in verify(lake).problems[0].message


def test_extra_objects(lake: LakeStore) -> None:
    orphan, foreign, stranger = f"maps/{UNIT}-zombie.parquet", "maps/notes.txt", f"commits/{unit_id(9)}.json"
    for path in (orphan, foreign):
        lake.put(path, b"x")
    lake.put(stranger, lake.get(layout.commit(UNIT)))
    assert sorted(problems(lake)) == [("commit", stranger), ("foreign", foreign), ("orphan", orphan)]


def test_another_plan(lake: LakeStore) -> None:
    lake.put(layout.PLAN_UNITS, make_plan(3, "other").data)
    with pytest.raises(LakeError, match=r"plan/units\.parquet has .* bytes, and camlake\.json says"):
        verify(lake)
    old = read_manifest(lake).model_dump(mode="json", exclude={"plan", "sha256"})
    lake.put(layout.MANIFEST, json.dumps(old).encode())
    assert problems(lake) == [("plan", layout.PLAN_UNITS)]
    lake.put(layout.PLAN_UNITS, b"PAR1")
    with pytest.raises(LakeError, match=r"plan/units\.parquet"):
        verify(lake)


def test_wrong_totals(lake: LakeStore) -> None:
    success = Success.model_validate_json(lake.get(layout.SUCCESS))
    assert success.maps == 72
    lake.put(layout.SUCCESS, to_bytes(success.model_copy(update={"maps": 73})))
    result = verify(lake)
    assert [problem.message for problem in result.problems] == ["_SUCCESS.json: maps is 73, and the lake holds 72"]
    lake.put(layout.SUCCESS, b"{}")
    assert problems(lake) == [("success", layout.SUCCESS)]


def kinds_of(store: LakeStore) -> set[tuple[str, str]]:
    return set(problems(store)) - {("unfinished", layout.SUCCESS)}


def test_an_extra_row_of_maps(lake: LakeStore) -> None:
    recommit(lake, {MAPS: edit(lake, MAPS, lambda table: pa.concat_tables([table, table.slice(0, 1)]))})
    assert kinds_of(lake) == {("rows", MAPS), ("rows", ARRAY)}
    recommit(lake, {}, maps=25)  # the commit lies too
    assert kinds_of(lake) == {("rows", ARRAY)}


def test_a_missing_row_of_maps(lake: LakeStore) -> None:
    recommit(lake, {MAPS: edit(lake, MAPS, lambda table: table.slice(1))}, maps=23)
    assert kinds_of(lake) == {("rows", ARRAY)}


def test_an_extra_image(lake: LakeStore) -> None:
    recommit(lake, {IMAGES: edit(lake, IMAGES, lambda table: pa.concat_tables([table, table.slice(0, 1)]))})
    messages = [problem.message for problem in verify(lake).problems]
    assert any("has 6 rows, and its commit says 5" in message for message in messages)
    assert any("appears twice" in message for message in messages)
    assert any("counts {'ok': 5, 'decode_error': 1}" in message for message in messages)


def test_a_map_of_a_failed_image_and_of_none(lake: LakeStore) -> None:
    bad = [f"{UNIT}/0001", "nobody"]
    recommit(lake, {MAPS: edit(lake, MAPS, with_column("image_id", lambda ids: bad + ids[2:]))})
    messages = [problem.message for problem in verify(lake).problems if problem.kind == "rows"]
    assert any(f"image '{UNIT}/0001' has a map, but status 'decode_error'" in message for message in messages)
    assert any("image 'nobody' has a map, but no row" in message for message in messages)


def test_a_row_of_another_unit(lake: LakeStore) -> None:
    recommit(lake, {MAPS: edit(lake, MAPS, with_column("unit_id", lambda ids: [unit_id(0), *ids[1:]]))})
    assert kinds_of(lake) == {("rows", MAPS)}


def test_a_row_that_points_nowhere(lake: LakeStore) -> None:
    other = ARRAY.replace("-a1", "-a2")
    recommit(lake, {MAPS: edit(lake, MAPS, with_column("store_path", lambda paths: [other, *paths[1:]]))})
    assert kinds_of(lake) == {("rows", MAPS), ("rows", ARRAY)}


def test_a_lacking_column_and_no_table(lake: LakeStore) -> None:
    recommit(lake, {MAPS: edit(lake, MAPS, lambda table: table.drop_columns(["entropy"]))})
    assert "lacks the column 'entropy'" in verify(lake).problems[0].message
    recommit(lake, {MAPS: b"PAR1 not at all"})
    assert kinds_of(lake) == {("table", MAPS)}
    recommit(lake, {MAPS: None})
    assert kinds_of(lake) == {("commit", layout.commit(UNIT))}


def array_objects(lake: LakeStore, change: Callable[[Any], Any], **attributes: Any) -> dict[str, bytes | None]:
    found, values = arrays.decode(lake.get(f"{ARRAY}/zarr.json"), lake.get(SHARD), ARRAY)
    encoded = arrays.encode(change(values.copy()), {**found.attributes, **attributes})
    return {f"{ARRAY}/{name}": data for name, data in encoded.items()}


def set_map(number: int, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[number] = value
        return values

    return change


def flagged(lake: LakeStore, flag: str) -> int:
    table = pq.read_table(io.BytesIO(lake.get(MAPS)))
    rows = table.filter((pc.field("store_path") == ARRAY) & pc.field(flag)).to_pylist()
    return int(rows[0]["store_row"])


def plain(lake: LakeStore) -> int:
    table = pq.read_table(io.BytesIO(lake.get(MAPS)))
    good = ~pc.field("all_zero") & ~pc.field("not_finite")
    return int(table.filter((pc.field("store_path") == ARRAY) & good).to_pylist()[0]["store_row"])


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (plain, 0.5, "is not scaled by its largest value"),
        (plain, 0.0, "is not scaled by its largest value"),
        (plain, np.nan, "is not scaled by its largest value"),
        (plain, -1.0, "holds negative values"),
        (lambda lake: flagged(lake, "all_zero"), 1.0, "is flagged all_zero, but is not"),
        (lambda lake: flagged(lake, "not_finite"), 1.0, "is flagged not_finite, but holds values"),
    ],
)
def test_values_that_contradict_the_table(lake: LakeStore, which: Any, value: float, message: str) -> None:
    number = which(lake)
    recommit(lake, array_objects(lake, set_map(number, value)))
    (problem, _) = verify(lake).problems
    assert (problem.kind, problem.path) == ("values", ARRAY)
    assert f"map {number} {message}" in problem.message


@pytest.mark.parametrize(("flag", "message"), [("all_zero", "flag all_zero"), ("not_finite", "flag")])
def test_flags_that_contradict_vmax(lake: LakeStore, flag: str, message: str) -> None:
    recommit(lake, {MAPS: edit(lake, MAPS, with_column(flag, lambda values: [True] * len(values)))})
    found = [problem for problem in verify(lake).problems if problem.kind == "values"]
    assert found
    assert all(message in problem.message or "flagged" in problem.message for problem in found)


def test_arrays_of_the_wrong_shape_or_name(lake: LakeStore) -> None:
    recommit(lake, array_objects(lake, lambda values: np.pad(values, ((0, 0), (0, 1), (0, 0)))))
    assert "holds maps of (4, 4), and layer 'layer4' has [(3, 4)]" in verify(lake).problems[0].message
    recommit(lake, array_objects(lake, lambda values: values[:, :3], layer="layer3"))
    assert "says method 'grad_cam', layer 'layer3'" in verify(lake).problems[0].message


def test_an_array_that_does_not_decode(lake: LakeStore) -> None:
    recommit(lake, {SHARD: lake.get(SHARD)[:-7]})
    assert kinds_of(lake) == {("array", ARRAY)}
    recommit(lake, {SHARD: None})
    assert kinds_of(lake) == {("rows", MAPS)}


def test_image_ids_that_two_units_share(lake: LakeStore) -> None:
    shared = f"{unit_id(0)}/0004"
    path = f"images/{UNIT}-a1.parquet"
    maps = edit(lake, MAPS, with_column("image_id", lambda ids: [shared if i == f"{UNIT}/0004" else i for i in ids]))
    recommit(lake, {path: edit(lake, path, with_column("image_id", lambda ids: [*ids[:4], shared])), MAPS: maps})
    (problem, _) = verify(lake).problems
    assert (problem.kind, problem.path) == ("image_id", path)
    assert f"image id '{shared}' is in unit {unit_id(0)} too" in problem.message


def test_local_damage_on_disk(tmp_path: Path) -> None:
    """The same through the local file system, where an emptied file is the usual damage."""
    store = LakeStore(str(tmp_path))
    build(store, 2)
    (tmp_path / SHARD).write_bytes(b"")
    assert problems(store)[0] == ("object_differs", SHARD)
