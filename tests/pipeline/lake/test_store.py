"""The store's contract, the same on a local disk, in memory and on S3."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.lake import local
from pipeline.lake.store import LakeStore, MissingObjectError, StoreError
from schemas.errors import AccessError, InputError


def test_put_get_overwrite_and_range(any_store: LakeStore) -> None:
    any_store.put("a/b.bin", b"0123456789")
    assert any_store.get("a/b.bin") == b"0123456789"
    assert any_store.get_range("a/b.bin", 3, 6) == b"345"
    assert any_store.get_range("a/b.bin", 3, 3) == b""
    assert any_store.size("a/b.bin") == 10
    any_store.put("a/b.bin", b"xy")
    assert any_store.get("a/b.bin") == b"xy"


def test_missing_objects_are_named(any_store: LakeStore) -> None:
    any_store.put("a/b.bin", b"x")
    assert any_store.exists("a/b.bin")
    for path in ("none.bin", "a", "a/b"):
        assert not any_store.exists(path)
        with pytest.raises(MissingObjectError, match=path):
            any_store.size(path)
    with pytest.raises(MissingObjectError, match=r"none\.bin"):
        any_store.get("none.bin")


def test_a_range_beyond_the_end_is_an_error(any_store: LakeStore) -> None:
    any_store.put("a.bin", b"0123")
    with pytest.raises(StoreError, match=r"a\.bin"):
        any_store.get_range("a.bin", 2, 9)
    with pytest.raises(StoreError, match=r"a\.bin"):
        any_store.get_range("a.bin", 7, 9)


def test_create_only(any_store: LakeStore) -> None:
    assert any_store.put_if_absent("c/u.json", b"first")
    assert not any_store.put_if_absent("c/u.json", b"second")
    assert any_store.get("c/u.json") == b"first"


def test_listing_is_recursive_relative_and_never_stale(any_store: LakeStore) -> None:
    assert list(any_store.list()) == []
    assert list(any_store.list("commits")) == []
    for path in ("commits/a.json", "commits/b.json", "commits-other/x", "deep/1/2/3.bin"):
        any_store.put(path, b"1234")
    assert {entry.path for entry in any_store.list("commits")} == {"commits/a.json", "commits/b.json"}
    any_store.put("commits/c.json", b"12")
    assert {(entry.path, entry.size) for entry in any_store.list("commits")} == {
        ("commits/a.json", 4),
        ("commits/b.json", 4),
        ("commits/c.json", 2),
    }
    assert {entry.path for entry in any_store.list()} >= {"deep/1/2/3.bin", "commits-other/x"}
    any_store.delete("commits/a.json")
    assert {entry.path for entry in any_store.list("commits")} == {"commits/b.json", "commits/c.json"}


def test_listing_pages(s3_store: Any) -> None:
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    for i in range(7):
        store.put(f"commits/{i}.json", b"x")
    original = store.fs.call_s3
    calls = []

    def small_pages(method: str, **kwargs: Any) -> Any:
        calls.append(method)
        return original(method, MaxKeys=3, **kwargs)

    store.fs.call_s3 = small_pages
    try:
        assert sorted(entry.path for entry in store.list("commits")) == [f"commits/{i}.json" for i in range(7)]
    finally:
        del store.fs.call_s3
    assert len(calls) == 3


def test_look_ups_do_not_trust_old_listings(s3_store: Any) -> None:
    """fsspec keeps listings; an object of another process would not be seen."""
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    store.put("commits/a.json", b"x")
    store.fs.ls(f"{store.root}/commits")
    s3_store.put("lake/commits/b.json", b"12")
    assert store.exists("commits/b.json")
    assert store.size("commits/b.json") == 2


def test_delete_twice(any_store: LakeStore) -> None:
    any_store.put("a/b/c.bin", b"x")
    any_store.delete("a/b/c.bin")
    any_store.delete("a/b/c.bin")
    assert not any_store.exists("a/b/c.bin")


def test_probe_leaves_nothing(any_store: LakeStore) -> None:
    any_store.probe()
    assert list(any_store.list()) == []


def test_pickle(any_store: LakeStore) -> None:
    any_store.put("a.bin", b"x")
    copy = pickle.loads(pickle.dumps(any_store))
    assert copy.get("a.bin") == b"x"
    assert copy.uri == any_store.uri


# Not on S3: the test server itself is not atomic, and S3's own word is taken.
@pytest.mark.parametrize("any_store", ["local", "memory"], indirect=True)
def test_threads_race_for_one_object(any_store: LakeStore) -> None:
    wins: list[int] = []
    barrier = threading.Barrier(8)

    def run(number: int) -> None:
        for key in range(20):
            barrier.wait()
            if any_store.put_if_absent(f"k/{key}", bytes([number]) * 5000):
                wins.append(key)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(20))
    for key in range(20):
        assert len(set(any_store.get(f"k/{key}"))) == 1


def _race(root: str, number: int, queue: Any) -> None:
    store = LakeStore(root)
    queue.put([key for key in range(60) if store.put_if_absent(f"k/{key}", bytes([number]) * 20000)])


def test_processes_race_for_one_object(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_race, args=(str(tmp_path), number, queue)) for number in range(3)]
    for process in processes:
        process.start()
    wins = [key for _ in processes for key in queue.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(wins) == list(range(60))
    store = LakeStore(str(tmp_path))
    assert all(len(store.get(f"k/{key}")) == 20000 for key in range(60))
    assert len(list(store.list())) == 60  # no temporary file is left


def test_local_put_is_never_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LakeStore(str(tmp_path))
    store.put("a.bin", b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local.os, "fsync", full_disk)
    with pytest.raises(AccessError, match=r"a\.bin: .*No space left.*; free some space"):
        store.put("a.bin", b"new and longer")
    with pytest.raises(AccessError, match=r"b\.bin"):
        store.put_if_absent("b.bin", b"new")
    monkeypatch.undo()
    assert store.get("a.bin") == b"old"
    assert [entry.path for entry in store.list()] == ["a.bin"]


@pytest.mark.parametrize("write", [local.create, local.replace])
def test_a_sweep_of_another_run_takes_no_file_in_flight(
    tmp_path: Path, write: Callable[[str, bytes], bool | None]
) -> None:
    swept: set[str] = set()
    end = threading.Event()

    def sweep() -> None:  # each file in flight once: a run sweeps once, at its end
        while not end.is_set():
            for partial in tmp_path.glob(f".*{local.PARTIAL_SUFFIX}"):
                name = partial.name.split("-")[0]
                if name not in swept:
                    partial.unlink(missing_ok=True)
                    swept.add(name)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    names = [f"{index}-document.json" for index in range(50)]
    try:
        answers = {write(str(tmp_path / name), name.encode()) for name in names}
    finally:
        end.set()
        sweeper.join()
    assert answers <= {True, None}
    assert swept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).read_bytes() == name.encode() for name in names)


def test_local_delete_prunes_empty_folders_up_to_the_root(tmp_path: Path) -> None:
    store = LakeStore(str(tmp_path / "lake"))
    store.put("a/b/c.bin", b"x")
    store.put("a/d.bin", b"x")
    store.delete("a/b/c.bin")
    assert not (tmp_path / "lake/a/b").exists()
    store.delete("a/d.bin")
    assert (tmp_path / "lake").is_dir()
    assert not (tmp_path / "lake/a").exists()


def test_a_disk_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(local.os, "link", link)
    with pytest.raises(InputError, match="hard links"):
        LakeStore(str(tmp_path)).probe()


def test_probe_finds_a_server_that_ignores_the_condition(memory_store: LakeStore) -> None:
    class Careless(LakeStore):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            self.put(path, data)
            return True

    with pytest.raises(InputError, match="ignores conditional writes"):
        Careless(memory_store.uri).probe()


def test_probe_finds_s3_servers_that_overwrite(s3_store: Any) -> None:
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    original = type(store.fs).pipe_file

    def ignores(path: str, data: bytes, mode: str = "overwrite", **more: Any) -> Any:
        return original(store.fs, path, data)

    store.fs.pipe_file = ignores
    try:
        with pytest.raises(InputError, match="If-None-Match"):
            store.probe()
    finally:
        del store.fs.pipe_file


def test_s3_conflict_is_repeated(s3_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    original = type(store.fs).pipe_file
    failures = [409, 409]

    def busy(path: str, data: bytes, mode: str = "overwrite", **more: Any) -> Any:
        if failures:
            error = OSError("busy")
            error.__cause__ = ConflictError(failures.pop())
            raise error
        return original(store.fs, path, data, mode=mode)

    store.fs.pipe_file = busy
    try:
        assert store.put_if_absent("a", b"1")
        failures[:] = [409] * 50
        with pytest.raises(StoreError, match="busy"):
            store.put_if_absent("b", b"1")
    finally:
        del store.fs.pipe_file


def test_s3_clients_that_report_a_bare_412(s3_store: Any) -> None:
    """Older s3fs releases raise an OSError for a failed condition, not FileExistsError."""
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)

    def exists(path: str, data: bytes, mode: str = "overwrite", **more: Any) -> Any:
        error = OSError(22, "At least one of the pre-conditions you specified did not hold")
        error.__cause__ = ConflictError(412)
        raise error

    store.fs.pipe_file = exists
    try:
        assert not store.put_if_absent("a", b"1")
    finally:
        del store.fs.pipe_file


class ConflictError(Exception):
    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def test_unknown_file_systems_can_be_read_but_not_written(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    store = LakeStore(f"dir://{tmp_path}", {"path": str(tmp_path), "fs": fsspec.filesystem("file")})
    assert store.kind == "other"
    with pytest.raises(InputError, match="'dir' cannot create an object only if it is absent"):
        store.probe()
    with pytest.raises(InputError, match=r"local folder, s3:// or gs://"):
        store.put_if_absent("a", b"")


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("nosuch://bucket/x", "no URI that fsspec opens"),
        ("s3://", "names no folder"),
        ("memory://", "names no folder"),
        ("file:///", "names no folder"),
    ],
)
def test_wrong_uris(uri: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        LakeStore(uri)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(uri: str, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("pipeline.lake.store.url_to_fs", fails)
    with pytest.raises(InputError, match=r"camlake\[s3\]"):
        LakeStore("s3://bucket/x")


def test_errors_name_path_and_remedy(tmp_path: Path, s3_store: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LakeStore(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="give another"):
        store.put("a.bin", b"x")
    with pytest.raises(InputError, match=r"output\.uri .* cannot be written"):
        store.probe()
    nowhere = LakeStore("s3://no-such-bucket-here/lake", s3_store.storage_options)
    with pytest.raises(InputError, match="no such bucket"):
        nowhere.probe()


def test_denied_access_names_the_rights(memory_store: LakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str, **kwargs: Any) -> bytes:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(memory_store.fs, "cat_file", denied)
    with pytest.raises(AccessError, match=r"a\.bin: access is denied.*credentials"):
        memory_store.get("a.bin")


def test_unreachable_endpoint(s3_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.retry.TRIES", 2)
    options = dict(s3_store.storage_options)
    options["client_kwargs"] = {"endpoint_url": "http://127.0.0.1:9", "region_name": "us-east-1"}
    options["config_kwargs"] = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
    store = LakeStore("s3://bucket/lake", options)
    with pytest.raises(StoreError, match=r"a\.bin.*check the network, the endpoint"):
        store.get("a.bin")
