"""``camlake export``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.lake import Lake
from tests.pipeline.audit.exports.pictured import make_pictured

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_pictured(tmp_path_factory.mktemp("export"), units=2, images=30, methods=("grad_cam", "layer_cam"))


def test_an_export_says_what_it_wrote_and_how_to_open_it(lake: Lake, tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    result = camlake(
        *("export", lake.store.uri, "--to", "fiftyone", "--output", output, "--images", "11"),
        *("--classes", "name-0, 1", "--classes", "name-3", "--method", "layer_cam", "--layer", "layer4"),
    )
    assert result.exit_code == 0, result.output
    assert f"{output}: 11 images of 3 explained classes" in result.stdout
    assert re.search(r"open with python -c 'import fiftyone", result.stdout) and "left out" not in result.stdout
    samples = json.loads((output / "samples.json").read_text())["samples"]
    assert {sample["target"] for sample in samples} == {"name-0", "name-1", "name-3"} and len(samples) == 11
    assert "layer_cam" in json.loads((output / "metadata.json").read_text())["description"]


def test_images_that_cannot_be_had_are_counted(tmp_path: Path, camlake: Run) -> None:
    lake = make_pictured(tmp_path / "lake", units=2, images=5)
    next((tmp_path / "lake").glob("000001*.pack")).unlink()
    result = camlake("export", lake.store.uri, "--to", "spotlight", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "4 images of" in result.stdout and "left out  4 images; the first: image" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--to", "spotlite"], 2, "did you mean spotlight"),
        (["--to", "virelay", "--classes", "nothing"], 2, "no class 'nothing'"),
        (["--to", "fiftyone", "--audit", "no-audit"], 2, "holds no finished audit"),
        (["--to", "fiftyone", "--storage", "x"], 2, "--storage"),
    ],
)
def test_wrong_input_is_one_sentence(
    lake: Lake, tmp_path: Path, camlake: Run, arguments: list[str], code: int, words: str
) -> None:
    result = camlake("export", lake.store.uri, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == code and words in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_all_gone_could_not_be_finished(tmp_path: Path, camlake: Run) -> None:
    lake = make_pictured(tmp_path / "lake", units=1, images=20)
    next((tmp_path / "lake").glob("*.pack")).unlink()
    result = camlake("export", lake.store.uri, "--to", "fiftyone", "--output", tmp_path / "out")
    assert result.exit_code == 3 and "none of the first 12 pictures can be had" in result.stderr
