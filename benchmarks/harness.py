"""Alternating timing of contestants in one run, and the table and JSON that all benchmarks print.

On a shared machine seconds drift; ratios of runs that alternate (A B C, A B C, ...) do not. Every contestant is warmed
up once, then each round runs all of them once, in turn; a figure is the median over the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Contestant:
    """Something that is timed.

    ``run`` is called once per round; ``warm_up`` once before all rounds (default: ``run``). ``measured`` reads the
    seconds off what ``run`` returned, where a run has a set-up that does not count; otherwise the clock tells them.
    """

    name: str
    run: Callable[[], Any]
    warm_up: Callable[[], Any] | None = None
    measured: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, and what the last round returned."""

    seconds: tuple[float, ...]
    result: Any

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return statistics.median(self.seconds)


def alternate(
    contestants: Sequence[Contestant],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Timing]:
    """Warm every contestant up, then run all of them in turn, ``repeats`` times.

    Args:
        contestants: of different names.
        repeats: rounds, 1 or more.
        clock: seconds; read right before and right after each run.
        say: told what each run took.

    Raises:
        ValueError: two contestants of one name, or no round.
    """
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names):
        raise ValueError(f"two contestants have the same name: {names}")
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; a median needs 1 round or more")
    for contestant in contestants:
        (contestant.warm_up or contestant.run)()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    for number in range(repeats):
        for contestant in contestants:
            start = clock()
            result = contestant.run()
            elapsed = clock() - start
            results[contestant.name] = result
            seconds[contestant.name].append(contestant.measured(result) if contestant.measured else elapsed)
            say(f"round {number + 1} of {repeats}: {contestant.name} {seconds[contestant.name][-1]:.2f} s")
    return {name: Timing(tuple(seconds[name]), results[name]) for name in names}


@dataclass(frozen=True)
class Row:
    """One comparison.

    ``ours_s`` and ``peer_s`` are median seconds for the same work. ``agreement`` is the largest difference of the
    maps, scaled to a largest value of 1; None where there is nothing to compare, or where the peer computes something
    else (a note says so).
    """

    work: str
    peer: str
    ours_s: float
    peer_s: float
    agreement: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes: ``peer_s / ours_s``."""
        return self.peer_s / self.ours_s

    def document(self) -> dict[str, Any]:
        """The row as the JSON file has it."""
        return {
            "work": self.work,
            "peer": self.peer,
            "ours_s": self.ours_s,
            "peer_s": self.peer_s,
            "ratio": self.ratio,
            "agreement": self.agreement,
        }


@dataclass
class Report:
    """What a benchmark found: rows, and remarks that a reader of the rows needs.

    ``extra`` holds further members of the JSON document, such as memory.
    """

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The whole report as the JSON file has it."""
        rows = [row.document() for row in self.rows]
        return {"machine": machine(), "rows": rows, "notes": self.notes, **self.extra}

    def table(self) -> str:
        """The report for people; ``ratio`` above 1 means that we are faster."""
        width = max([len("work"), *(len(row.work) for row in self.rows)])
        peer_width = max([len("peer"), *(len(row.peer) for row in self.rows)])
        lines = [
            f"Machine: {machine()}",
            "",
            f"{'work':<{width}}  {'peer':<{peer_width}} {'ours s':>9} {'peer s':>9} {'ratio':>8} {'1/ratio':>8} "
            f"{'agreement':>10}",
        ]
        for row in self.rows:
            agreement = "-" if row.agreement is None else f"{row.agreement:.1e}"
            lines.append(
                f"{row.work:<{width}}  {row.peer:<{peer_width}} {row.ours_s:>9.3f} {row.peer_s:>9.3f} "
                f"{row.ratio:>7.2f}x {1 / row.ratio:>7.3f}x {agreement:>10}"
            )
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)

    def publish(self, path: Path | None) -> None:
        """Print the table, and write the JSON file where one is asked for."""
        print(self.table(), flush=True)
        if path is not None:
            path.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """Name what the figures were taken on: CPU model, cores and threads, torch."""
    return (
        f"{_cpu_model()}, {_cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
