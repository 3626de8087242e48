"""Creating, resuming and finishing a lake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.lake.documents import read_success
from pipeline.lake.heatmap_contents import HeatmapContents
from pipeline.lake.local import PARTIAL_SUFFIX
from pipeline.lake.plan import digest_of, freeze, read_plan
from pipeline.lake.run import committed, create_or_resume, finalize, quarantine, quarantined
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from schemas import layout
from schemas.documents import Attempt, Manifest, Quarantine
from schemas.errors import InputError, LakeError
from schemas.unit import Unit
from tests.pipeline.lake.helpers import (
    WrappedStore,
    build,
    contents,
    make_job,
    make_manifest,
    make_plan,
    make_result,
    sink_for,
    unit_id,
)


def given_up(index: int) -> Quarantine:
    attempt = Attempt(attempt="x1", when="2026-01-02T03:04:05+00:00", worker="w", kind="died", reason="signal 9")
    return Quarantine(unit_id=unit_id(index), created="2026-01-02T03:04:05+00:00", attempts=[attempt])


# The plan -----------------------------------------------------------------------------------------------------------


def test_plan_round_trip_and_digest(memory_store: LakeStore) -> None:
    units = [
        Unit("000000-a", 0, "s3://b/a.tar", byte_size=3, etag="x"),
        Unit("000001-b", 1, "s3://b", start=4, stop=9, members=("a.jpg", "b/c.jpg")),
    ]
    plan = freeze(units)
    memory_store.put(layout.PLAN_UNITS, plan.data)
    assert list(read_plan(memory_store)) == units
    assert digest_of(plan.data, "p") == plan.digest == freeze(iter(units)).digest
    for change in ({"etag": "y"}, {"byte_size": None}, {"uri": "s3://b/c.tar"}):
        assert freeze([dataclasses.replace(units[0], **change), units[1]]).digest != plan.digest  # type: ignore[arg-type]


def test_plan_refuses_nothing_and_repetition() -> None:
    with pytest.raises(InputError, match=r"source\.uri"):
        freeze([])
    with pytest.raises(ValueError, match="repeats an id or an index"):
        freeze([Unit("a", 0, "u"), Unit("a", 1, "u")])
    with pytest.raises(ValueError, match="repeats an id or an index"):
        freeze([Unit("a", 0, "u"), Unit("b", 2, "u")])


def test_a_damaged_plan_is_named(memory_store: LakeStore) -> None:
    with pytest.raises(LakeError, match=r"plan/units\.parquet is not there"):
        list(read_plan(memory_store))
    memory_store.put(layout.PLAN_UNITS, b"PAR1 no")
    with pytest.raises(LakeError, match=r"plan/units\.parquet is no sound Parquet"):
        list(read_plan(memory_store))


# Creating and resuming ----------------------------------------------------------------------------------------------


def test_create_then_resume(any_store: LakeStore) -> None:
    plan = make_plan()
    first = create_or_resume(any_store, make_manifest(plan), plan)
    assert not first.resumed
    assert set(contents(any_store)) == {"camlake.json", "plan/units.parquet"}
    second = create_or_resume(any_store, make_manifest(plan, run_id="run-2", versions={"zarr": "4"}), plan)
    assert second.resumed
    assert second.manifest == first.manifest
    assert second.manifest.run_id == "run-1"


def test_resume_with_other_workers_and_place_is_the_same_job(memory_store: LakeStore) -> None:
    plan = make_plan()
    create_or_resume(memory_store, make_manifest(plan), plan)
    job = make_job("elsewhere", workers={"max": 9}, max_failed=3, compute={"batch_size": 2})
    assert create_or_resume(memory_store, make_manifest(plan, job, run_id="run-2"), plan).resumed


def model_with(**changes: Any) -> dict[str, Any]:
    return {"model": make_manifest(make_plan()).model.model_copy(update=changes)}


def methods_with(**changes: Any) -> dict[str, Any]:
    methods = make_manifest(make_plan()).methods
    return {"methods": [methods[0].model_copy(update=changes), *methods[1:]]}


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ({"targets": {"top_k": 3}}, {}, r"targets\.top_k was 2 and is 3"),
        ({"targets": "predicted"}, {}, r"targets\.predicted was false and is true; targets\.top_k was 2 and is null"),
        ({"methods": ["grad_cam"]}, {}, r"methods\[1\]\.name was \"layer_cam\" and is absent"),
        ({"output": {"uri": "lake", "dtype": "uint8"}}, {}, r'output\.dtype was "float16" and is "uint8"'),
        ({"compute": {"seed": 7}}, {}, r"compute\.seed was 0 and is 7"),
        ({}, model_with(digest="cd" * 32), r'model \(as loaded\)\.digest was "abab'),
        ({}, model_with(class_names=["ant", "bee", "cow", "dog"]), r'class_names\[2\] was "cat" and is "cow"'),
        (
            {},
            methods_with(parameters={"samples": 8}),
            r"methods \(as resolved\)\[0\]\.parameters was \{\} and is absent",
        ),
        ({}, {"attributes": {"site": "string"}}, r'attributes\.age was "int64" and is absent'),
        ({}, {"job_digest": "00"}, r'job_digest was ".*" and is "00"'),
    ],
)
def test_resume_of_another_job_names_the_difference(
    memory_store: LakeStore, job: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    plan = make_plan()
    create_or_resume(memory_store, make_manifest(plan), plan)
    before = contents(memory_store)
    with pytest.raises(InputError, match=message) as caught:
        create_or_resume(memory_store, make_manifest(plan, make_job(**job), run_id="run-2", **changes), plan)
    assert "give another output.uri" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(memory_store) == before


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (make_plan(4), r"the inputs were 3 units and are 4 \(unit 000003-shard-003"),
        (make_plan(2), r"the inputs were 3 units and are 2 \(unit 000002-shard-002"),
        (make_plan(3, "other"), r'from unit 000000-shard-000 on: uri was "shards/shard-000\.tar" and is "shards/other'),
    ],
)
def test_resume_with_other_inputs_names_the_difference(memory_store: LakeStore, plan: Any, message: str) -> None:
    first = make_plan(3)
    create_or_resume(memory_store, make_manifest(first), first)
    with pytest.raises(InputError, match=message):
        create_or_resume(memory_store, make_manifest(plan, run_id="run-2"), plan)


def test_many_differences_are_counted(memory_store: LakeStore) -> None:
    plan = make_plan()
    create_or_resume(memory_store, make_manifest(plan), plan)
    other = make_manifest(plan, run_id="run-2", **model_with(class_names=[f"c{i}" for i in range(50)], num_classes=50))
    with pytest.raises(InputError, match=r"\(and 47 more\)"):
        create_or_resume(memory_store, other, plan)


def test_another_format_version_is_refused(memory_store: LakeStore) -> None:
    plan = make_plan()
    manifest = make_manifest(plan)
    memory_store.put(
        layout.MANIFEST, manifest.model_dump_json().replace('"format_version":1', '"format_version":9').encode()
    )
    with pytest.raises(InputError, match=r"format_version is 9, and this release reads 1.*another output\.uri"):
        create_or_resume(memory_store, manifest, plan)
    memory_store.put(layout.MANIFEST, b"{")
    with pytest.raises(InputError, match=r"camlake\.json is no JSON"):
        create_or_resume(memory_store, manifest, plan)
    memory_store.put(layout.MANIFEST, b'{"format_version": 1}')
    with pytest.raises(InputError, match=r"camlake\.json: 'created' is not valid"):
        create_or_resume(memory_store, manifest, plan)


def test_a_folder_with_other_files_is_refused(any_store: LakeStore) -> None:
    """A sweep in a folder of pictures would be a disaster: images/ is a common name."""
    any_store.put("images/holiday.jpg", b"precious")
    plan = make_plan()
    with pytest.raises(InputError, match=r"not empty and is no lake \(it holds images/holiday\.jpg"):
        create_or_resume(any_store, make_manifest(plan), plan)
    assert set(contents(any_store)) == {"images/holiday.jpg"}


def test_a_start_that_died_before_the_manifest_is_repeated(memory_store: LakeStore) -> None:
    plan = make_plan()
    memory_store.put(layout.PLAN_UNITS, plan.data)
    memory_store.put(".camlake-probe-123", b"")
    assert not create_or_resume(memory_store, make_manifest(plan), plan).resumed
    other = make_plan(2)
    memory_store.delete(layout.MANIFEST)
    with pytest.raises(InputError, match=r"plan/units\.parquet is the plan of another job"):
        create_or_resume(memory_store, make_manifest(other), other)


def test_two_drivers_start_at_once(tmp_path: Path) -> None:
    """The second to write the manifest goes on with the first one's."""
    plan = make_plan()
    rival = LakeStore(str(tmp_path))

    def overtake(number: int, path: str) -> None:
        if path == layout.MANIFEST:
            rival.put_if_absent(path, make_manifest(plan, run_id="rival").model_dump_json().encode())

    run = create_or_resume(WrappedStore(str(tmp_path), before=overtake), make_manifest(plan), plan)
    assert run.resumed
    assert run.manifest.run_id == "rival"


def test_lost_reply_to_the_manifest(tmp_path: Path) -> None:
    class Repeats(LakeStore):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            done = super().put_if_absent(path, data)
            return done if path.startswith(".camlake") else super().put_if_absent(path, data)

    plan = make_plan()
    assert not create_or_resume(Repeats(str(tmp_path)), make_manifest(plan), plan).resumed


def test_manifest_and_plan_must_agree(memory_store: LakeStore) -> None:
    with pytest.raises(ValueError, match="inputs_digest"):
        create_or_resume(memory_store, make_manifest(make_plan(2)), make_plan(3))


# Finishing ----------------------------------------------------------------------------------------------------------


def test_committed_and_quarantined_are_one_listing_each(tmp_path: Path) -> None:
    store = LakeStore(str(tmp_path))
    build(store, 2, finish=False)
    (tmp_path / "commits" / f".x.json.12345678{PARTIAL_SUFFIX}").write_bytes(b"")
    assert committed(store) == {unit_id(0), unit_id(1)}
    assert quarantined(store) == set()
    assert quarantine(store, given_up(2))
    assert not quarantine(store, given_up(2))
    assert quarantined(store) == {unit_id(2)}


def test_finish(any_store: LakeStore) -> None:
    build(any_store, 3, finish=False)
    success = finalize(any_store)
    data = contents(any_store)
    objects = [path for path in data if path.split("/")[0] in ("images", "maps", "heatmaps")]
    assert (success.units, success.committed, success.quarantined) == (3, 3, 0)
    assert success.images == {"decode_error": 3, "ok": 12}
    assert success.maps == 72
    assert success.objects == len(objects) == 24
    assert success.bytes == sum(len(data[path]) for path in objects)
    assert success.orphans_removed == 0
    assert read_success(any_store) == success


def test_a_whole_lake_takes_no_write(tmp_path: Path) -> None:
    store = LakeStore(str(tmp_path))
    build(store, 2)
    before = contents(store)
    counted = WrappedStore(str(tmp_path))
    plan = make_plan(2)
    run = create_or_resume(counted, make_manifest(plan, run_id="again"), plan)
    assert committed(counted) == {unit.unit_id for unit in read_plan(counted)}
    finalize(counted)
    sink_for(counted, run.manifest).write(make_result(unit_id(0), "a9", seed=9))
    assert counted.puts == 0
    assert contents(store) == before


def test_finish_refuses_a_lake_with_holes(memory_store: LakeStore) -> None:
    build(memory_store, 3, finish=False)
    memory_store.delete(f"commits/{unit_id(1)}.json")
    with pytest.raises(LakeError, match=r"1 of 3 units have no result \(000001-shard-001\); run the job again"):
        finalize(memory_store)
    assert read_success(memory_store) is None


def test_finish_refuses_a_commit_of_another_plan(memory_store: LakeStore) -> None:
    manifest = build(memory_store, 1, finish=False)
    sink_for(memory_store, manifest).write(make_result(unit_id(7)))
    with pytest.raises(LakeError, match="the plan has no such unit"):
        finalize(memory_store)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], r"has \d+ bytes, and its commit says"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "SHA-256 differs"),
        (lambda data: None, "is not there"),
    ],
)
def test_finish_checks_every_object(memory_store: LakeStore, damage: Any, message: str) -> None:
    build(memory_store, 2, finish=False)
    path = f"heatmaps/grad_cam/layer4/{unit_id(1)}-a1.zarr/c/0/0/0"
    data = damage(memory_store.get(path))
    memory_store.delete(path)
    if data is not None:
        memory_store.put(path, data)
    with pytest.raises(LakeError, match=f"{message}.*delete commits/{unit_id(1)}.json"):
        finalize(memory_store)
    assert read_success(memory_store) is None


def test_finish_sweeps_what_losing_attempts_left_and_nothing_else(tmp_path: Path) -> None:
    store = LakeStore(str(tmp_path))
    build(store, 2, finish=False)
    before = contents(store)
    orphans = [
        f"images/{unit_id(0)}-dead.parquet",
        f"maps/{unit_id(1)}-dead.parquet",
        f"heatmaps/grad_cam/layer4/{unit_id(0)}-dead.zarr/zarr.json",
        f"heatmaps/grad_cam/layer4/{unit_id(0)}-dead.zarr/c/0/0/0",
        f"maps/.{unit_id(1)}-a1.parquet.0123abcd{PARTIAL_SUFFIX}",
        ".camlake-probe-77",
    ]
    foreign = ["images/holiday.jpg", "README.md", f"maps/{unit_id(9)}-a1.parquet", "maps/notes-x.parquet.bak"]
    for path in orphans + foreign:
        store.put(path, b"x")
    assert finalize(store).orphans_removed == len(orphans)
    after = contents(store)
    assert set(after) == {*before, *foreign, "_SUCCESS.json"}
    assert not (tmp_path / f"heatmaps/grad_cam/layer4/{unit_id(0)}-dead.zarr").exists()
    # Left by a zombie after the end: swept when it is finished again.
    store.put(orphans[0], b"x")
    success = finalize(store)
    assert success.orphans_removed == len(orphans)
    assert set(contents(store)) == set(after)


def test_quarantined_units_count_and_their_slots_are_closed(tmp_path: Path) -> None:
    """A worker given up for dead commits during finalize, after the sweep: it must lose."""
    store = LakeStore(str(tmp_path))
    manifest = build(store, 2, finish=False)
    store.delete(f"commits/{unit_id(1)}.json")
    quarantine(store, given_up(1))
    late: list[Any] = []

    def zombie(number: int, path: str) -> None:
        if path == layout.SUCCESS:
            late.append(sink_for(store, manifest).write(make_result(unit_id(1), "zombie")))

    success = finalize(WrappedStore(str(tmp_path), before=zombie))
    assert (success.committed, success.quarantined) == (1, 1)
    assert success.images == {"decode_error": 1, "ok": 4}
    assert success.orphans_removed == 8
    assert not late[0].ours
    assert late[0].commit.objects == []
    assert verify(store).problems == []
    assert verify(store).quarantined == 1


def test_a_quarantined_unit_that_is_committed_after_all_has_a_result(memory_store: LakeStore) -> None:
    build(memory_store, 2, finish=False)
    quarantine(memory_store, given_up(1))
    success = finalize(memory_store)
    assert (success.committed, success.quarantined, success.orphans_removed) == (2, 0, 1)
    # Its record says nothing any more; one that comes late is found, and swept by the next run.
    assert quarantined(memory_store) == set()
    quarantine(memory_store, given_up(1))
    (problem,) = verify(memory_store).problems
    assert (problem.kind, problem.path) == ("orphan", f"quarantine/{unit_id(1)}.json")
    finalize(memory_store)
    assert verify(memory_store).ok


def test_repair_after_the_end(memory_store: LakeStore) -> None:
    """The remedy that the messages give works."""
    manifest = build(memory_store, 2)
    memory_store.put(f"images/{unit_id(0)}-a1.parquet", b"damaged")
    (problem, *_) = verify(memory_store).problems
    assert f"delete commits/{unit_id(0)}.json (and _SUCCESS.json where it is there)" in problem.message
    memory_store.delete(f"commits/{unit_id(0)}.json")
    memory_store.delete("_SUCCESS.json")
    assert sink_for(memory_store, manifest).write(make_result(unit_id(0), "a2")).ours
    assert finalize(memory_store).orphans_removed == 8
    assert verify(memory_store).problems == []


def test_interrupted_equals_uninterrupted(tmp_path: Path) -> None:
    """Row for row and bit for bit, but for the names of the attempts."""
    whole, broken = LakeStore(str(tmp_path / "a")), LakeStore(str(tmp_path / "b"))
    build(whole, 3)
    manifest = build(broken, 3, finish=False)
    broken.delete(f"commits/{unit_id(1)}.json")
    sink_for(broken, manifest).write(make_result(unit_id(1), "a2"))
    finalize(broken)
    for i in range(3):
        names = [f"heatmaps/layer_cam/layer3+layer4/{unit_id(i)}-%s.zarr/c/0/0/0", f"images/{unit_id(i)}-%s.parquet"]
        attempt = "a2" if i == 1 else "a1"
        assert whole.get(names[0] % "a1") == broken.get(names[0] % attempt)
        tables = [
            pq.read_table(store.fs.open(f"{store.root}/{names[1] % kind}"))
            for store, kind in ((whole, "a1"), (broken, attempt))
        ]
        assert tables[0].to_pylist() == tables[1].to_pylist()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/000001-a-b-x1.parquet", ("000001-a-b", "x1")),
        ("heatmaps/m/l/000001-a-x1.zarr/c/0/0/0", ("000001-a", "x1")),
        ("heatmaps/m/l/000001-a-x1.zarr/other", None),
        ("images/photo.jpg", None),
        ("images/photo.parquet", None),
        ("commits/000001-a.json", None),
    ],
)
def test_owner(path: str, expected: tuple[str, str] | None) -> None:
    contents = HeatmapContents(LakeStore("memory://lake"), make_manifest(make_plan()))
    assert contents.owner(path) == expected


def test_manifest_documents_are_frozen() -> None:
    manifest: Manifest = make_manifest(make_plan())
    with pytest.raises(ValueError, match="frozen"):
        manifest.run_id = "x"  # type: ignore[misc]
