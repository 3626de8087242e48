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
    monitor.worker_lost("worker-002", "ActorDiedError: exit")
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
