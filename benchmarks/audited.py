"""One audit of a lake in this process, and what it took as one line of JSON.

    python -m benchmarks.audited LAKE OUTPUT [--workers 0] [--groups site,camera]

The scale benchmark starts it in a process of its own, so that nothing else counts. Imports no torch: an audit without
a causal check needs none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.audit.outputs import REPORT
from pipeline.audit.parts_files import FOLDER
from pipeline.audit.run import run_audit
from schemas.audit import Settings

_STATUS = Path("/proc/self/status")


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes).

    Raises:
        OSError: the system has no ``/proc``.
    """
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{_STATUS} has no line VmHWM")


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files under a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def audit(lake: str, output: Path, groups: tuple[str, ...], workers: int) -> dict[str, Any]:
    """Audit a lake without the model, and return seconds by stage, peak memory and sizes."""
    before = peak_mb()
    began, cpu = time.perf_counter(), time.process_time()
    result = run_audit(lake, Settings(groups=groups), str(output), say=_say, workers=workers, connect=_connect(workers))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "maps": result.manifest.counted,
        "units": result.manifest.units,
        "classes": result.manifest.classes,
        "findings": result.manifest.findings,
        "seconds": {name: round(each.wall, 3) for name, each in result.seconds.items()} | {"all": round(wall, 3)},
        "cpu_seconds": {name: round(each.cpu, 3) for name, each in result.seconds.items()} | {"all": round(cpu, 3)},
        "imports_mb": round(before, 1),
        "peak_mb": round(peak_mb(), 1),
        "report_bytes": size_of(output / REPORT),
        "parts_bytes": size_of(output / FOLDER),
        "output_bytes": size_of(output) - size_of(output / FOLDER),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _connect(workers: int) -> Any:
    if not workers:
        return None

    def connect() -> None:
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    return connect


def main() -> None:
    """Parse, audit, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audited")
    parser.add_argument("lake")
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--groups", default="")
    options = parser.parse_args()
    groups = tuple(filter(None, options.groups.split(",")))
    print(json.dumps(audit(options.lake, options.output, groups, options.workers)), flush=True)


if __name__ == "__main__":
    main()
