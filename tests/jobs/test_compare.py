"""``camlake compare``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.audit.compare_conditions import parse
from schemas.errors import InputError
from tests.pipeline.audit.lakes import make_lake
from tests.pipeline.audit.test_compare import to_the_right

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
QUICK = ("--workers", "0", "--bootstrap", "50")


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("compare")
    first = make_lake(folder / "a", units=3, images=150, classes=3, boxes=True)
    return first, make_lake(folder / "b", units=3, images=150, classes=3, boxes=True, paint=to_the_right)


def test_a_comparison_says_what_drifted_and_where_it_lies(lakes: tuple[str, str], tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    result = camlake("compare", *lakes, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "lake A" in text and "3 units, 450 images" in text and "grad_cam at layer4, targets: predicted" in text
    assert "compared  3 classes by name" in text and "in both   450 images (of 450 in A, 450 in B)" in text
    assert "drift     1 of 3 tested classes drifted." in text
    assert re.search(r"^ +1 name-1: \d\d% of the heatmaps' mass lies elsewhere than in A", text, re.MULTILINE)
    assert f"report    {output}/comparison.html" in text
    names = {"comparison.parquet", "priors.parquet", "comparison.json", "comparison.html", "a", "b"}
    assert {path.name for path in output.iterdir()} == names


def test_options_are_settings(lakes: tuple[str, str], tmp_path: Path, camlake: Run) -> None:
    output = tmp_path / "out"
    options = {
        "cluster": "patient",
        "method": "grad_cam",
        "layer": "layer4",
        "targets": "label",
        "boxes": "boxes",
        "seed": 3,
        "bootstrap": 60,
        "sample": 500,
        "q": 0.1,
        "suppressed_below": 5,
        "interval_from": 20,
        "flagged_from": 50,
        "effect_d": 0.3,
        "effect_energy": 0.1,
        "effect_ratio": 2.0,
    }
    arguments = [each for name, value in options.items() for each in (f"--{name.replace('_', '-')}", str(value))]
    result = camlake("compare", *lakes, "--output", output, "--workers", "0", *arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((output / "comparison.json").read_text())
    assert {name: found["settings"][name] for name in options} == options
    assert found["b"]["regions"] == "boxes in the column 'boxes'"
    # The maps of class 1 left its boxes.
    (drift,) = found["drifts"]
    assert "energy" in {each["measure"] for each in drift["measures"]}


def test_files_of_boxes_may_be_named_from_here(
    lakes: tuple[str, str], tmp_path: Path, camlake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"00000{unit}-shard-00{unit}/{number:05d}" for unit in range(3) for number in range(150)]
    size = {"width": 64, "height": 48}
    document = {
        "images": [{"id": number, "file_name": name, **size} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1 + number % 3, "bbox": [10, 4, 20, 20]}
            for number in range(len(names))
        ],
        "categories": [{"id": 1 + number, "name": f"name-{number}"} for number in range(3)],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    result = camlake("compare", *lakes, "--output", "out", "--boxes", "boxes.json", *QUICK)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "out" / "comparison.json").read_text())["settings"]
    assert settings["boxes"] == str(tmp_path / "boxes.json")


def test_conditions_fail_a_build(lakes: tuple[str, str], tmp_path: Path, camlake: Run) -> None:
    common = ("compare", *lakes, "--output", tmp_path / "out", *QUICK)
    assert camlake(*common, "--fail-on", "drift>1", "--fail-on", "gini>0").exit_code == 0
    failed = camlake(*common, "--fail-on", "drift>0", "--fail-on", "location >= 1", "--fail-on", "centre_x>1")
    assert failed.exit_code == 1, failed.output
    assert "fails     drift>0: there are 1" in failed.stdout and "location >= 1: there are 1" in failed.stdout
    assert "centre_x>1" not in failed.stdout


def test_conditions_are_read() -> None:
    assert parse(" centre_x <= 3 ").count([]) == 0 and parse("centre_x<=3").holds([])
    for text, words in (("drift", "this is no condition"), ("drift>0.5", "no condition"), ("drfit>0", "did you mean")):
        with pytest.raises(InputError, match=words):
            parse(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fail-on", "border_enrichmnt>1"], "did you mean border_enrichment"),
        (["--cluster", "patients"], "did you mean patient"),
        (["--method", "gradcam"], "did you mean grad_cam"),
        (["--layer-b", "layer5"], "give --method-b or --layer-b"),
        (["--boxes", "boxs"], "did you mean boxes"),
        (["--bootstrap", "10"], "--bootstrap: input should be greater than or equal to 50 (it is 10)"),
        (["--storage", "anon"], "--storage"),
    ],
)
def test_wrong_input_is_one_sentence(
    lakes: tuple[str, str], tmp_path: Path, camlake: Run, arguments: list[str], words: str
) -> None:
    output = tmp_path / "out"
    result = camlake("compare", *lakes, "--output", output, "--workers", "0", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr and result.stderr.count("\n") == 1
    assert not output.exists()


def test_folders_that_are_no_lakes_are_refused(lakes: tuple[str, str], tmp_path: Path, camlake: Run) -> None:
    for pair in ((lakes[0], tmp_path), (tmp_path, lakes[0])):
        result = camlake("compare", *pair, "--workers", "0")
        assert result.exit_code == 2 and "holds no lake" in result.stderr


def test_a_damaged_lake_could_not_be_finished(lakes: tuple[str, str], tmp_path: Path, camlake: Run) -> None:
    uri = make_lake(tmp_path / "lake", units=2)
    next((tmp_path / "lake" / "maps").glob("000001*")).write_bytes(b"nothing")
    result = camlake("compare", lakes[0], uri, "--output", tmp_path / "out", *QUICK)
    assert result.exit_code == 3
    assert re.search(r"^error: unit '000001-shard-001': .*run 'camlake verify'$", result.stderr.strip())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_comparison_that_is_interrupted_says_so(
    lakes: tuple[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    script = (
        "import time, pipeline.audit.parts_files as parts\n"
        "parts.add_unit = lambda *given: (print('began', flush=True), time.sleep(60))\n"
        "from jobs.cli import build\n"
        f"build('compare')(['compare', {lakes[0]!r}, {lakes[1]!r}, '--output', 'out', '--workers', '0'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    while "began" not in run.stdout.readline():
        assert run.poll() is None
    time.sleep(0.1)
    run.send_signal(number)
    assert run.wait(30) == code
    assert "the same command does the rest" in run.stdout.read()
    run.stdout.close()
