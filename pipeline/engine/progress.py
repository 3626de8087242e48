"""Progress for people: a bar on a terminal, plain lines elsewhere; and the totals of the run."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.engine.clock import STAGES
from pipeline.engine.log import Line, is_json, is_terminal, tell
from pipeline.engine.outcome import Outcome, Pool, Tally, WorkerInfo
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
        self._current = self._workers = 0
        self._began = time.monotonic()
        self._working: float | None = None
        self._said = self._began
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if is_terminal(self._stream):
            self._bar = Progress(
                TextColumn("units"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
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
        self._say(
            Line(
                f"{info.name} is ready on {info.node} ({info.device})",
                "worker_ready",
                worker_id=info.name,
                node=info.node,
                device=info.device,
                pid=info.pid,
            )
        )

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        """A worker died; another takes its place."""
        self.lost.append(name)
        self._died[name] = time.monotonic()
        self._say(
            Line(f"{name} died: {reason}", "worker_died", logging.WARNING, worker_id=name, kind=kind, reason=reason)
        )

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        """So many of the ``workers`` have found no node yet that has ``wanted`` to spare."""
        others = "the others go on" if waiting < workers else "nothing is done until then"
        text = (
            f"{waiting} of {workers} workers have no place yet: they join as a node comes that has {wanted} to spare "
            f"('ray status' says what the cluster lacks); {others}"
        )
        self._say(Line(text, "workers_waiting", logging.WARNING, waiting=waiting, workers=workers, wanted=wanted))

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        self.done.add(outcome.images, outcome.maps, outcome.bytes)
        stages = self.seconds.setdefault(outcome.worker, dict.fromkeys(STAGES, 0.0))
        for stage, seconds in outcome.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        # The commit of a worker that died before it could say so comes to light when the unit is tried again.
        self._committed[outcome.worker] = self._died.get(outcome.worker, time.monotonic())
        self.slowest = sorted([*self.slowest, (outcome.seconds.get("total", 0.0), outcome.unit_id)], reverse=True)[:3]
        if is_json():
            self._say(_done(outcome), counts=False)
        self._refresh(advance=1)

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""
        self._failing.add(attempt.worker)
        about: dict[str, Any] = {
            "unit_id": unit.unit_id,
            "worker_id": attempt.worker,
            "attempt": attempt.attempt,
            "kind": attempt.kind,
            "reason": attempt.reason,
        }
        if final:
            self.quarantined.append((unit.unit_id, attempt.reason))
            text = f"unit {unit.unit_id} is given up and quarantined: {attempt.reason}"
            self._say(Line(text, "unit_quarantined", logging.ERROR, **about))
            self._refresh(advance=1)
        else:
            self.retried += 1
            text = f"unit {unit.unit_id} failed and is tried again: {attempt.reason}"
            self._say(Line(text, "unit_retried", logging.WARNING, **about))

    def in_progress(self, images: int) -> None:
        """Images explained in units that are not committed yet."""
        self._current = images
        self._refresh()

    def pool(self, pool: Pool) -> None:
        """The workers, each second."""
        self._workers = pool.ready

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

    @property
    def left(self) -> int:
        """Units that are neither committed nor given up."""
        return self.units - self.before.units - self.done.units - len(self.quarantined)

    @property
    def images(self) -> int:
        """Images explained by this run, those of units in progress among them."""
        return self.done.total_images + self._current

    def rate(self) -> float:
        """Images per second since the first worker was ready: how long models load says nothing of what is left."""
        return self.images / max(time.monotonic() - (self._working or self._began), 1e-9)

    def eta(self) -> float | None:
        """Seconds that the rest will take, where a unit is done that it can be estimated from."""
        if not self.done.units or self.left <= 0:
            return None
        # Units in progress count by their images, against the mean of the finished ones.
        expected = self.left * self.done.total_images / self.done.units - self._current
        return max(expected, 0.0) / max(self.rate(), 1e-9)

    def note(self) -> str:
        """Images per second, expected time left, and failures, in a few words."""
        eta = self.eta()
        text = f"{self.images} images, {self.rate():.1f}/s" + ("" if eta is None else f", ETA {clock_time(eta)}")
        return f"{text}, {self.done.failed_images} failed"

    def _refresh(self, advance: int = 0) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=advance, note=self.note())
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            eta = self.eta()
            self._say(
                Line(
                    f"units {self.units - self.left}/{self.units}, {self.note()}",
                    "progress",
                    units=self.units,
                    units_left=self.left,
                    workers=self._workers,
                    images=self.images,
                    images_failed=self.done.failed_images,
                    images_per_second=round(self.rate(), 3),
                    eta_seconds=None if eta is None else round(eta, 1),
                )
            )

    def _say(self, line: Line, *, counts: bool = True) -> None:
        if counts:
            self._said = time.monotonic()
        if self._bar:
            self._bar.console.print(str(line), highlight=False, markup=False)
        else:
            tell(line, self._stream)


def _done(outcome: Outcome) -> Line:
    """What JSON says of every unit; for people there would be too many."""
    return Line(
        f"unit {outcome.unit_id} is committed",
        "unit_done",
        unit_id=outcome.unit_id,
        worker_id=outcome.worker,
        attempt=outcome.attempt,
        images=outcome.images,
        maps=outcome.maps,
        bytes=outcome.bytes,
        seconds={stage: round(seconds, 3) for stage, seconds in outcome.seconds.items()},
    )


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
