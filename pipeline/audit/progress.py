"""Progress of a pass over a lake for people: a bar on a terminal, plain lines elsewhere; and what stages took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.engine.log import Line, is_terminal, tell
from pipeline.engine.progress import clock_time

_LINE_SECONDS = 10.0


class Seconds(NamedTuple):
    """What something took: by the clock, and CPU seconds of this process."""

    wall: float
    cpu: float


class Stopwatch:
    """Takes the time of stages, each of which may come several times; ``seconds`` by their names."""

    def __init__(self) -> None:
        self.seconds: dict[str, Seconds] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of what is done inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            before = self.seconds.get(name, Seconds(0.0, 0.0))
            self.seconds[name] = Seconds(
                before.wall + time.perf_counter() - wall, before.cpu + time.process_time() - cpu
            )


class Progression:
    """Shows how many maps of how many are seen.

    Args:
        maps: maps in all.
        before: of parts that earlier runs had written already.
        stream: where to write (default: stderr); a bar if it is a terminal, else a line every ten seconds.
        what: is counted, if not maps.
    """

    def __init__(self, maps: int, before: int, stream: TextIO | None = None, *, what: str = "maps") -> None:
        self._what = what
        self._maps, self._before, self._done = maps, before, 0
        self._stream = stream or sys.stderr
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if is_terminal(self._stream):
            self._bar = Progress(
                TextColumn(what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(file=self._stream),
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(what, total=maps, completed=before, note="")

    def __enter__(self) -> Progression:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def done(self, maps: int) -> None:
        """A chunk of ``maps`` is written."""
        self._done += maps
        if self._bar and self._task is not None:
            self._bar.update(self._task, advance=maps, note=self.note())
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            done, eta = self._before + self._done, self._eta()
            tell(
                Line(
                    f"{self._what} {done}/{self._maps}, {self.note()}",
                    "progress",
                    what=self._what,
                    done=done,
                    planned=self._maps,
                    per_second=round(self._rate(), 3),
                    eta_seconds=None if eta is None else round(eta, 1),
                ),
                self._stream,
            )

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._began, 1e-9)

    def _eta(self) -> float | None:
        left = self._maps - self._before - self._done
        return left / self._rate() if left > 0 and self._done else None

    def note(self) -> str:
        """Maps per second and the expected time left, in a few words."""
        eta = self._eta()
        return f"{self._rate():.0f} {self._what}/s" + ("" if eta is None else f", ETA {clock_time(eta)}")
