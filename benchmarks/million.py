"""A million units: planned, dispatched, the driver killed half way, and the run resumed.

    python -m benchmarks.million [--units 1000000] [--workers 2] [--json FILE]

The run is the job's own: frozen plan, manifest, dispatcher, progress, resume and finish on a local lake and a local
Ray. Only what a unit does is left out: a worker writes a commit without objects and nothing else. The driver is a
process of its own, which is killed (SIGKILL) when half of the units are committed and started anew. It writes down its
memory as it goes on: from PyTorch, which it loads to check a job's model, some 700 MiB; what counts is what is added.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil

from benchmarks.dispatch import NoOpWorker, units
from benchmarks.harness import machine
from benchmarks.inputs import positive, say
from jobs.config import absolute, parse_job
from pipeline.engine.outcome import Outcome, Tally
from pipeline.engine.progress import ProgressMonitor
from pipeline.engine.run import carry_out, make_manifest, resolve
from pipeline.lake.documents import to_bytes
from pipeline.lake.plan import freeze
from pipeline.lake.writer import now
from schemas import layout
from schemas.documents import Commit, Manifest
from schemas.errors import CamlakeError
from schemas.job import Job
from schemas.unit import Unit

_SAMPLES = 20


class CommittingWorker(NoOpWorker):
    """Commits units that hold nothing."""

    def __init__(self, job: Job, manifest: Manifest, name: str) -> None:
        super().__init__(name)
        self._folder = Path(job.output.uri)

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        """Write the unit's commit, without asking the disk whether it has it."""
        outcome = super().process(unit, attempt, careful)
        commit = Commit(
            unit_id=unit.unit_id,
            attempt=attempt,
            created=now(),
            worker=outcome.worker,
            images=outcome.images,
            maps=0,
            objects=[],
            seconds=outcome.seconds,
        )
        path = self._folder / layout.commit(unit.unit_id)
        path.parent.mkdir(exist_ok=True)
        # Under another name first: whoever is killed here must leave no half of a commit.
        partial = path.with_name(f".{path.name}.{attempt[:8]}.partial")
        partial.write_bytes(to_bytes(commit))
        partial.rename(path)
        return outcome


class Log:
    """What the driver did when, and its memory then, a JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = time.monotonic()
        self._process = psutil.Process()

    def __call__(self, what: str, **figures: Any) -> None:
        times = self._process.cpu_times()
        line = {
            "what": what,
            "seconds": round(time.monotonic() - self._began, 2),
            "cpu_seconds": round(times.user + times.system, 2),
            "mib": round(self._process.memory_info().rss / 2**20),
            **figures,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Sampled(ProgressMonitor):
    """Writes the driver's memory down every so many units."""

    def __init__(self, units: int, before: Tally, stream: TextIO | None, log: Log) -> None:
        super().__init__(units, before, stream)
        self._log = log

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        super().unit_done(outcome)
        if self.done.units == 1 or self.done.units % max(1, self.units // _SAMPLES) == 0:
            self._log("units", units=self.before.units + self.done.units)


def drive(folder: Path, count: int, workers: int, finish: bool) -> None:
    """Be the driver: plan, dispatch what is left and (with ``finish``) finish the lake."""
    import ray

    log = Log(folder / "log.jsonl")
    job = absolute(parse_job(_document(folder, workers)))
    resolved = resolve(job)
    log("start")
    plan = freeze(units(count))
    manifest = make_manifest(job, resolved, plan)
    log("planned", plan_bytes=len(plan.data))

    def connect() -> None:
        log("listed")
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def told(line: str) -> None:
        if line.startswith("checking"):
            log("dispatched")
            if not finish:
                raise SystemExit(0)

    carry_out(
        job,
        manifest,
        plan,
        connect,
        say=told,
        monitor=lambda units, before, stream: Sampled(units, before, stream, log),
        worker=CommittingWorker,
    )
    log("finished")


def _document(folder: Path, workers: int) -> dict[str, Any]:
    return {
        "source": {"uri": str(folder / "*.tar"), "format": "webdataset"},
        "model": {
            "name": "jobs.demo.network:digit_net",
            "weights": "random",
            "options": {"widths": [4, 4, 4, 4]},
            "preprocess": {"resize": 96, "crop": 96, "mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "methods": ["grad_cam"],
        "output": {"uri": str(folder / "lake")},
        "workers": {"max": workers},
    }


def run(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start the driver, kill it half way, start it again; returns what both wrote down, with the run's number.

    Raises:
        CamlakeError: a driver ended otherwise than it should, or a commit is missing.
    """
    log = folder / "log.jsonl"
    found: list[dict[str, Any]] = []
    for number in (1, 2):
        log.write_text("")
        command = [sys.executable, "-m", "benchmarks.million", "--drive", str(folder), "--units", str(options.units)]
        command += ["--workers", str(options.workers), *(["--finish"] if options.finish else [])]
        with (folder / "output").open("ab") as output:
            driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        killed = _watch(driver, log, options.units // 2 if number == 1 else None)
        if (driver.returncode != -signal.SIGKILL) if killed else driver.returncode:
            raise CamlakeError(f"the driver ended with {driver.returncode}: {(folder / 'output').read_text()[-500:]}")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found += [{"run": number, **line} for line in lines]
    committed = sum(entry.name.endswith(".json") for entry in os.scandir(folder / "lake" / layout.COMMITS))
    if committed != options.units:
        raise CamlakeError(f"{committed} of {options.units} units are committed")
    return found


def _watch(driver: subprocess.Popen[bytes], log: Path, kill_at: int | None) -> bool:
    """Wait for the driver's end; kill it once ``kill_at`` units are done, and say whether that was."""
    seen = 0
    while driver.poll() is None:
        lines = log.read_text().splitlines()
        for line in lines[seen:]:
            say(line)
        seen = len(lines)
        if kill_at is not None and any(json.loads(line).get("units", 0) >= kill_at for line in lines):
            driver.kill()
            driver.wait()
            return True
        time.sleep(0.2)
    return False


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures for people."""
    lines = [f"Machine: {machine()}", "", "run  event            units   seconds  CPU seconds  driver MiB"]
    lines += [
        f"{line['run']:>3}  {line['what']:<12} {line.get('units', ''):>9} {line['seconds']:>9.1f} "
        f"{line['cpu_seconds']:>12.1f} {line['mib']:>11}"
        for line in found
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0, or 2 where a driver failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.million", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", type=positive, default=1_000_000, help="of the plan (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="actors (default: %(default)s)")
    parser.add_argument("--finish", action="store_true", help="finish the lake, too: every commit is read")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive is not None:
        drive(options.drive, options.units, options.workers, options.finish)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="camlake-million-") as folder:
            found = run(Path(folder), options)
    except CamlakeError as error:
        print(f"benchmarks.million: {error}", file=sys.stderr)
        return 2
    print(table(found), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine(), "events": found}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
