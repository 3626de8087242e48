"""Seconds by stage, added up over threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: Stages of a unit: reading encoded images; decoding and preprocessing (summed over threads); the compute thread
#: waiting for either; computing; refining labels; encoding and writing; and from the unit's start to its commit.
STAGES = ("read", "decode", "wait", "compute", "refine", "write", "total")


def in_words(seconds: Mapping[str, float]) -> str:
    """Return seconds by stage, those of refining where there are some."""
    shown = [stage for stage in STAGES if stage != "refine" or seconds.get(stage)]
    return ", ".join(f"{stage} {seconds.get(stage, 0.0):.1f}" for stage in shown)


class StageClock:
    """Adds wall seconds to named stages; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def add(self, stage: str, seconds: float) -> None:
        """Add ``seconds`` to ``stage``."""
        with self._lock:
            self._seconds[stage] += seconds

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to ``stage``, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far."""
        with self._lock:
            return dict(self._seconds)
