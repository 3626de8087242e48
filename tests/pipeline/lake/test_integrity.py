"""Verification finds every flipped byte, every truncation and every deletion in a lake, and names the object."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.lake.documents import read_commit, read_manifest, read_quarantine, read_success
from pipeline.lake.reader import open_lake
from pipeline.lake.run import create_or_resume, finalize, quarantine
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from schemas import layout
from schemas.documents import Attempt, Quarantine
from schemas.errors import CamlakeError, InputError, LakeError
from tests.pipeline.lake.helpers import contents, make_manifest, make_plan, make_result, sink_for, unit_id

SEED = 20
FLIPS = 24
CUTS = 6
GIVEN_UP = unit_id(2)


def build(store: LakeStore) -> None:
    """A finished lake: two units of two methods, and one that was given up."""
    plan = make_plan(3)
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    for i in range(2):
        result = make_result(unit_id(i), images=3)
        sink_for(store, manifest).write(dataclasses.replace(result, map_sets=result.map_sets[:2]))
    history = [Attempt(attempt="a1", when="2026-01-02", worker="w1", kind="died", reason="killed by signal 9")]
    quarantine(store, Quarantine(unit_id=GIVEN_UP, created="2026-01-02", attempts=history))
    finalize(store)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = LakeStore(str(tmp_path_factory.mktemp("lake")))
    build(store)
    return contents(store)


PATHS = [
    "camlake.json",
    "plan/units.parquet",
    f"commits/{unit_id(0)}.json",
    f"commits/{GIVEN_UP}.json",
    f"quarantine/{GIVEN_UP}.json",
    "_SUCCESS.json",
    f"images/{unit_id(1)}-a1.parquet",
    f"maps/{unit_id(1)}-a1.parquet",
    *(
        f"heatmaps/{folder}/{unit_id(1)}-a1.zarr/{name}"
        for folder in ("grad_cam/layer4", "layer_cam/layer3+layer4")
        for name in ("zarr.json", "c/0/0/0")
    ),
]
DOCUMENTS: dict[str, Callable[[LakeStore], object]] = {
    "camlake.json": read_manifest,
    f"commits/{unit_id(0)}.json": lambda store: read_commit(store, unit_id(0)),
    f"commits/{GIVEN_UP}.json": lambda store: read_commit(store, GIVEN_UP),
    f"quarantine/{GIVEN_UP}.json": lambda store: read_quarantine(store, GIVEN_UP),
    "_SUCCESS.json": read_success,
}


@pytest.fixture
def lake(pristine: dict[str, bytes], memory_store: LakeStore) -> LakeStore:
    for path, data in pristine.items():
        memory_store.put(path, data)
    return memory_store


def flipped(data: bytes, offset: int, mask: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


def blanks(data: bytes) -> Iterator[bytes]:
    """``data`` with each newline as a space, and each space as a newline: JSON does not mind."""
    for offset, byte in enumerate(data):
        if byte in b" \n":
            yield flipped(data, offset, ord(" ") ^ ord("\n"))


def named_by_verify(store: LakeStore, path: str) -> bool:
    try:
        return path in {problem.path for problem in verify(store, threads=1).problems}
    except CamlakeError as error:
        return path in str(error)


def test_the_lake_is_sound_and_every_kind_of_object_is_tried(lake: LakeStore, pristine: dict[str, bytes]) -> None:
    assert verify(lake).problems == []
    kind = {path.replace(unit_id(1), "*").replace(unit_id(0), "*") for path in pristine}
    assert kind == {path.replace(unit_id(1), "*").replace(unit_id(0), "*") for path in PATHS}


@pytest.mark.parametrize("path", PATHS)
def test_verify_names_the_object_that_was_changed(lake: LakeStore, pristine: dict[str, bytes], path: str) -> None:
    data, rng = pristine[path], random.Random(f"{SEED} {path}")
    offsets = sorted({0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(FLIPS))})
    changed = [(f"flip at {offset}", flipped(data, offset, rng.randrange(1, 256))) for offset in offsets]
    lengths = sorted({0, 1, len(data) - 1, *(rng.randrange(len(data)) for _ in range(CUTS))})
    changed += [(f"cut to {length}", data[:length]) for length in lengths]
    changed += [("a byte more", data + b"\n"), ("two blanks", next(blanks(data), b""))]
    missed = []
    for what, other in changed:
        lake.put(path, other)
        if not named_by_verify(lake, path):
            missed.append(what)
    lake.delete(path)
    assert named_by_verify(lake, path), "its deletion"
    assert not missed
    lake.put(path, data)
    assert verify(lake).problems == []


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_byte_of_a_document_counts(lake: LakeStore, pristine: dict[str, bytes], path: str) -> None:
    data, rng = pristine[path], random.Random(f"{SEED} {path}")
    changed = [flipped(data, offset, rng.randrange(1, 256)) for offset in range(len(data))]
    changed += [*blanks(data), *(data[:length] for length in range(len(data)))]
    read = DOCUMENTS[path]
    read(lake)
    for other in changed:
        lake.put(path, other)
        with pytest.raises(LakeError) as caught:
            read(lake)
        assert lake.where(path) in str(caught.value)


def test_a_document_says_its_digest_as_the_format_describes_it(pristine: dict[str, bytes]) -> None:
    for path in DOCUMENTS:
        data = pristine[path]
        said = json.loads(data)["sha256"]
        assert data.count(said.encode()) == 1
        assert hashlib.sha256(data.replace(said.encode(), b"0" * 64)).hexdigest() == said


def test_documents_without_digests_are_read(lake: LakeStore, pristine: dict[str, bytes]) -> None:
    for path in DOCUMENTS:
        members = {name: value for name, value in json.loads(pristine[path]).items() if name not in ("sha256", "plan")}
        lake.put(path, json.dumps(members).encode())
    assert verify(lake).problems == []
    assert read_manifest(lake).sha256 is read_manifest(lake).plan is None


def test_the_golden_lake_has_no_digests_and_is_read(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "golden" / "v1" / "lake", tmp_path / "v1")
    store = LakeStore(str(tmp_path / "v1"))
    assert read_manifest(store).sha256 is None
    assert verify(store).problems == []


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("camlake.json", "restore it from a copy"),
        ("plan/units.parquet", "restore it from a copy"),
        (f"commits/{unit_id(0)}.json", "delete it .*and run the job again"),
        (f"quarantine/{GIVEN_UP}.json", "delete it, its unit's commit and .* run the job again"),
        ("_SUCCESS.json", "delete it and run the job again"),
    ],
)
def test_the_message_says_what_to_do(lake: LakeStore, pristine: dict[str, bytes], path: str, remedy: str) -> None:
    lake.put(path, flipped(pristine[path], 200, 1))
    with pytest.raises(LakeError, match=f"(SHA-256 differs|it is damaged).*{remedy}"):
        verify(lake, threads=1)
        raise LakeError("; ".join(problem.message for problem in verify(lake).problems))


def test_a_damaged_lake_is_neither_read_nor_resumed_nor_finished(lake: LakeStore, pristine: dict[str, bytes]) -> None:
    plan = make_plan(3)
    again = make_manifest(plan, run_id="run-2")
    for path in ("camlake.json", "plan/units.parquet"):
        lake.put(path, flipped(pristine[path], 100, 1))
        with pytest.raises(InputError, match=f"cannot be resumed: .*{path}"):
            create_or_resume(lake, again, plan)
        lake.put(path, pristine[path])
    assert create_or_resume(lake, again, plan).resumed
    lake.put(f"commits/{unit_id(0)}.json", flipped(pristine[f"commits/{unit_id(0)}.json"], 100, 1))
    with pytest.raises(LakeError, match=unit_id(0)):
        open_lake(lake.uri)
    with pytest.raises(LakeError, match=unit_id(0)):
        sink_for(lake, read_manifest(lake)).write(make_result(unit_id(0), "a2"))
    lake.put(f"commits/{unit_id(0)}.json", pristine[f"commits/{unit_id(0)}.json"])
    for path in (f"quarantine/{GIVEN_UP}.json", "plan/units.parquet", f"images/{unit_id(1)}-a1.parquet"):
        lake.delete(layout.SUCCESS)
        lake.put(path, flipped(pristine[path], 100, 1))
        with pytest.raises(LakeError, match=path):
            finalize(lake)
        lake.put(path, pristine[path])
    assert finalize(lake).quarantined == 1
    assert verify(lake).problems == []


def test_a_given_up_unit_needs_its_record_and_its_slot(lake: LakeStore, pristine: dict[str, bytes]) -> None:
    lake.put("quarantine/000009-shard-009.json", pristine[f"quarantine/{GIVEN_UP}.json"])
    (problem,) = verify(lake).problems
    assert (problem.kind, problem.path) == ("quarantine", "quarantine/000009-shard-009.json")
    lake.delete("quarantine/000009-shard-009.json")
    lake.put(f"quarantine/{unit_id(1)}.json", pristine[f"quarantine/{GIVEN_UP}.json"])
    problem, orphan = verify(lake).problems
    assert (orphan.kind, orphan.path) == ("orphan", f"quarantine/{unit_id(1)}.json")
    assert f"is the record of unit '{GIVEN_UP}'" in problem.message
