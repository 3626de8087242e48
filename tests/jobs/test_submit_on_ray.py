"""``camlake submit`` against a real head: follow, stop, resume under a new id, states, tokens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.lake import LakeStore, verify
from tests.jobs.faults import ROOT, commits, make_data
from tests.ray_head import Head, ray_head

pytestmark = pytest.mark.slow
UNITS = 6

#: A model of the user's, in a file beside the job file. Forwards are slow while a file says so.
MODULE = """
import time
from pathlib import Path
from jobs.demo.network import DigitNet

class Net(DigitNet):
    def forward(self, images):
        if Path({order!r}).exists():
            time.sleep(0.5)
        return super().forward(images)

def net(**options):
    return Net(10, [4, 6, 8, 8])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("submitted"), 2 * UNITS, UNITS)


@pytest.fixture
def project(data: Path, tmp_path: Path) -> Path:
    """A folder as a user has it: a job file and a module, and nothing of camlake."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_net.py").write_text(MODULE.format(order=str(tmp_path / "rest")))
    document: dict[str, Any] = {
        "source": {"uri": str(data / "shards" / "*.tar"), "format": "webdataset", "label": "cls"},
        "model": {
            "name": "my_net:net",
            "weights": str(data / "net.safetensors"),
            "preprocess": {"resize": 96, "crop": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        },
        "methods": ["grad_cam"],
        "output": {"uri": str(tmp_path / "lake")},
        "compute": {"batch_size": 1},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder


def camlake(project: Path, head: Head, *arguments: str, auth: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Return exit code and output of ``camlake submit`` from the project's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | {"PYTHONPATH": str(ROOT), **(head.environment if auth is None else auth)}
    command = [sys.executable, "-m", "jobs.cli", "submit", "job.yaml", "--address", head.address, *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def ray(head: Head, *arguments: str) -> str:
    """Run ``ray job ...`` as the hints say it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [Path(sys.executable).with_name("ray"), "job", *arguments]
    done = subprocess.run(command, env=kept | head.environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(token="a-token-of-the-tests") as started:
        yield started


def test_stop_and_resume_under_a_new_id(project: Path, tmp_path: Path, head: Head) -> None:
    # Without the token, or with another, there is one sentence and no job.
    for auth in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another"}):
        code, said = camlake(project, head, auth=auth)
        assert code == 2 and "asks for a token" in said and "RAY_AUTH_TOKEN_PATH" in said and "Traceback" not in said

    lake, rest = tmp_path / "lake", tmp_path / "rest"
    rest.touch()
    code, said = camlake(project, head)
    assert code == 0 and "Uploading" not in said, said
    first = re.findall(r"^submitted (\S+-1): ", said, re.MULTILINE)[0]
    deadline = time.monotonic() + 90
    while not commits(lake):
        assert time.monotonic() < deadline, ray(head, "logs", "--address", head.address, first)
        time.sleep(0.1)

    stop = next(line for line in said.splitlines() if line.startswith("stop "))
    said = ray(head, *stop.split()[3:])
    assert "was stopped" in said, said
    # The driver heard SIGTERM and ended by itself, before Ray's SIGKILL after three seconds.
    log = ray(head, "logs", "--address", head.address, first)
    assert "units in flight have 2 s" in log and "the same command does the rest" in log, log
    done = commits(lake)
    assert 0 < done < UNITS

    rest.unlink()
    code, said = camlake(project, head, "--wait")
    assert code == 0, said
    assert f"submitted {first[:-1]}2: " in said and f"(resumed: {done} of {UNITS} units are done)" in said
    assert f"lake       {UNITS} + 0 quarantined" in said
    assert "succeeded" in ray(head, "status", "--address", head.address, f"{first[:-1]}2")
    assert verify(LakeStore(str(lake))).ok


def test_a_failure_is_told_from_success_where_no_token_is_asked_for(project: Path) -> None:
    with ray_head() as head:
        code, said = camlake(project, head, "--wait", "--set", "source.uri=/nowhere/*.tar")
        assert code == 2 and "source.uri" in said and "failed with exit code 2" in said
        (name,) = re.findall(r"^submitted (\S+): ", said, re.MULTILINE)
        assert "failed" in ray(head, "status", "--address", head.address, name)
