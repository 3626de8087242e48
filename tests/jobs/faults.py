"""Data and jobs for the tests of faults: small shards, and a network that fails on order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from jobs.cli import build
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from tests.faulty import net

ROOT = Path(__file__).parents[2]


def make_data(folder: Path, images: int, shards: int) -> Path:
    """Write shards of scenes, weights and an empty folder of orders; returns ``folder``."""
    write_shards(make_scenes(images, split="test", seed=5), folder / "shards", shards=shards)
    (folder / "orders").mkdir(parents=True)
    torch.manual_seed(3)
    save_file(net(str(folder)).state_dict(), folder / "net.safetensors")
    return folder


def job(data: Path, lake: Path, **workers: Any) -> dict[str, Any]:
    """Return a job on that data: two methods, two workers."""
    return {
        "source": {"uri": str(data / "shards" / "*.tar"), "format": "webdataset", "label": "cls"},
        "model": {
            "name": "tests.faulty:net",
            "weights": str(data / "net.safetensors"),
            "options": {"faults": str(data / "orders")},
            "preprocess": {"resize": 96, "crop": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        },
        "targets": {"label": True, "predicted": True},
        "methods": ["grad_cam", "score_cam"],
        "output": {"uri": str(lake)},
        "workers": {"max": 2, **workers},
        "compute": {"batch_size": 2, "mask_batch": 4},
    }


def write(document: dict[str, Any], path: Path) -> Path:
    """Write a job file and return its path."""
    path.write_text(yaml.safe_dump(document))
    return path


def undisturbed_lake(data: Path, folder: Path) -> str:
    """Run the job in this process, on the Ray that it is connected to, and return the lake's URI."""
    path = write(job(data, folder / "lake"), folder / "job.yaml")
    done = CliRunner().invoke(build(), ["attribute", str(path)])
    assert done.exit_code == 0, done.output
    return str(folder / "lake")


def start(job_file: Path, log: Path, *arguments: str, command: str = "attribute") -> subprocess.Popen[bytes]:
    """Start ``camlake COMMAND`` as a process of its own; what it says is appended to ``log``."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", f"jobs.{command}", str(job_file), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def commits(lake: Path) -> int:
    """Number of units that are committed."""
    return len(list((lake / "commits").glob("*.json")))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    """Wait until ``condition`` holds; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended too early, with exit code {process.returncode}"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)
