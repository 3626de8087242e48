"""Looking again reads only what is new, in few requests, and ends with the totals of the finished lake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from pipeline.lake import watch as module
from pipeline.lake.run import create_or_resume, finalize, quarantine
from pipeline.lake.status import status
from pipeline.lake.store import Entry, LakeStore
from pipeline.lake.watch import Watch
from schemas import layout
from tests.pipeline.lake.helpers import build, make_manifest, make_plan, unit_id
from tests.pipeline.lake.test_run import given_up
from tests.pipeline.lake.test_status import CREATED, at
from tests.s3_server import S3Store


class Counting(LakeStore):
    """Counts what is read and listed."""

    reads: Counter[str] = Counter()
    listed: list[str] = []

    def get(self, path: str, size: int | None = None) -> bytes:
        self.reads[path] += 1
        return super().get(path, size)

    def list(self, folder: str = "", after: str = "") -> Iterator[Entry]:
        for entry in super().list(folder, after):
            self.listed.append(entry.path)
            yield entry


@pytest.fixture
def counting(memory_store: LakeStore) -> Counting:
    store = Counting(memory_store.uri, memory_store.storage_options)
    store.reads, store.listed = Counter(), []
    return store


def hidden(store: LakeStore, indices: list[int]) -> dict[str, bytes]:
    """Take commits away, and return what brings them back."""
    paths = [layout.commit(unit_id(index)) for index in indices]
    taken = {path: store.get(path) for path in paths}
    for path in paths:
        store.delete(path)
    return taken


def test_each_commit_is_read_once_and_the_end_agrees_with_status(counting: Counting) -> None:
    build(counting, 6, finish=False)
    for index in range(6):
        at(counting, index, 100 + 10 * index)
    later = hidden(counting, [2, 4, 5])
    watch = Watch(counting)
    counting.reads.clear()
    now = CREATED + timedelta(seconds=140)
    first = watch.look(now)
    assert (first.state, first.committed, first.remaining, first.read) == ("running", 3, 3, 3)
    assert first == replace(status(counting, now), read=3)

    counting.reads.clear()
    counting.listed.clear()
    assert watch.look(now) == first
    # Nothing is read again but the sign that it is finished; units 0 and 1 are not listed again.
    assert set(counting.reads) == {layout.SUCCESS} and counting.listed == [layout.commit(unit_id(3))]

    counting.put(*later.popitem())  # 5
    quarantine(counting, given_up(2))
    quarantine(counting, given_up(4))
    second = watch.look(now)
    assert (second.committed, second.quarantined, second.remaining, second.read) == (4, 2, 0, 4)
    assert counting.reads[layout.commit(unit_id(5))] == 1 and second.eta_seconds == 0
    assert second.images_per_second == pytest.approx(15 / 50)

    finalize(counting)
    counting.reads.clear()
    last = watch.look(now)
    assert (last.state, last.committed, last.quarantined, last.read) == ("finished", 4, 2, None)
    plain = status(counting, now)
    assert (last.images, last.maps, last.bytes) == (plain.images, plain.maps, plain.bytes)
    # A watch that begins at the end closes slots as status does.
    assert (Watch(counting).look(now).quarantined, plain.quarantined) == (2, 2)


def test_of_many_new_commits_only_the_latest_are_read(counting: Counting) -> None:
    build(counting, 6, finish=False)
    found = Watch(counting, most_read=2).look()
    assert (found.committed, found.read, sum(found.images.values())) == (6, 2, 10)
    assert counting.reads[layout.commit(unit_id(5))] == 1 == counting.reads[layout.commit(unit_id(4))]
    assert not counting.reads[layout.commit(unit_id(3))]


def test_a_unit_that_was_given_up_and_is_done_later_is_seen(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FULL_EVERY", 2)
    build(counting, 3, finish=False)
    later = hidden(counting, [0])
    quarantine(counting, given_up(0))
    watch = Watch(counting)
    assert (watch.look().quarantined, watch.look().quarantined) == (1, 1)
    counting.put(*later.popitem())
    found = watch.look()
    assert (found.committed, found.quarantined) == (3, 0)


def test_a_lake_that_is_quiet_for_long_is_said_to_be(memory_store: LakeStore) -> None:
    plan = make_plan(2)
    create_or_resume(memory_store, make_manifest(plan), plan)
    watch = Watch(memory_store)
    assert watch.look(CREATED + timedelta(seconds=599)).state == "running"
    assert watch.look(CREATED + timedelta(seconds=601)).state == "interrupted"


def test_s3_is_not_asked_for_what_is_done(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LakeStore(s3_store.url("lake"), s3_store.storage_options)
    build(store, 4, finish=False)
    hidden(store, [2])
    asked: list[dict[str, object]] = []
    call = store.fs.call_s3

    def listening(method: str, **wanted: object) -> object:
        asked.append({"method": method, **wanted})
        return call(method, **wanted)

    watch = Watch(store)
    watch.look()
    monkeypatch.setattr(store.fs, "call_s3", listening)
    assert watch.look().committed == 3
    listings = [each.get("StartAfter") for each in asked if each["method"] == "list_objects_v2"]
    assert [str(each).rpartition("/")[2] for each in listings if each] == ["000002"]
    assert len(listings) == 2  # of the units that were given up, and of commits
