"""Progress for people: a bar on a terminal, plain lines elsewhere; and the totals of the run."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.engine.clock import STAGES
from pipeline.engine.outcome import Outcome, Tally, WorkerInfo
from schemas.documents import Attempt
from schemas.unit import Unit

_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class WorkerTime:
    """Where a worker's time went, in seconds; ``computing``, ``waiting`` and ``other`` add up to ``active``.

    ``active`` is from its readiness to its last commit, by the driver's clock. In it the worker was ``computing``;
    ``waiting`` for images that were not read or not decoded yet; or, ``other``, writing with nothing left to compute,
    between two units, starting on its first, or (where ``failed``) on attempts that came to nothing. ``after`` is from
    its last commit to the run's last.
    """

    active: float
    computing: float
    waiting: float
    failed: bool
    after: float

    @property
    def other(self) -> float:
        """What is left of ``active``."""
        return self.active - self.computing - self.waiting

    def sentence(self) -> str:
        """For people: the share that it computed, and why not more."""
        share = self.computing / self.active if self.active else 0.0
        reason = "writing, between units or on failed attempts" if self.failed else "writing or between units"
        text = (
            f"computed {share:.0%} of {self.active:.1f} s; idle {self.waiting:.1f} s waiting for images, "
            f"{self.other:.1f} s {reason}"
        )
        return f"{text}; then {self.after:.1f} s to the run's last commit" if self.after >= 0.05 else text


class ProgressMonitor:
    """Shows how far a run is, and sums up what it did.

    Args:
        units: units of the whole plan.
        before: what earlier runs had committed already.
        stream: where to write; a bar if it is a terminal, else a line every ten seconds.
    """

    def __init__(self, units: int, before: Tally, stream: TextIO | None = None) -> None:
        self.units = units
        self.before = before
        self.done = Tally()
        self.quarantined: list[tuple[str, str]] = []
        self.retried = 0
        self.lost: list[str] = []
        self.seconds: dict[str, dict[str, float]] = {}
        self.slowest: list[tuple[float, str]] = []
        # By worker: when it was ready, last committed and died; and those on which an attempt failed.
        self._ready: dict[str, float] = {}
        self._committed: dict[str, float] = {}
        self._died: dict[str, float] = {}
        self._failing: set[str] = set()
        self._current = 0
        self._began = time.monotonic()
        self._working: float | None = None
        self._said = self._began
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("units"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("units", total=units, completed=before.units, note="starting workers")

    def __enter__(self) -> ProgressMonitor:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    # The dispatcher's Monitor

    def worker_ready(self, info: WorkerInfo) -> None:
        """A worker has loaded its replica."""
        self._ready[info.name] = time.monotonic()
        if self._working is None:
            self._working = self._ready[info.name]
        self._say(f"{info.name} is ready on {info.node} ({info.device})")

    def worker_lost(self, name: str, reason: str) -> None:
        """A worker died; another takes its place."""
        self.lost.append(name)
        self._died[name] = time.monotonic()
        self._say(f"{name} died: {reason}")

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        """So many of the ``workers`` have found no node yet that has ``wanted`` to spare."""
        others = "the others go on" if waiting < workers else "nothing is done until then"
        self._say(
            f"{waiting} of {workers} workers have no place yet: they join as a node comes that has {wanted} to spare "
            f"('ray status' says what the cluster lacks); {others}"
        )

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        self.done.add(outcome.images, outcome.maps, outcome.bytes)
        stages = self.seconds.setdefault(outcome.worker, dict.fromkeys(STAGES, 0.0))
        for stage, seconds in outcome.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        # The commit of a worker that died before it could say so comes to light when the unit is tried again.
        self._committed[outcome.worker] = self._died.get(outcome.worker, time.monotonic())
        self.slowest = sorted([*self.slowest, (outcome.seconds.get("total", 0.0), outcome.unit_id)], reverse=True)[:3]
        self._refresh(advance=1)

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""
        self._failing.add(attempt.worker)
        if final:
            self.quarantined.append((unit.unit_id, attempt.reason))
            self._say(f"unit {unit.unit_id} is given up and quarantined: {attempt.reason}")
            self._refresh(advance=1)
        else:
            self.retried += 1
            self._say(f"unit {unit.unit_id} failed and is tried again: {attempt.reason}")

    def in_progress(self, images: int) -> None:
        """Images explained in units that are not committed yet."""
        self._current = images
        self._refresh()

    # What is shown

    def times(self) -> dict[str, WorkerTime]:
        """Where the time of each worker went that committed something, by its name."""
        found = {}
        last = max(self._committed.values(), default=0.0)
        for worker, committed in sorted(self._committed.items()):
            active = committed - self._ready.get(worker, committed)
            stages = self.seconds[worker]
            # The worker measures by its own clock, which may run a little faster than the driver's; and the commit that
            # landed first may be an earlier run's, by a worker of the same name.
            computing = min(stages["compute"] + stages["refine"], active)
            waiting = min(stages["wait"], active - computing)
            found[worker] = WorkerTime(active, computing, waiting, worker in self._failing, last - committed)
        return found

    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    def note(self) -> str:
        """Images per second, expected time left, and failures, in a few words."""
        images = self.done.total_images + self._current
        # From the first worker on: the time that models take to load says nothing of what is left.
        rate = images / max(time.monotonic() - (self._working or self._began), 1e-9)
        text = f"{images} images, {rate:.1f}/s"
        left = self.units - self.before.units - self.done.units - len(self.quarantined)
        if self.done.units and left > 0:
            # Units in progress count by their images, against the mean of the finished ones.
            expected = left * self.done.total_images / self.done.units - self._current
            text += f", ETA {clock_time(max(expected, 0.0) / max(rate, 1e-9))}"
        return f"{text}, {self.done.failed_images} failed"

    def _refresh(self, advance: int = 0) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=advance, note=self.note())
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            finished = self.before.units + self.done.units + len(self.quarantined)
            self._say(f"units {finished}/{self.units}, {self.note()}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)


def clock_time(seconds: float) -> str:
    """Return seconds as ``h:mm:ss`` or ``m:ss``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def megabytes(size: float) -> str:
    """Return a size in bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
