"""Progress from the commits alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.lake.documents import read_commit, to_bytes
from pipeline.lake.run import create_or_resume, finalize, quarantine
from pipeline.lake.status import status
from pipeline.lake.store import LakeStore
from schemas import layout
from schemas.errors import InputError
from tests.pipeline.lake.helpers import build, make_manifest, make_plan, unit_id
from tests.pipeline.lake.test_run import given_up

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def at(store: LakeStore, index: int, seconds: float) -> None:
    """Set when a unit was committed."""
    commit = read_commit(store, unit_id(index))
    moved = commit.model_copy(update={"created": (CREATED + timedelta(seconds=seconds)).isoformat()})
    store.put(layout.commit(unit_id(index)), to_bytes(moved))


def test_no_lake(memory_store: LakeStore) -> None:
    with pytest.raises(InputError, match=r"holds no lake \(camlake\.json is not there\)"):
        status(memory_store)


def test_before_the_first_commit(memory_store: LakeStore) -> None:
    plan = make_plan(4)
    create_or_resume(memory_store, make_manifest(plan), plan)
    found = status(memory_store, now=CREATED + timedelta(seconds=60))
    assert (found.state, found.planned, found.committed, found.remaining) == ("running", 4, 0, 4)
    assert (found.images, found.maps, found.bytes) == ({}, 0, 0)
    assert found.first_commit is found.last_commit is found.images_per_second is found.eta_seconds is None
    assert status(memory_store, now=CREATED + timedelta(seconds=601)).state == "interrupted"


def test_under_way(any_store: LakeStore) -> None:
    build(any_store, 5, finish=False)
    for index, seconds in enumerate((100, 110, 120)):
        at(any_store, index, seconds)
    for index in (3, 4):
        any_store.delete(layout.commit(unit_id(index)))
    quarantine(any_store, given_up(4))
    quarantine(any_store, given_up(0))  # committed after all
    found = status(any_store, now=CREATED + timedelta(seconds=130))
    assert (found.state, found.planned, found.committed, found.quarantined) == ("running", 5, 3, 1)
    assert found.remaining == 1
    assert found.images == {"decode_error": 3, "ok": 12}
    assert found.maps == 72
    assert found.bytes == sum(e.size for i in range(3) for e in any_store.list() if f"{unit_id(i)}-" in e.path)
    assert found.created == CREATED
    assert found.first_commit == CREATED + timedelta(seconds=100)
    assert found.last_commit == CREATED + timedelta(seconds=120)
    assert found.images_per_second == pytest.approx(10 / 20)
    assert found.eta_seconds == pytest.approx(1 * 5 / 0.5)
    assert found.seconds["compute"] == pytest.approx(1.5)
    assert found.seconds["total"] == pytest.approx(2.1)


def test_of_commits_that_come_at_once_there_is_no_speed(memory_store: LakeStore) -> None:
    build(memory_store, 2, finish=False)
    at(memory_store, 0, 100)
    at(memory_store, 1, 100.5)  # a unit takes 0.7 s: they were done side by side
    assert status(memory_store, now=CREATED + timedelta(seconds=130)).images_per_second is None
    at(memory_store, 1, 101)
    assert status(memory_store, now=CREATED + timedelta(seconds=130)).images_per_second == pytest.approx(5)


def test_slow_runs_are_not_called_interrupted(memory_store: LakeStore) -> None:
    build(memory_store, 3, finish=False)
    memory_store.delete(layout.commit(unit_id(2)))
    at(memory_store, 0, 1000)
    at(memory_store, 1, 1500)
    assert status(memory_store, now=CREATED + timedelta(seconds=1500 + 2900)).state == "running"
    assert status(memory_store, now=CREATED + timedelta(seconds=1500 + 3100)).state == "interrupted"


def test_finished(memory_store: LakeStore) -> None:
    build(memory_store, 3, finish=False)
    memory_store.delete(layout.commit(unit_id(2)))
    quarantine(memory_store, given_up(2))
    finalize(memory_store)
    found = status(memory_store, now=CREATED + timedelta(days=300))
    assert (found.state, found.committed, found.quarantined, found.remaining) == ("finished", 2, 1, 0)
    assert found.eta_seconds == 0
