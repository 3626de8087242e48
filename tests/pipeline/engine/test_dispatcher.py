"""The dispatcher on a real Ray: every unit ends committed or given up, whatever its worker does."""

from __future__ import annotations

import ctypes
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from pipeline.engine.deaths import kind_of_death, sentence
from pipeline.engine.dispatcher import MAX_LOSSES, Dispatcher, Flight, Slot
from pipeline.engine.outcome import Outcome, Pool, Progress, WorkerInfo
from pipeline.engine.watchdog import stacks
from schemas.documents import Attempt
from schemas.errors import AccessError, CamlakeError, InputError
from schemas.job import Workers
from schemas.unit import Unit

pytestmark = pytest.mark.usefixtures("local_ray")


class Recorder:
    def __init__(self) -> None:
        self.done: list[Outcome] = []
        self.failed: list[tuple[str, Attempt, bool]] = []
        self.given_up: dict[str, list[Attempt]] = {}
        self.ready: list[str] = []
        self.lost: list[str] = []
        self.pools: list[Pool] = []
        self.waiting: list[tuple[int, int, str]] = []

    def worker_ready(self, info: WorkerInfo) -> None:
        self.ready.append(info.name)

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        self.lost.append(name)

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        self.waiting.append((waiting, workers, wanted))

    def unit_done(self, outcome: Outcome) -> None:
        self.done.append(outcome)

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        self.failed.append((unit.unit_id, attempt, final))

    def in_progress(self, images: int) -> None:
        pass

    def pool(self, pool: Pool) -> None:
        self.pools.append(pool)

    def give_up(self, unit: Unit, attempts: list[Attempt]) -> None:
        self.given_up[unit.unit_id] = list(attempts)


class Worker:
    """Does what the unit's name says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> WorkerInfo:
        return WorkerInfo(self.name, "node", "cpu", os.getpid())

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        if "image" in unit.uri and not careful:
            os._exit(9)
        if "exit" in unit.uri:
            os._exit(7)
        if "segfault" in unit.uri:
            ctypes.string_at(0)
        if "raise" in unit.uri:
            raise ValueError("no good")
        if "denied" in unit.uri:
            raise AccessError("output.uri: access is denied; check the rights")
        if "slow" in unit.uri:
            time.sleep(0.3)
        if "together:" in unit.uri:  # none goes on before two workers are there
            folder = Path(unit.uri.partition("together:")[2])
            (folder / self.name).touch()
            until = time.monotonic() + 60
            while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.01)
        return Outcome(unit.unit_id, attempt, self.name, {"ok": 1}, 1, 10, {"total": 0.1})

    def progress(self) -> Progress:
        return Progress(0, (time.monotonic(),))

    def stack(self) -> str:
        return stacks()


class Silent(Worker):
    """Goes on for ever in units named so, and shows no progress."""

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        if "endless" in unit.uri:
            time.sleep(1000)
        return super().process(unit, attempt, careful)

    def progress(self) -> Progress:
        return Progress(0, ())


class Endless(Worker):
    """Computes for ever in units named so, and shows progress."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.current: tuple[str, float] | None = None

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        if "endless" in unit.uri:
            self.current = (unit.unit_id, time.monotonic())
            time.sleep(1000)
        return super().process(unit, attempt, careful)

    def progress(self) -> Progress:
        if self.current is None:
            return Progress(0, (time.monotonic(),))
        return Progress(0, (time.monotonic(),), self.current[0], time.monotonic() - self.current[1])


class SilentStart(Worker):
    def start(self) -> WorkerInfo:
        time.sleep(1000)
        return super().start()

    def progress(self) -> Progress:
        return Progress(0, ())


class Unloadable(Worker):
    def start(self) -> WorkerInfo:
        raise InputError("model.weights: cannot be read")


class Dying(Worker):
    def start(self) -> WorkerInfo:
        os._exit(3)


class Unlucky(Worker):
    """Dies in its start unless it is the fifth."""

    def start(self) -> WorkerInfo:
        if self.name != "worker-005":
            os._exit(3)
        return super().start()


def spawner(cls: type = Worker) -> Callable[[str], Any]:
    remote = ray.remote(max_restarts=0, max_concurrency=3, num_cpus=1)(cls)
    return lambda name: remote.remote(name)


def run(
    uris: list[str],
    *,
    cls: type = Worker,
    attempts: int = 2,
    workers: int = 2,
    proven: bool = False,
    **limits: Any,
) -> Recorder:
    recorder = Recorder()
    units = [Unit(f"{index:06d}", index, uri) for index, uri in enumerate(uris)]
    dispatcher = Dispatcher(
        spawner(cls), Workers(max=workers, attempts=attempts, **limits), recorder, recorder.give_up, proven=proven
    )
    dispatcher.run(iter(units), len(units))
    return recorder


def test_workers_that_find_no_place_are_told_of_and_the_others_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.dispatcher.WAIT_SECONDS", 0.2)
    recorder = Recorder()
    remote = ray.remote(max_restarts=0, max_concurrency=3)(Worker)

    def spawn(name: str) -> Any:
        return remote.options(resources=None if name == "worker-001" else {"rare": 1}).remote(name)

    workers = Workers(max=3, cpus=0.5, resources={"rare": 1})
    units = iter(Unit(f"{index:06d}", index, "slow") for index in range(6))
    Dispatcher(spawn, workers, recorder, recorder.give_up).run(units, 6)
    assert {outcome.worker for outcome in recorder.done} == {"worker-001"} and len(recorder.done) == 6
    assert (2, 3, "0.5 CPU, 1 rare") in recorder.waiting
    assert recorder.lost == [] and len(recorder.waiting) <= 4


def test_every_unit_is_done_once_and_the_work_is_spread(tmp_path: Path) -> None:
    recorder = run([f"slow together:{tmp_path}"] * 8)
    assert Counter(outcome.unit_id for outcome in recorder.done) == Counter(f"{i:06d}" for i in range(8))
    per_worker = Counter(outcome.worker for outcome in recorder.done)
    assert len(per_worker) == 2 and min(per_worker.values()) >= 2
    assert not recorder.failed and not recorder.given_up
    assert recorder.pools and all(pool.ready + pool.starting <= 2 and not pool.gpu_memory for pool in recorder.pools)
    assert all(pool.in_flight <= 2 * pool.ready for pool in recorder.pools)


def test_units_that_kill_or_fail_are_given_up_and_no_neighbour_is_blamed() -> None:
    uris = ["good", "exit", "good", "good", "raise", "good", "segfault", "good", "good", "good"]
    recorder = run(uris, attempts=2)
    bad = {f"{i:06d}" for i, uri in enumerate(uris) if uri != "good"}
    assert set(recorder.given_up) == bad
    assert {outcome.unit_id for outcome in recorder.done} == {f"{i:06d}" for i in range(10)} - bad
    assert all(len(history) == 2 for history in recorder.given_up.values())
    assert {unit for unit, _, _ in recorder.failed} == bad
    kinds = {recorder.given_up[f"{i:06d}"][0].kind for i in (1, 6)}
    assert kinds == {"died"}
    assert recorder.given_up["000004"][0].kind == "error"
    assert "ValueError: no good" in recorder.given_up["000004"][0].reason


def test_no_more_workers_than_units() -> None:
    assert len(run(["good"], workers=4).ready) == 1


def test_nothing_to_do_starts_no_worker() -> None:
    assert run([]).ready == []


def test_a_worker_that_cannot_load_its_replica_ends_the_run_with_the_reason() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        run(["good"] * 3, cls=Unloadable)


def test_workers_that_die_before_they_are_ready_end_the_run() -> None:
    with pytest.raises(CamlakeError, match="died before they were ready"):
        run(["good"] * 3, cls=Dying)


def test_workers_that_are_known_to_start_are_given_more_chances() -> None:
    recorder = run(["good"], cls=Unlucky, workers=1, proven=True)
    assert len(recorder.done) == 1 and len(recorder.lost) == 4
    with pytest.raises(CamlakeError, match="3 workers in a row died before they were ready"):
        run(["good"], cls=Unlucky, workers=1)


def test_stopping_finishes_what_is_in_flight_and_no_more() -> None:
    recorder = Recorder()
    units = [Unit(f"{index:06d}", index, "slow") for index in range(40)]
    dispatcher = Dispatcher(spawner(), Workers(max=2), recorder, recorder.give_up)
    original = recorder.unit_done

    def stop_after_first(outcome: Outcome) -> None:
        original(outcome)
        dispatcher.stop()

    recorder.unit_done = stop_after_first  # type: ignore[method-assign]
    dispatcher.run(iter(units), len(units))
    assert 1 <= len(recorder.done) <= 4


@pytest.mark.parametrize("uris", [["good", "image", "good", "image", "good"], ["image"]])
def test_suspects_are_run_with_care(uris: list[str]) -> None:
    recorder = run(uris, attempts=1, workers=1)
    assert len(recorder.done) == len(uris) and not recorder.given_up
    # A death charges nobody before its suspects have run with care; one may have been in flight alone.
    assert not recorder.failed and len(recorder.lost) == uris.count("image")


def test_a_store_that_cannot_be_used_ends_the_run_at_once() -> None:
    with pytest.raises(AccessError, match="access is denied"):
        run(["good", "denied", *["slow"] * 200])


def test_a_unit_in_which_nothing_goes_on_is_ended_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    recorder = run(["good", "endless", "good", "good"], cls=Silent, attempts=1, stall_seconds=1.5)
    assert {unit: [each.kind for each in history] for unit, history in recorder.given_up.items()} == {
        "000001": ["hung"]
    }
    assert len(recorder.done) == 3
    assert "time.sleep(1000)" in caplog.text


def test_a_unit_that_takes_too_long_is_charged_and_its_neighbour_is_not() -> None:
    recorder = run(["endless", *["good"] * 5], cls=Endless, attempts=1, workers=1, unit_seconds=1.0)
    assert [each.kind for each in recorder.given_up["000000"]] == ["timeout"]
    assert len(recorder.done) == 5 and len(recorder.lost) == 1


def test_a_start_that_hangs_ends_the_run() -> None:
    with pytest.raises(CamlakeError, match="died before they were ready: nothing went on"):
        run(["good"] * 3, cls=SilentStart, workers=1, stall_seconds=1.0)


def test_what_befalls_a_unit_with_its_node_is_counted_apart() -> None:
    assert kind_of_death(ActorUnavailableError("no answer", b"0" * 16)) == "node_lost"
    assert kind_of_death(OutOfMemoryError("the memory monitor ended it")) == "out_of_memory"
    assert kind_of_death(ActorDiedError()) == "died"
    recorder = Recorder()
    dispatcher = Dispatcher(lambda name: None, Workers(attempts=1), recorder, recorder.give_up)
    unit, slot = Unit("000000", 0, "good"), Slot("worker-001", None)
    for number in range(MAX_LOSSES):
        assert not recorder.given_up
        dispatcher._charge(slot, Flight(unit, f"a{number}"), "node_lost", "its node has died")
    assert [each.kind for each in recorder.given_up["000000"]] == ["node_lost"] * MAX_LOSSES


def test_a_reason_keeps_no_credentials() -> None:
    error = ValueError("cannot read https://host/a.jpg?X-Amz-Signature=SECRET and s3://user:SECRET@bucket/a")
    assert sentence(error) == "ValueError: cannot read https://host/a.jpg and s3://bucket/a"
