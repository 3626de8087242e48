"""The commit protocol under any order of attempts, deaths, races and ends."""

from __future__ import annotations

import uuid
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.lake.documents import read_commits, read_success
from pipeline.lake.run import committed, create_or_resume, finalize, quarantine, quarantined
from pipeline.lake.sink import new_attempt
from pipeline.lake.store import LakeStore, StoreError
from pipeline.lake.verify import verify
from schemas.errors import LakeError
from tests.pipeline.lake.helpers import (
    WrappedStore,
    failing_at,
    make_manifest,
    make_plan,
    make_result,
    sink_for,
    unit_id,
)
from tests.pipeline.lake.test_run import given_up

UNITS = 2
units = st.integers(0, UNITS - 1)


class Protocol(RuleBasedStateMachine):
    """What was committed once never changes, whatever else happens, and a finished lake verifies."""

    def __init__(self) -> None:
        super().__init__()
        self.uri = f"memory://protocol-{uuid.uuid4().hex}/lake"
        self.store = LakeStore(self.uri)
        plan = make_plan(UNITS)
        self.manifest = create_or_resume(self.store, make_manifest(plan), plan).manifest
        self.winners: dict[str, str] = {}
        self.bytes: dict[str, bytes] = {}
        self.seed = 0

    def result(self, unit: int) -> Any:
        self.seed += 1  # every attempt has other bytes
        return make_result(unit_id(unit), new_attempt(), seed=self.seed, images=3)

    def note(self) -> None:
        for commit in read_commits(self.store):
            if self.winners.setdefault(commit.unit_id, commit.attempt) == commit.attempt:
                for info in commit.objects:
                    self.bytes.setdefault(info.path, self.store.get(info.path))

    @rule(unit=units)
    def attempt(self, unit: int) -> None:
        have = unit_id(unit) in self.winners
        finished = read_success(self.store) is not None
        written = sink_for(self.store, self.manifest).write(self.result(unit))
        assert written.ours is (not have)
        assert not (finished and written.ours)
        self.note()

    @rule(unit=units, number=st.integers(1, 9), lost=st.booleans())
    def die(self, unit: int, number: int, lost: bool) -> None:
        hooks: dict[str, Any] = {"after" if lost else "before": failing_at(number)}
        try:
            sink_for(WrappedStore(self.uri, **hooks), self.manifest).write(self.result(unit))
        except StoreError as error:
            assert "injected" in str(error)
        self.note()

    @rule(unit=units, number=st.integers(1, 9))
    def race(self, unit: int, number: int) -> None:
        """A rival runs from start to end between two writes of a slow attempt."""
        rival = sink_for(self.store, self.manifest)

        def overtake(current: int, path: str) -> None:
            if current == number:
                rival.write(self.result(unit))
                self.note()

        sink_for(WrappedStore(self.uri, before=overtake), self.manifest).write(self.result(unit))
        self.note()

    @rule(unit=units)
    def give_up(self, unit: int) -> None:
        quarantine(self.store, given_up(unit))

    @rule(unit=units)
    def finish_while_a_zombie_writes(self, unit: int) -> None:
        """The run ends between two writes of an attempt that everyone thinks dead."""
        missing = {unit_id(i) for i in range(UNITS)} - committed(self.store) - quarantined(self.store)

        def end(number: int, path: str) -> None:
            if number == 4 and not missing:
                finalize(self.store)
                self.note()

        try:
            sink_for(WrappedStore(self.uri, before=end), self.manifest).write(self.result(unit))
        except LakeError as error:
            assert "is finished" in str(error)
        self.note()

    @precondition(lambda self: {unit_id(i) for i in range(UNITS)} <= committed(self.store) | quarantined(self.store))
    @rule()
    def finish(self) -> None:
        finalize(self.store)
        self.note()
        result = verify(self.store)
        assert result.problems == []

    @invariant()
    def what_was_committed_stands(self) -> None:
        assert {commit.unit_id: commit.attempt for commit in read_commits(self.store)} == self.winners
        for path, data in self.bytes.items():
            assert self.store.get(path) == data

    def teardown(self) -> None:
        for entry in list(self.store.list()):
            self.store.delete(entry.path)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=12, stateful_step_count=10, deadline=None)
