"""``plan``, ``status``, ``verify``, ``show`` and ``schema``, on one finished lake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import Result

from jobs.cli import COMMANDS
from jobs.options import storage_options
from schemas.errors import InputError

Run = Callable[..., Result]


@pytest.fixture
def job(document: dict[str, Any], tmp_path: Path) -> Path:
    document["methods"] = ["grad_cam", "score_cam"]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def lake(job: Path, tmp_path: Path, camlake: Run, local_ray: None) -> Path:
    result = camlake("attribute", job)
    assert result.exit_code == 0, result.output
    return tmp_path / "lake"


def test_plan_says_what_a_job_will_cost_and_writes_nothing(job: Path, tmp_path: Path, camlake: Run) -> None:
    result = camlake("plan", job, "--sample", "8")
    assert result.exit_code == 0, result.output
    text = result.output
    assert "3 units" in text and "digit_net" in text
    # Eight images fill the first unit, so the whole is known to be three times as much.
    assert re.search(r"inputs +3 units, about 2\d images", text)
    forwards = float(re.search(r"forwards +([\d.]+) per image", text).group(1))  # type: ignore[union-attr]
    # One clean forward, and at most one per channel (8), filled up to chunks.
    assert 1 < forwards <= 1 + 8 + 1
    assert re.search(r"time +\d", text) and "bytes per map" in text
    assert not (tmp_path / "lake").exists()


def test_plan_stops_where_nothing_can_be_explained(job: Path, camlake: Run) -> None:
    result = camlake("plan", job, "--set", "source.label=json.site")
    assert result.exit_code == 2 and "label_error" in result.stderr


def test_status_and_verify_of_a_whole_lake(lake: Path, camlake: Run) -> None:
    status = camlake("status", lake)
    assert status.exit_code == 0
    assert "finished" in status.output and "3 committed + 0 quarantined + 0 to do = 3" in status.output
    verified = camlake("verify", lake)
    assert verified.exit_code == 0 and "the lake is whole" in verified.output


def test_verify_names_damage(lake: Path, camlake: Run) -> None:
    shard = next((lake / "heatmaps").rglob("c/0/0/0"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    result = camlake("verify", lake)
    assert result.exit_code == 1 and shard.parent.parent.parent.parent.name in result.output


def test_status_and_verify_of_an_unfinished_lake(lake: Path, camlake: Run) -> None:
    (lake / "_SUCCESS.json").unlink()
    next((lake / "commits").glob("*.json")).unlink()
    assert "2 committed + 0 quarantined + 1 to do = 3" in camlake("status", lake).output
    result = camlake("verify", lake)
    assert result.exit_code == 1 and "is not finished" in result.output


def test_show_writes_a_sheet(lake: Path, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "sheet.png"
    result = camlake("show", lake, "--count", "2", "--cell", "96", "--output", output)
    assert result.exit_code == 0, result.output
    with Image.open(output) as sheet:
        assert sheet.width > 3 * 96 and sheet.height > 2 * 96
        assert len(sheet.getcolors(1 << 20) or []) > 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--where", "sight=east"], "site?)"),
        (["--where", "site=west"], "no explained image with site=west"),
        (["--target", "severn"], "did you mean seven"),
        (["--method", "grad"], "grad_cam"),
        (["no-such-image"], "no-such-image"),
        (["--output", "/nowhere/x.png"], "/nowhere/x.png"),
    ],
)
def test_show_refuses_what_is_not_there(lake: Path, camlake: Run, arguments: list[str], words: str) -> None:
    result = camlake("show", lake, *arguments)
    assert result.exit_code == 2 and words in result.stderr, result.output


def test_a_moved_source_is_said_plainly(lake: Path, document: dict[str, Any], dataset: Path, camlake: Run) -> None:
    moved = dataset.with_name("moved")
    shutil.move(dataset, moved)
    try:
        result = camlake("show", lake)
    finally:
        shutil.move(moved, dataset)
    assert result.exit_code in (2, 3) and "scenes-000000.tar" in result.stderr
    assert "Traceback" not in result.output


def test_schema_prints_the_job_schema(camlake: Run) -> None:
    assert json.loads(camlake("schema").output)["title"] == "Job"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, camlake: Run) -> None:
    result = camlake(command, "--help")
    assert result.exit_code == 0 and "Usage" in result.output


def test_commands_run_as_modules(lake: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.status", str(lake)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and "finished" in done.stdout


def test_storage_options_are_yaml_and_nest() -> None:
    assert storage_options(["anon=true", "client_kwargs.endpoint_url=http://localhost:1"]) == {
        "anon": True,
        "client_kwargs": {"endpoint_url": "http://localhost:1"},
    }
    with pytest.raises(InputError, match="key=value"):
        storage_options(["anon"])
