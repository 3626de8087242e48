"""The dispatcher alone: a job of many units that do nothing, on actors that do nothing.

    python -m benchmarks.dispatch [--units 100000] [--workers 2] [--json FILE]

The real dispatcher, progress monitor and metrics run on a local Ray. The limit is what Ray itself does: calls of the
same actors with as many in flight, and nothing accounted for. The driver's peak memory is taken after a job of
--few units and again after the whole one; in a process it only grows, so the difference is what the units cost.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import command, make_parser, positive, say
from pipeline.engine.dispatcher import IN_FLIGHT, Dispatcher
from pipeline.engine.metrics import MetricsMonitor, Monitors, Recorder
from pipeline.engine.outcome import Outcome, Progress, Tally, WorkerInfo
from pipeline.engine.progress import ProgressMonitor
from schemas.documents import Attempt
from schemas.errors import CamlakeError
from schemas.job import Workers
from schemas.unit import Unit

#: Most calls that the bare loop makes; its rate does not depend on the number.
_MOST_BARE = 10_000


class NoOpWorker:
    """An actor with the methods of ``AttributionWorker`` that does nothing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def start(self) -> WorkerInfo:
        """Say that it is ready."""
        return WorkerInfo(self._name, platform.node(), "cpu", os.getpid())

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        """Return what a committed unit of one image would."""
        seconds = dict.fromkeys(("read", "decode", "wait", "compute", "write", "total"), 0.0)
        return Outcome(unit.unit_id, attempt, self._name, {"ok": 1}, 1, 1, seconds)

    def progress(self) -> Progress:
        """Images of the current unit: none; and that something goes on."""
        return Progress(0, (time.monotonic(),))

    def stack(self) -> str:
        """What its threads do: nothing."""
        return ""


def units(count: int) -> Iterator[Unit]:
    """Yield units as a plan of ``count`` shards has them, one by one."""
    for number in range(count):
        yield Unit(f"{number:06d}", number, f"s3://bucket/shards/shard-{number:06d}.tar", byte_size=1 << 28)


def dispatch(spawn: Any, workers: int, count: int) -> int:
    """Run ``count`` units through the dispatcher and return how many are done.

    Raises:
        CamlakeError: not every unit was done exactly once.
    """
    monitor = ProgressMonitor(count, Tally(), io.StringIO())

    def give_up(unit: Unit, attempts: list[Attempt]) -> None:
        raise CamlakeError(f"unit {unit.unit_id} failed: {attempts[-1].reason}")

    told = Monitors([monitor, MetricsMonitor(Recorder("benchmark"), monitor)])
    Dispatcher(spawn, Workers(max=workers), told, give_up).run(units(count), count)
    if monitor.done.units != count:
        raise CamlakeError(f"{monitor.done.units} of {count} units were done")
    return count


def bare_calls(spawn: Any, workers: int, count: int) -> int:
    """Make ``count`` calls with the dispatcher's number in flight, and return how many came back."""
    import ray

    actors = [spawn(f"bare-{number}") for number in range(workers)]
    ray.get([actor.start.remote() for actor in actors])
    flights: dict[Any, Any] = {}
    waiting = units(count)
    done = 0
    for actor in actors:
        for _ in range(IN_FLIGHT):
            if (unit := next(waiting, None)) is not None:
                flights[actor.process.remote(unit, "bare")] = actor
    while flights:
        ready, _ = ray.wait(list(flights), num_returns=1)
        actor = flights.pop(ready[0])
        ray.get(ready[0])
        done += 1
        if (unit := next(waiting, None)) is not None:
            flights[actor.process.remote(unit, "bare")] = actor
    for actor in actors:
        ray.kill(actor)
    return done


def metrics_seconds(count: int) -> float:
    """CPU seconds of this process per unit that its metrics take, over ``count`` units."""
    monitor = ProgressMonitor(count, Tally(), io.StringIO())
    metrics = MetricsMonitor(Recorder("benchmark"), monitor)
    seconds = dict.fromkeys(("read", "decode", "wait", "compute", "write", "total"), 1.0)
    done = Outcome("000000", "a", "worker-001", {"ok": 1}, 1, 1, seconds)
    began = time.process_time()
    for _ in range(count):
        metrics.unit_done(done)
    return (time.process_time() - began) / count


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run(options: argparse.Namespace) -> Report:
    """Dispatch few units, then all, and compare with bare calls."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=options.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    # The dispatcher's actors leave their CPU as they are killed, which takes a moment: the next need not wait for it.
    actor = ray.remote(NoOpWorker).options(max_restarts=0, max_concurrency=IN_FLIGHT + 1, num_cpus=0)

    def spawn(name: str) -> Any:
        return actor.remote(name)

    try:
        dispatch(spawn, options.workers, options.few)
        memory = [{"units": options.few, "driver_peak_mib": peak_mib()}]
        bare_count = min(options.units, _MOST_BARE)
        timings = alternate(
            [
                Contestant("bare", lambda: bare_calls(spawn, options.workers, bare_count), lambda: None),
                Contestant("ours", lambda: dispatch(spawn, options.workers, options.units), lambda: None),
            ],
            options.repeats,
            say=say,
        )
        memory.append({"units": options.units, "driver_peak_mib": peak_mib()})
        recording = metrics_seconds(options.few)
    finally:
        if started:
            ray.shutdown()
    ours_s = timings["ours"].median
    bare_rate = bare_count / timings["bare"].median
    report = Report(extra={"driver_memory": memory})
    report.rows.append(Row(f"no-op job of {options.units} units", "bare Ray calls", ours_s, options.units / bare_rate))
    report.notes += [
        f"{options.units / ours_s:.0f} units/s through the dispatcher on {options.workers} actors, with their start; "
        f"{bare_rate:.0f} calls/s bare (over {bare_count} calls)",
        f"{recording * 1e6:.0f} microseconds of the driver's CPU time per unit go into its metrics",
        f"driver's peak memory: {memory[0]['driver_peak_mib']:.0f} MiB after {options.few} units, "
        f"{memory[1]['driver_peak_mib']:.0f} MiB after {options.units}",
    ]
    return report


PARSER = make_parser("dispatch", __doc__, repeats=1)
PARSER.add_argument("--units", type=positive, default=100_000, help="units of the job (default: %(default)s)")
PARSER.add_argument("--few", type=positive, default=1_000, help="units of the small job (default: %(default)s)")
PARSER.add_argument("--workers", type=positive, default=2, help="actors (default: %(default)s)")
main = command("benchmarks.dispatch", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
