"""Time and memory of ``camlake audit`` over lakes of many maps.

    python -m benchmarks.audit_scale [--maps 10000 100000 1000000] [--classes 1000] [--groups 30] [--workers 0]

Lakes are generated (:mod:`benchmarks.generated_lake`: one map of 7x7 cells per image, units of 4,096 images, the
columns ``site`` with --groups values and ``camera`` with four, four of five predictions right) and written by the
lake's own writer, which is not counted. Each is audited by both columns in a process of its own, without causal check:
wall and CPU seconds of the pass over the lake, of merging its parts, of the findings and of the report with all tables;
peak resident memory, with the process's children; bytes of the report and of the parts.

--folder keeps lakes and audits, so that the same command does not write the lakes again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.generated_lake import CAMERA, SITE, Spec, write_lake
from benchmarks.harness import Report, machine
from benchmarks.inputs import command, positive, say
from schemas.errors import CamlakeError

STAGES = ("pass", "merge", "findings", "report")
_EVERY = 0.1
#: Bounds the threads of every library that has some.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class ScaleReport(Report):
    """A report whose rows are audits; each row holds what ``benchmarks.audited`` says, and the seconds of writing."""

    audits: list[dict[str, Any]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The report as the JSON file has it."""
        return {"machine": machine(), "rows": self.audits, "notes": self.notes, **self.extra}

    def table(self) -> str:
        """The report for people: CPU seconds by stage, beside them the wall's of all."""
        heads = ("maps", "units", "written s", *(f"{stage} s" for stage in STAGES), "all s", "wall s")
        heads = (*heads, "s per 10^6", "peak MB", "parts MB", "report MB", "findings")
        lines = [f"Machine: {machine()}", "", " ".join(f"{head:>10}" for head in heads)]
        for row in self.audits:
            cpu = row["cpu_seconds"]
            cells: list[Any] = [row["maps"], row["units"], f"{row['written_s']:.1f}"]
            cells += [f"{cpu[stage]:.1f}" for stage in STAGES]
            cells += [f"{cpu['all']:.1f}", f"{row['seconds']['all']:.1f}", f"{row['s_per_million']:.0f}"]
            cells += [f"{row['peak_mb']:.0f}", f"{row['parts_bytes'] / 1e6:.1f}", f"{row['report_bytes'] / 1e6:.2f}"]
            lines.append(" ".join(f"{cell:>10}" for cell in [*cells, row["findings"]]))
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])


def measure(lake: str, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Audit a lake in a process of its own.

    Raises:
        CamlakeError: it failed; what it said is on stderr.
    """
    given = [lake, str(output), "--workers", str(options.workers), "--groups", f"{SITE},{CAMERA}"]
    threads = dict.fromkeys(_THREADS, str(options.threads))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.audited", *given],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
    )
    with _watched(process.pid) as tree:
        said, _ = process.communicate()
    if process.returncode:
        raise CamlakeError(f"the audit of {lake} ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    # What a process says of itself is exact; its children are looked at now and then.
    found["peak_mb"] = max(found["peak_mb"], round(tree["peak"] / 1e6, 1))
    return found


@contextmanager
def _watched(pid: int) -> Iterator[dict[str, int]]:
    """Look at the resident memory of a process and all its children, ten times a second; ``peak`` is in bytes."""
    found, stop = {"peak": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(_EVERY):
            found["peak"] = max(found["peak"], _resident(pid))

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _resident(pid: int) -> int:
    total = 0
    try:
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.Error:
        return 0  # one of them has just ended; the next look sees the others
    return total


def run(options: argparse.Namespace) -> Report:
    """Write, audit, and return the rows."""
    report = ScaleReport()
    for maps in options.maps:
        with _folder(options.folder) as folder:
            spec = Spec(maps, options.classes, options.groups, (options.grid, options.grid))
            name = f"{maps}-{spec.classes}-{spec.groups}-{options.grid}"
            output = folder / f"{name}.audit"
            shutil.rmtree(output, ignore_errors=True)
            began = time.perf_counter()
            lake = write_lake(folder / name, spec)
            written = time.perf_counter() - began
            say(f"{maps} maps are written in {written:.1f} s")
            found = measure(lake, output, options)
        found |= {"written_s": round(written, 2), "groups": spec.groups, "grid": [options.grid, options.grid]}
        found["s_per_million"] = round(found["cpu_seconds"]["all"] * 1e6 / found["maps"], 1)
        report.audits.append(found)
        say(json.dumps(found))
    stages = ", ".join(STAGES)
    report.notes += [
        f"{options.classes} classes, columns of {options.groups} and 4 values, maps of {options.grid}x{options.grid} "
        f"cells, {options.threads} thread, {options.workers or 'no'} Ray workers",
        f"seconds are CPU seconds of the audit's own process ({stages}; 'all' has the imports' too), wall s is all by "
        "the clock; of Ray workers only the clock tells",
        "peak MB is resident memory at its highest (10^6 bytes), of which "
        f"{report.audits[0]['imports_mb']:.0f} MB are there before the audit begins",
    ]
    return report


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="camlake-scale-") as folder:
        yield Path(folder)


PARSER = argparse.ArgumentParser(
    prog="python -m benchmarks.audit_scale",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
PARSER.add_argument("--maps", type=positive, nargs="+", default=[10**4, 10**5, 10**6], help="maps of each lake")
PARSER.add_argument("--classes", type=positive, default=1000, help="classes of the model (default: %(default)s)")
PARSER.add_argument("--groups", type=positive, default=30, help="values of the column site (default: %(default)s)")
PARSER.add_argument("--grid", type=positive, default=7, help="cells of a map's side (default: %(default)s)")
PARSER.add_argument("--workers", type=int, default=0, help="Ray tasks at a time; 0: no Ray (default: %(default)s)")
PARSER.add_argument("--threads", type=positive, default=1, help="threads of numpy and arrow (default: %(default)s)")
PARSER.add_argument("--folder", type=Path, help="keep lakes and audits there (default: a temporary one)")
PARSER.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
main = command("benchmarks.audit_scale", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
