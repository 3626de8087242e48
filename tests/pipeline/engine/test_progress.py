"""Progress: plain lines where there is no terminal, a bar where there is one, and counts that add up."""

from __future__ import annotations

import io

import pytest

from pipeline.engine import progress
from pipeline.engine.outcome import Outcome, Tally, WorkerInfo
from pipeline.engine.progress import ProgressMonitor, clock_time, megabytes
from schemas.documents import Attempt
from schemas.unit import Unit

ATTEMPT = Attempt(attempt="a", when="now", worker="w", kind="error", reason="ValueError: no good")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def outcome(unit: str, ok: int, failed: int = 0) -> Outcome:
    images = {"ok": ok, "decode_error": failed} if failed else {"ok": ok}
    return Outcome(unit, "a", "worker-001", images, 2 * ok, 1000, {"compute": 2.0, "total": 3.0})


def test_plain_lines_with_rate_eta_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    monitor = ProgressMonitor(10, Tally(units=2), stream)
    with monitor:
        clock.now += 50
        monitor.worker_ready(WorkerInfo("worker-001", "node", "cpu", 1))
        clock.now += 10
        monitor.unit_done(outcome("u1", 90, 10))
        monitor.unit_done(outcome("u2", 100))
        clock.now += 10
        monitor.in_progress(20)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "worker-001 is ready on node (cpu)"
    # Loading took 50 s and does not count; 220 images in 20 s; 6 units of 100 are left, 20 images of them are done.
    assert lines[-1] == "units 4/10, 220 images, 11.0/s, ETA 0:53, 10 failed"


def test_failures_are_said_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monitor = ProgressMonitor(3, Tally(), stream)
    unit = Unit("000001-x", 1, "x.tar")
    monitor.unit_failed(unit, ATTEMPT, final=False)
    monitor.unit_failed(unit, ATTEMPT, final=True)
    monitor.worker_lost("worker-002", "ActorDiedError: exit", "died")
    text = stream.getvalue()
    assert "000001-x failed and is tried again: ValueError: no good" in text
    assert "000001-x is given up and quarantined" in text and "worker-002 died" in text
    assert monitor.quarantined == [("000001-x", "ValueError: no good")]
    assert (monitor.retried, monitor.lost) == (1, ["worker-002"])


def test_totals_and_seconds_add_up() -> None:
    monitor = ProgressMonitor(3, Tally(), io.StringIO())
    monitor.unit_done(outcome("u1", 5, 1))
    monitor.unit_done(outcome("u2", 7))
    assert (monitor.done.units, monitor.done.total_images, monitor.done.failed_images) == (2, 13, 1)
    assert (monitor.done.maps, monitor.done.bytes) == (24, 2000)
    assert monitor.seconds["worker-001"]["compute"] == 4.0


def committed(worker: str, unit: str, compute: float, wait: float) -> Outcome:
    seconds = {"read": 9.0, "decode": 9.0, "wait": wait, "compute": compute, "write": 9.0, "total": 9.0}
    return Outcome(unit, "a", worker, {"ok": 1}, 1, 1, seconds)


def test_a_workers_time_is_accounted_for_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monitor = ProgressMonitor(9, Tally(), io.StringIO())
    clock.now += 30  # loading is nobody's time
    monitor.worker_ready(WorkerInfo("worker-002", "node", "cpu", 2))
    clock.now += 1
    monitor.worker_ready(WorkerInfo("worker-001", "node", "cpu", 1))
    monitor.worker_ready(WorkerInfo("worker-003", "node", "cpu", 3))
    clock.now += 7
    monitor.unit_done(committed("worker-002", "u1", 5.0, 2.5))
    clock.now += 3
    monitor.unit_done(committed("worker-001", "u2", 6.5, 0.5))
    monitor.unit_failed(Unit("u3", 3, "x.tar"), Attempt(**{**dict(ATTEMPT), "worker": "worker-001"}), final=False)
    clock.now += 10
    monitor.unit_done(committed("worker-001", "u3", 11.5, 0.25))
    clock.now += 99  # finishing the lake is nobody's time either
    times = monitor.times()
    assert list(times) == ["worker-001", "worker-002"]  # the third committed nothing
    one, two = times.values()
    assert (one.active, one.computing, one.waiting, one.other, one.after) == (20.0, 18.0, 0.75, 1.25, 0.0)
    assert (two.active, two.computing, two.waiting, two.other, two.after) == (8.0, 5.0, 2.5, 0.5, 13.0)
    assert one.sentence() == (
        "computed 90% of 20.0 s; idle 0.8 s waiting for images, 1.2 s writing, between units or on failed attempts"
    )
    assert two.sentence() == (
        "computed 62% of 8.0 s; idle 2.5 s waiting for images, 0.5 s writing or between units; "
        "then 13.0 s to the run's last commit"
    )


def test_a_dead_workers_commit_that_comes_to_light_later_counts_until_its_death(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    monitor = ProgressMonitor(2, Tally(), io.StringIO())
    monitor.worker_ready(WorkerInfo("worker-001", "node", "cpu", 1))
    clock.now += 4
    monitor.worker_lost("worker-001", "ActorDiedError: exit", "died")
    clock.now += 50
    monitor.unit_done(committed("worker-001", "u1", 3.0, 0.5))
    [time] = monitor.times().values()
    assert (time.active, time.computing, time.waiting, time.other) == (4.0, 3.0, 0.5, 0.5)


def test_a_workers_faster_clock_cannot_make_it_compute_longer_than_it_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    monitor = ProgressMonitor(1, Tally(), io.StringIO())
    monitor.worker_ready(WorkerInfo("worker-001", "node", "cpu", 1))
    clock.now += 4
    monitor.unit_done(committed("worker-001", "u1", 4.5, 0.5))
    [time] = monitor.times().values()
    assert (time.active, time.computing, time.waiting, time.other) == (4.0, 4.0, 0.0, 0.0)
    assert time.sentence().startswith("computed 100% of 4.0 s; idle 0.0 s")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressMonitor(2, Tally(), stream) as monitor:
        monitor.worker_ready(WorkerInfo("worker-001", "node", "cpu", 1))
        monitor.unit_done(outcome("u1", 5))
    assert "1/2" in stream.getvalue() and "5 images" in stream.getvalue()


def test_times_and_sizes() -> None:
    assert [clock_time(value) for value in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]
    assert [megabytes(value) for value in (12, 1500, 2.5e6, 3e12)] == ["12 B", "1.5 kB", "2.5 MB", "3.0 TB"]
