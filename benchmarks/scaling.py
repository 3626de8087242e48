"""Throughput by the number of workers: the whole engine, with a compute stage that sleeps as long as a GPU would work.

    python -m benchmarks.scaling [--workers 1 2 4 8 16 32 64] [--json FILE]

A job on tar shards runs on a local Ray that declares as many GPUs as there are workers: its own plan, dispatcher,
actors (one process each), source, sink and commits. No GPU and no further machine stand behind them, so three things
stand in: a unit's compute stage sleeps for --seconds, what a GPU takes for --images of them; its shard holds --stored
images, which are read and not decoded, since the cores of one machine cannot read and decode for 64; and no worker
loads PyTorch (:mod:`benchmarks.sleeping`). Images per second count --images for a unit.

``steady`` is from when the last worker was ready until each has done --units further ones, when the run is stopped as
by Ctrl-C: the sum over workers of their commits per second between the first and the last of these. ``whole`` is all
that was committed over all of the time, from connecting to Ray to the last commit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.harness import machine
from benchmarks.inputs import positive, say
from benchmarks.sleeping import sleeping_worker
from jobs.config import absolute, parse_job
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from pipeline.engine.outcome import Outcome, Tally, WorkerInfo
from pipeline.engine.progress import ProgressMonitor
from pipeline.engine.run import carry_out, make_manifest, resolve
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.errors import CamlakeError
from schemas.job import Job

#: Seconds that a further worker may take to start on a slow machine; units are planned for as long, at the least.
_START_SECONDS = 3.0
_OBJECT_STORE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Scaled:
    """What one number of workers did.

    Rates are images per second. ``start_s`` is from connecting to Ray to the readiness of the last worker.
    ``driver_cpu`` is CPU seconds of the driver per second, ``machine_cpu`` the share of all cores that was busy with
    anything, both in the steady part; ``worker_mib`` a worker's memory, with its share of what several map.
    """

    workers: int
    units: int
    steady: float
    limit: float
    whole: float
    start_s: float
    driver_cpu: float
    machine_cpu: float
    worker_mib: float


class Recorder(ProgressMonitor):
    """Writes down when workers were ready and units done, and stops the run once every worker has done enough."""

    def __init__(self, units: int, before: Tally, stream: TextIO | None, *, workers: int, enough: int) -> None:
        super().__init__(units, before, stream)
        self.began = time.monotonic()
        self.ready: list[float] = []
        self.commits: dict[str, list[float]] = {}
        self.last = self.began
        self.worker_mib = 0.0
        self.driver_cpu = self.machine_cpu = 0.0
        self._wanted = workers
        self._enough = enough
        self._process_seconds = 0.0
        self._stopped = False

    def worker_ready(self, info: WorkerInfo) -> None:
        """A worker is ready; with the last of them the steady part begins."""
        super().worker_ready(info)
        self.ready.append(time.monotonic())
        self.commits[info.name] = []
        if len(self.ready) == self._wanted:
            psutil.cpu_percent()
            self._process_seconds = time.process_time()

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        """No worker may die here."""
        raise CamlakeError(f"{name} died ({reason}); is there memory for {self._wanted} workers?")

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        super().unit_done(outcome)
        self.last = time.monotonic()
        if len(self.ready) < self._wanted or self._stopped:
            return
        self.commits[outcome.worker].append(self.last)
        if min(map(len, self.commits.values())) > self._enough:
            self._stopped = True
            self.driver_cpu = (time.process_time() - self._process_seconds) / (self.last - self.ready[-1])
            self.machine_cpu = psutil.cpu_percent() / 100
            self.worker_mib = _worker_mib()
            signal.raise_signal(signal.SIGINT)

    def steady(self) -> float:
        """Units per second of all workers in the steady part.

        Raises:
            CamlakeError: the plan ended before each had done enough.
        """
        if not self._stopped:
            raise CamlakeError("the plan ended before every worker had done --units; workers started too slowly")
        return sum((len(times) - 1) / (times[-1] - times[0]) for times in self.commits.values())


def measure(workers: int, options: argparse.Namespace, folder: Path) -> Scaled:
    """Run the job with ``workers`` workers."""
    import ray

    planned = workers * (options.units + 4 + round(_START_SECONDS * workers / options.seconds))
    job = _job(workers, planned, options, folder)
    plan = freeze(open_source(job.source).plan())
    manifest = make_manifest(job, resolve(job), plan)
    recorders: list[Recorder] = []

    def monitor(units: int, before: Tally, stream: TextIO | None) -> ProgressMonitor:
        recorders.append(Recorder(units, before, stream, workers=workers, enough=options.units))
        return recorders[0]

    def connect() -> None:
        resources: dict[str, Any] = {"num_cpus": workers, "num_gpus": workers}
        ray.init(
            "local",
            **resources,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=_OBJECT_STORE_BYTES,
        )

    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - no file
            carry_out(
                job,
                manifest,
                plan,
                connect,
                say=lambda line: None,
                stream=nowhere,
                monitor=monitor,
                worker=sleeping_worker(options.seconds),
            )
    finally:
        ray.shutdown()
    found = recorders[0]
    return Scaled(
        workers=workers,
        units=found.done.units,
        steady=found.steady() * options.images,
        limit=workers * options.images / options.seconds,
        whole=found.done.units * options.images / (found.last - found.began),
        start_s=found.ready[-1] - found.began,
        driver_cpu=found.driver_cpu,
        machine_cpu=found.machine_cpu,
        worker_mib=found.worker_mib,
    )


def _job(workers: int, units: int, options: argparse.Namespace, folder: Path) -> Job:
    """Return a job on ``units`` shards, which are links to one."""
    shards = folder / f"shards-{workers}"
    [shard] = write_shards(make_scenes(options.stored, split="test", seed=5), folder / f"shard-{workers}", shards=1)
    shards.mkdir()
    for number in range(units):
        os.link(shard, shards / f"shard-{number:06d}.tar")
    document = {
        "source": {"uri": f"{shards}/shard-{{000000..{units - 1:06d}}}.tar", "format": "webdataset"},
        "model": {
            "name": "jobs.demo.network:digit_net",
            "weights": "random",
            "options": {"widths": [4, 4, 4, 4]},
            "preprocess": {"resize": 96, "crop": 96, "mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "methods": ["grad_cam"],
        "output": {"uri": str(folder / f"lake-{workers}")},
        "workers": {"max": workers, "gpus": 1},
    }
    return absolute(parse_job(document))


def _worker_mib() -> float:
    """Median memory in MiB of the actors of this process's Ray, with their share of pages that several map."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Worker" in process.name() or any("ray::Worker" in word for word in process.cmdline()):
                found.append(process.memory_full_info().pss / 2**20)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            continue
    return statistics.median(found) if found else float("nan")


def table(rows: Sequence[Scaled], options: argparse.Namespace) -> str:
    """The figures for people."""
    first = rows[0]
    lines = [
        f"Machine: {machine()}",
        f"A unit: {options.images} images in {options.seconds:g} s ({options.images / options.seconds:.0f} images/s)",
        "",
        "workers   steady  of linear  of the sleep's limit    whole  start-up s  driver CPU  machine CPU  MiB a worker",
    ]
    for row in rows:
        linear = row.steady / (first.steady * row.workers / first.workers)
        lines.append(
            f"{row.workers:>7} {row.steady:>8.0f} {linear:>10.1%} {row.steady / row.limit:>21.1%} {row.whole:>8.0f} "
            f"{row.start_s:>11.1f} {row.driver_cpu:>11.1%} {row.machine_cpu:>12.0%} {row.worker_mib:>13.0f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0, or 2 where a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=positive, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="(default: %(default)s)")
    add("--units", type=positive, default=10, help="units of each worker in the steady part (default: %(default)s)")
    add("--seconds", type=float, default=4.0, help="that a unit computes (default: %(default)s)")
    add("--images", type=positive, default=1000, help="that a unit stands for (default: %(default)s)")
    add("--stored", type=positive, default=16, help="images that a shard really holds (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    rows = []
    try:
        for workers in options.workers:
            with tempfile.TemporaryDirectory(prefix="camlake-scaling-") as folder:
                rows.append(measure(workers, options, Path(folder)))
            say(f"{workers} workers: {rows[-1].steady:.0f} images/s, {rows[-1].whole:.0f} with start-up")
    except CamlakeError as error:
        print(f"benchmarks.scaling: {error}", file=sys.stderr)
        return 2
    print(table(rows, options), flush=True)
    if options.json is not None:
        settings = {name: getattr(options, name) for name in ("units", "seconds", "images", "stored")}
        document = {"machine": machine(), **settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
