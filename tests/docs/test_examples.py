"""The pages' examples run: the quick start from an empty folder, and the extensions in a copy of the project."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import build
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.train import save_weights
from schemas.registries import METHODS, SOURCES
from tests.docs.blocks import ROOT, blocks, commands


def photos(folder: Path) -> None:
    """Six photographs in folders of two classes."""
    generator = torch.Generator().manual_seed(1)
    for number in range(6):
        pixels = torch.randint(0, 256, (60, 80, 3), generator=generator, dtype=torch.uint8).numpy()
        path = folder / "photos" / ("cat", "dog")[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.mark.usefixtures("local_ray")
def test_the_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    ran = []
    for block in blocks(ROOT / "docs" / "quick-start.md"):
        if block.language == "yaml":
            # The tests have no network to fetch weights from; this is the one difference.
            assert block.text.count("IMAGENET1K_V1") == 1
            Path(str(block.file)).write_text(block.text.replace("IMAGENET1K_V1", "random"))
        elif block.language == "console":
            for program, *arguments in commands(block.text):
                if program == "camlake" and arguments[0] != "demo":  # which has tests of its own
                    result = CliRunner().invoke(build(), arguments)
                    assert result.exit_code == 0, f"camlake {' '.join(arguments)}: {result.output}"
                    ran.append(arguments[0])
        elif block.language == "sql":
            assert duckdb.sql(block.text).fetchall()
        elif block.language == "python":
            exec(compile(block.text, "quick-start.md", "exec"), scope)
    assert ran == ["plan", "attribute", "status", "verify", "show"]
    assert scope["overlay"].shape == (60, 80) and scope["maps"]["grad_cam"].shape == (2, 7, 7)
    with Image.open("sheet.png") as sheet:
        assert sheet.height > 4 * 100


def applied(text: str, diff: str) -> str:
    """Return ``text`` after a change whose first line names the file and whose next ones give the place."""
    lines = diff.splitlines()[1:]
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's code with the extensions of the page, and a folder for a job."""
    page = blocks(ROOT / "docs" / "extending.md")
    for package in ("jobs", "pipeline", "schemas"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    written = 0
    for block in page:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
            written += 1
        elif block.language == "diff":
            path = tmp_path / block.text.splitlines()[0].removeprefix(" # ")
            path.write_text(applied(path.read_text(), block.text))
    assert written == 5
    torch.manual_seed(3)
    save_weights(DigitNet(10, [4, 4, 4, 4]), tmp_path / "net.safetensors", 96)
    (tmp_path / "archives").mkdir()
    for archive in range(2):
        with zipfile.ZipFile(tmp_path / "archives" / f"{archive}.zip", "w") as file:
            for number, scene in enumerate(make_scenes(3, split="test", seed=archive)):
                data = io.BytesIO()
                Image.fromarray(scene.pixels).save(data, "PNG")
                file.writestr(f"{scene.labels[0]}/{number}.png", data.getvalue())
            file.writestr("notes.txt", "no image")
    return tmp_path


RUN = """
import sys, yaml
from pathlib import Path
from jobs.config import absolute, load_job
from pipeline.engine.run import make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, create_or_resume, finalize, new_attempt, read_plan, verify
from pipeline.lake.plan import freeze
from pipeline.sources import open_source

job = absolute(load_job("job.yaml"))
plan = freeze(open_source(job.source).plan())
store = LakeStore(job.output.uri)
run = create_or_resume(store, make_manifest(job, resolve(job), plan), plan)
worker = AttributionWorker(job, run.manifest, "inline", device="cpu")
worker.start()
for unit in read_plan(store):
    worker.process(unit, new_attempt())
finalize(store)
found = verify(store)
assert found.ok, found.problems
assert dict(found.images) == {"ok": 6}, found.images
exec(compile(Path("check.py").read_text(), "check.py", "exec"))
"""


def test_the_extensions(copy: Path, run_python: Callable[..., str]) -> None:
    assert "elementwise_cam" not in METHODS and "zip" not in SOURCES
    said = run_python(RUN, copy, CAMLAKE_ANNOUNCE=str(copy / "announced"))
    assert re.search(r"6 images, 2 units announced", said)


def test_the_extensions_pass_the_project_s_own_checks(copy: Path) -> None:
    files = [
        block.file for block in blocks(ROOT / "docs" / "extending.md") if block.file and block.language == "python"
    ]
    ruff = Path(sys.executable).with_name("ruff")
    options = ["--config", str(ROOT / "pyproject.toml")]
    for arguments in (["check", *options], ["format", "--check", *options]):
        done = subprocess.run([ruff, *arguments, *files], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Runs a script in a folder, with that folder's packages, and returns what it says."""

    def run(script: str, folder: Path, **variables: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | variables
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
