"""From ``camlake submit`` to the first committed unit, and where the time goes.

    python -m benchmarks.startup [--times 2]

Starts a Ray head with its dashboard on this machine, and submits a small job of two shards to it as a user would. The
first submission uploads the code, later ones find it there. Each time is from the end of the step before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from benchmarks.harness import machine
from benchmarks.inputs import positive
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import save_weights
from pipeline.lake import LakeStore
from pipeline.lake.documents import read_commits

_ROOT = Path(__file__).parents[1]
_WIDTHS = [4, 4, 4, 4]
#: The driver's events (its log in JSON, by its own clock) that end a step.
_EVENTS = {
    "model": "driver: PyTorch, model, methods",
    "inputs": "driver: plan, manifest, lake",
    "worker_ready": "worker: process, PyTorch, model",
}
_SUBMITTED = "the command: check, pack, send, submit"
_STARTED = "Ray: environment, driver's process"
_FIRST = "worker: first unit read, explained, committed"
STEPS = [_SUBMITTED, _STARTED, *_EVENTS.values(), _FIRST]


def steps(project: Path, address: str, environment: Mapping[str, str], lake: Path) -> dict[str, float]:
    """Submit the job, and return when each step was done, in seconds from the command's start.

    Raises:
        RuntimeError: the job failed, or a step was not seen.
    """
    command = [sys.executable, "-u", "-m", "jobs.cli", "submit", "job.yaml", "--address", address, "--wait"]
    command += ["--set", f"output.uri={lake}", "--log-format", "json"]
    began = time.time()
    with subprocess.Popen(
        command, cwd=project, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        seen: dict[str, float] = {}
        said = []
        for line in run.stdout:
            said.append(line)
            if line.startswith("submitted "):
                seen.setdefault(_SUBMITTED, time.time() - began)
            elif (event := _event(line)) is not None and event["event"] in _EVENTS:
                seen.setdefault(_EVENTS[event["event"]], datetime.fromisoformat(event["time"]).timestamp() - began)
            if _STARTED not in seen and (started := _driver_started(began)) is not None:
                seen[_STARTED] = started - began
    if run.returncode:
        raise RuntimeError(f"the job ended with {run.returncode}: {''.join(said[-20:])}")
    created = min(datetime.fromisoformat(commit.created) for commit in read_commits(LakeStore(str(lake))))
    seen[_FIRST] = created.timestamp() - began
    missing = [step for step in STEPS if step not in seen]
    if missing:
        raise RuntimeError(f"not seen: {', '.join(missing)} in: {''.join(said)}")
    return {step: seen[step] for step in STEPS}


def _event(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _driver_started(since: float) -> float | None:
    """When the driver's process began, by the system's clock; not one of another job that ran before ``since``."""
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if "jobs.attribute" in (process.info["cmdline"] or ()) and process.info["create_time"] > since:
            return float(process.info["create_time"])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the steps of each submission."""
    from tests.ray_head import ray_head

    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=positive, default=2, help="submissions (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="camlake-startup-") as made, ray_head(seconds=300.0) as head:
        folder, project = Path(made), Path(made) / "project"
        project.mkdir()
        write_shards(make_scenes(16, split="test", seed=5), folder / "shards", shards=2)
        torch.manual_seed(3)
        save_weights(DigitNet(10, _WIDTHS), folder / "net.safetensors", 96)
        document = {
            "source": {"uri": str(folder / "shards" / "*.tar"), "format": "webdataset"},
            "model": {
                "name": "jobs.demo.network:digit_net",
                "weights": str(folder / "net.safetensors"),
                "options": {"widths": _WIDTHS},
            },
            "methods": ["grad_cam"],
            "output": {"uri": str(folder / "lake")},
        }
        (project / "job.yaml").write_text(yaml.safe_dump(document))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = kept | {"PYTHONPATH": str(_ROOT)} | dict(head.environment)
        found = [steps(project, head.address, environment, folder / f"lake-{n}") for n in range(options.times)]
    print(f"Machine: {machine()}\n")
    print("seconds".rjust(60))
    for step in STEPS:
        before = STEPS[STEPS.index(step) - 1] if step != STEPS[0] else None
        parts = [times[step] - (times[before] if before else 0.0) for times in found]
        print(f"{step:<48}" + "".join(f"{part:>8.1f}" for part in parts))
    print(f"{'until the first unit is committed':<48}" + "".join(f"{times[_FIRST]:>8.1f}" for times in found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
