"""Benchmarks that start a Ray of their own, each in a process of its own, at its smallest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def benchmark(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_scaling_counts_what_sleeping_workers_commit(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    said = benchmark("scaling", "--workers", 1, 2, "--units", 2, "--seconds", 0.5, "--stored", 2, "--json", file)
    one, two = json.loads(file.read_text())["rows"]
    assert (one["workers"], two["workers"]) == (1, 2)
    for row in (one, two):
        assert row["limit"] == row["workers"] * 2000
        # A second of sleep, give or take a fifth for when commits arrive; nothing else takes several times as long.
        assert 0.2 * row["limit"] < row["steady"] < 1.5 * row["limit"]
        assert row["units"] >= 2 * row["workers"]
        assert row["worker_mib"] > 0
    assert "of the sleep's limit" in said


def test_a_plan_whose_driver_is_killed_half_way_is_committed_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    benchmark("million", "--units", 400, "--workers", 1, "--finish", "--json", file)
    events = json.loads(file.read_text())["events"]
    first, again = ([event for event in events if event["run"] == run] for run in (1, 2))
    assert max(event.get("units", 0) for event in first) >= 200
    assert not any(event["what"] == "finished" for event in first)
    assert min(event["units"] for event in again if "units" in event) > 200
    assert [event["what"] for event in again][-2:] == ["dispatched", "finished"]


def test_the_steps_of_a_start_follow_each_other() -> None:
    said = benchmark("startup", "--times", 1)
    rows = dict(line.rsplit(None, 1) for line in said.splitlines()[3:])
    *steps, total = rows
    assert total == "until the first unit is committed"
    assert len(steps) == 6
    assert all(float(rows[step]) >= 0 for step in steps)
    assert sum(float(rows[step]) for step in steps) == pytest.approx(float(rows[total]), abs=0.35)
