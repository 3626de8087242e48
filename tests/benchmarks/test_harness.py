"""The arithmetic of alternating timing, with a clock of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness import Contestant, Report, Row, Timing, alternate, machine


class Clock:
    """Advances only when a contestant works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def worker(clock: Clock, log: list[str], name: str, seconds: list[float]) -> Contestant:
    left = iter(seconds)

    def run() -> str:
        log.append(name)
        clock.now += next(left)
        return f"{name} {len(log)}"

    return Contestant(name, run, lambda: log.append(f"warm {name}"))


def test_contestants_alternate_after_one_warm_up_each() -> None:
    clock, log = Clock(), []
    timings = alternate(
        [worker(clock, log, "a", [1.0, 5.0, 2.0]), worker(clock, log, "b", [7.0, 3.0, 4.0])], 3, clock=clock
    )
    assert log == ["warm a", "warm b", "a", "b", "a", "b", "a", "b"]
    assert timings["a"].seconds == (1.0, 5.0, 2.0)
    assert timings["a"].median == 2.0
    assert timings["b"].median == 4.0
    assert timings["b"].result == "b 8"


def test_the_run_itself_warms_up_where_nothing_else_is_given_and_is_not_counted() -> None:
    clock, calls = Clock(), []

    def run() -> None:
        calls.append(clock.now)
        clock.now += 10.0 if len(calls) == 1 else 1.0

    assert alternate([Contestant("a", run)], 2, clock=clock)["a"].seconds == (1.0, 1.0)
    assert len(calls) == 3


def test_a_run_may_measure_itself() -> None:
    clock, log = Clock(), []
    inner = worker(clock, log, "a", [9.0, 9.0])
    contestant = Contestant("a", inner.run, inner.warm_up, lambda result: float(len(result)))
    assert alternate([contestant], 2, clock=clock)["a"].seconds == (3.0, 3.0)


def test_refusals() -> None:
    contestant = Contestant("a", lambda: None)
    with pytest.raises(ValueError, match="same name"):
        alternate([contestant, contestant], 1)
    with pytest.raises(ValueError, match="1 round"):
        alternate([contestant], 0)


def test_the_median_of_an_even_number_lies_between() -> None:
    assert Timing((4.0, 1.0, 2.0, 100.0), None).median == 3.0


def test_rows_and_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report([Row("maps", "peer", 0.5, 2.0, 1e-6), Row("maps", "limit", 2.0, 1.5)], ["remark"], {"memory": 3})
    report.publish(tmp_path / "table.json")
    found = json.loads((tmp_path / "table.json").read_text())
    assert found == {
        "machine": machine(),
        "rows": [
            {"work": "maps", "peer": "peer", "ours_s": 0.5, "peer_s": 2.0, "ratio": 4.0, "agreement": 1e-6},
            {"work": "maps", "peer": "limit", "ours_s": 2.0, "peer_s": 1.5, "ratio": 0.75, "agreement": None},
        ],
        "notes": ["remark"],
        "memory": 3,
    }
    shown = capsys.readouterr().out
    assert "4.00x" in shown and "0.250x" in shown and "1.0e-06" in shown and "- remark" in shown
    assert len({line.index("peer") for line in shown.splitlines() if line.startswith(("work", "maps  peer"))}) == 1


def test_publishing_without_a_file_only_prints(capsys: pytest.CaptureFixture[str]) -> None:
    Report([Row("maps", "peer", 1.0, 1.0)]).publish(None)
    assert machine() in capsys.readouterr().out
