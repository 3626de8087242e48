"""Seconds by stage, added up over threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Stages of a unit: reading encoded images; decoding and preprocessing (summed over threads); the compute thread
#: waiting for either; computing; encoding and writing; and from the unit's start to its commit.
STAGES = ("read", "decode", "wait", "compute", "write", "total")


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
