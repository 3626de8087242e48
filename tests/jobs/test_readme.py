"""What the README shows runs: its Python and its SQL, on a small lake."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
import yaml
from typer.testing import Result

from jobs.demo.network import DigitNet

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.usefixtures("local_ray")
def test_python_and_sql_of_the_readme(
    document: dict[str, Any], tmp_path: Path, camlake: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    assert camlake("attribute", path).exit_code == 0
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"model": DigitNet(10, [4, 4, 4, 4]), "images": torch.randn(2, 3, 32, 32)}
    assert len(blocks("python")) >= 3
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["raw"].shape == (12, 12) and scope["mean"].dims == ("y", "x")
    assert scope["result"]["grad_cam"].shape == (2, 4, 4)
    (query,) = blocks("sql")
    assert duckdb.sql(query.replace(">= 30", ">= 1")).fetchall()


def test_the_commands_of_the_readme_exist() -> None:
    from jobs.cli import COMMANDS

    named = set(re.findall(r"^\$ camlake ([\w-]+)", README, re.MULTILINE))
    assert named and named <= set(COMMANDS)
    targets = set(re.findall(r"^\$ make (\w+)", README, re.MULTILINE))
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= targets and all(f"\n{target}:" in makefile for target in targets)


def test_the_tests_that_the_readme_names_exist() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/[\w/]+\.py)`", (root / "README.md").read_text())
    assert len(named) >= 10
    assert not [name for name in named if not (root / name).exists()]
