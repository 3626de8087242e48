"""Progress for people: a bar on a terminal, plain lines elsewhere; and the totals of the run."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.engine.clock import STAGES
from pipeline.engine.outcome import Outcome, Tally, WorkerInfo
from schemas.documents import Attempt
from schemas.unit import Unit

_LINE_SECONDS = 10.0


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
        if self._working is None:
            self._working = time.monotonic()
        self._say(f"{info.name} is ready on {info.node} ({info.device})")

    def worker_lost(self, name: str, reason: str) -> None:
        """A worker died; another takes its place."""
        self.lost.append(name)
        self._say(f"{name} died: {reason}")

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        self.done.add(outcome.images, outcome.maps, outcome.bytes)
        stages = self.seconds.setdefault(outcome.worker, dict.fromkeys(STAGES, 0.0))
        for stage, seconds in outcome.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        self.slowest = sorted([*self.slowest, (outcome.seconds.get("total", 0.0), outcome.unit_id)], reverse=True)[:3]
        self._refresh(advance=1)

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""
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
