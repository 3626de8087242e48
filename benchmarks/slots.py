"""What each further worker costs the driver: CPU time per unit, by the number of workers.

    python -m benchmarks.slots [--workers 2 64 256] [--units 20000]

Two parts, since no machine here holds hundreds of workers. The dispatcher's own work: its real loop over as many slots,
with a Ray that answers at once in this process. And Ray's: ``ray.wait`` over as many references as those slots have in
flight (two units and one question each), of which one is ready, on a real Ray.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from benchmarks.dispatch import NoOpWorker, units
from pipeline.engine import dispatcher
from pipeline.engine.outcome import Tally
from pipeline.engine.progress import ProgressMonitor
from schemas.job import Workers

_WAITS = 300
#: Two units and a question about progress.
_REFERENCES = 3


class _Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


class _Call:
    def __init__(self, function: Any) -> None:
        self.function = function

    def remote(self, *arguments: Any) -> _Reference:
        """Do the call at once."""
        return _Reference(self.function(*arguments))


class _Actor:
    def __init__(self, name: str) -> None:
        self.worker = NoOpWorker(name)

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self.worker, name))


class _Ray:
    """As much of Ray as the dispatcher's loop asks for."""

    def __init__(self) -> None:
        self.turn = 0

    def wait(self, references: Sequence[_Reference], num_returns: int, timeout: float) -> tuple[list[_Reference], Any]:
        """Return one of the references, each in its turn."""
        self.turn += 7919  # a prime, so that every place comes up
        return [references[self.turn % len(references)]], []

    def get(self, reference: _Reference, timeout: float | None = None) -> Any:
        """Return a call's result."""
        return reference.value

    def kill(self, actor: Any) -> None:
        """There is no process."""


def own_seconds(workers: int, count: int) -> float:
    """CPU seconds per unit of the dispatcher's loop alone."""
    monitor = ProgressMonitor(count, Tally(), io.StringIO())
    with mock.patch.object(dispatcher, "ray", _Ray()):
        began = time.process_time()
        dispatcher.Dispatcher(_Actor, Workers(max=workers), monitor, lambda *_: None).run(units(count), count)
        took = time.process_time() - began
    assert monitor.done.units == count
    return took / count


def wait_seconds(workers: int) -> float:
    """CPU seconds of this process per ``ray.wait`` (and the ``ray.put`` that it finds ready)."""
    import ray

    class Sleeper:
        async def sleep(self) -> None:
            import asyncio

            await asyncio.sleep(600)

        async def ready(self) -> None:
            return None

    actor = ray.remote(Sleeper).options(max_concurrency=_REFERENCES * workers + 1, num_cpus=0).remote()
    ray.get(actor.ready.remote())
    pending = [actor.sleep.remote() for _ in range(_REFERENCES * workers - 1)]
    began = time.process_time()
    for _ in range(_WAITS):
        ray.wait([*pending, ray.put(None)], num_returns=1, timeout=60)
    took = time.process_time() - began
    ray.kill(actor)
    return took / _WAITS


def main(arguments: list[str] | None = None) -> int:
    """Print both parts by the number of workers."""
    import ray

    parser = argparse.ArgumentParser(prog="benchmarks.slots", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 64, 256], help="(default: %(default)s)")
    parser.add_argument("--units", type=int, default=20_000, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in options.workers:
        own, wait = own_seconds(workers, options.units), wait_seconds(workers)
        print(f"{workers:>5} workers: {own * 1e6:.0f} us per unit in the dispatcher, {wait * 1e6:.0f} us per ray.wait")
    if started:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
