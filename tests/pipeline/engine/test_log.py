"""Lines for people and for machines: one object per line whatever is written, and the streams as before afterwards."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.engine import log
from pipeline.engine.log import Line, about, is_json, tell, written_as
from pipeline.engine.outcome import Outcome, Tally, WorkerInfo
from pipeline.engine.progress import ProgressMonitor
from schemas.documents import Attempt
from schemas.unit import Unit


def objects(text: str) -> list[dict[str, Any]]:
    """Every line as an object; NaN and the like are no JSON."""
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_text_is_written_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    with written_as("text"), about(run_id="r"):
        tell(Line("\nunits  3  of 4", "progress", units=4))
        tell("plain", sys.stderr)
    assert capsys.readouterr() == ("\nunits  3  of 4\n", "plain\n")


def test_a_line_shows_what_it_carries(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    with written_as("json"):
        with about(run_id="r"):
            fields: dict[str, Any] = {"unit_id": "u", "seconds": {"read": 1.5}, "units": 4, "eta": float("nan")}
            tell(Line("\n  unit u\n failed at s3://key:secret@bucket/x", "unit_retried", logging.WARNING, **fields))
        tell("plain", sys.stderr)
        tell("\n")  # says nothing
    out, err = capsys.readouterr()
    [shown] = objects(out)
    when = shown.pop("time")
    assert when.endswith("Z") and before <= datetime.fromisoformat(when).replace(microsecond=999_999)
    assert shown == {
        "level": "WARNING",
        "event": "unit_retried",
        "run_id": "r",
        "unit_id": "u",
        "seconds": {"read": 1.5},
        "units": 4,
        "eta": None,
        "message": "unit u failed at s3://bucket/x",
    }
    [plain] = objects(err)
    assert (plain["event"], plain["message"], plain["level"]) == ("note", "plain", "INFO") and "run_id" not in plain


def test_whatever_else_is_written_becomes_objects_too(capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with written_as("json"):
        print("from a", "library")
        print("\x1b[36m(worker-003 pid=17, ip=10.0.0.2)\x1b[0m https://host/x?X-Amz-Signature=secret", file=sys.stderr)
        print("(explain pid=18) done", file=sys.stderr)
        try:
            raise ValueError("no good")
        except ValueError:
            logging.getLogger("some.library").exception("failed for %s", "x")
        logging.getLogger("some.library").info("too small a thing")
        print("no line break", end="")
    assert (sys.stdout, sys.stderr) == streams and not is_json()
    out, err = capsys.readouterr()
    assert [(each["event"], each["message"]) for each in objects(out)] == [
        ("output", "from a library"),
        ("output", "no line break"),
    ]
    worker, task, library = objects(err)
    assert worker["message"] == "https://host/x" and worker["event"] == "worker_output"
    assert (worker["worker_id"], worker["pid"], worker["node"]) == ("worker-003", 17, "10.0.0.2")
    assert (task["source"], task["pid"], task["message"]) == ("explain", 18, "done")
    assert (library["logger"], library["level"]) == ("some.library", "ERROR")
    assert library["message"] == "failed for x" and library["exception"].endswith("ValueError: no good")


def test_lines_of_several_threads_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str) -> None:
        for number in range(200):
            print(name * 50, number)

    with written_as("json"):
        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = sorted(f"{name * 50} {number}" for name in "abc" for number in range(200))
    assert sorted(each["message"] for each in objects(capsys.readouterr().out)) == expected


def test_there_is_no_bar_for_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert log.is_terminal(sys.stderr)
    with written_as("json"):
        assert not log.is_terminal(sys.stderr)


def test_what_a_monitor_is_told_has_unit_and_worker(capsys: pytest.CaptureFixture[str]) -> None:
    attempt = Attempt(attempt="a1", when="now", worker="worker-001", kind="died", reason="exit")
    with written_as("json"), about(run_id="r"), ProgressMonitor(2, Tally()) as monitor:
        monitor.worker_ready(WorkerInfo("worker-001", "node", "cuda:0", 7))
        monitor.worker_lost("worker-001", "exit", "died")
        monitor.unit_failed(Unit("u1", 0, "x.tar"), attempt, final=False)
        monitor.unit_done(Outcome("u1", "a2", "worker-002", {"ok": 3}, 6, 100, {"compute": 2.0004, "total": 3.0}))
        monitor.unit_failed(Unit("u2", 1, "y.tar"), attempt, final=True)
    shown = objects(capsys.readouterr().err)
    assert {each["run_id"] for each in shown} == {"r"}
    assert [(each["event"], each["level"], each.get("unit_id"), each["worker_id"]) for each in shown] == [
        ("worker_ready", "INFO", None, "worker-001"),
        ("worker_died", "WARNING", None, "worker-001"),
        ("unit_retried", "WARNING", "u1", "worker-001"),
        ("unit_done", "INFO", "u1", "worker-002"),
        ("unit_quarantined", "ERROR", "u2", "worker-001"),
    ]
    done = shown[3]
    assert (done["images"], done["maps"], done["bytes"]) == ({"ok": 3}, 6, 100)
    assert done["seconds"]["compute"] == 2.0
