"""The memory benchmark: its cases, its measure, and a bounded peak on a small network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.memory import GRADIENT, PARSER, PEER, SCORE_CAM, SMOOTH, Case
from pipeline.attributor import Attributor
from schemas.errors import CamlakeError
from tests.benchmarks.conftest import NET, NORMALISED

SIZES = ("--size", "128", "--batch-size", "4", "--mask-batch", "32", "--count", "2")


def run(file: Path, *arguments: str) -> int:
    given = ("--model", NET, "--layers", "stage1", "stage3", *NORMALISED, *SIZES, *arguments)
    return memory.main([*given, "--threads", "1", "--json", str(file)])


@pytest.mark.slow
def test_four_times_the_images_take_less_than_twice_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"batch_size": 4, "mask_batch": 32}
    few, many = Case(SCORE_CAM, "stage3", 2, **sizes), Case(SCORE_CAM, "stage3", 8, **sizes)
    monkeypatch.setattr(memory, "cases", lambda options, peer: [few, many])
    assert run(tmp_path / "table.json") == 0
    found = json.loads((tmp_path / "table.json").read_text())
    assert set(found) == {"machine", "rows", "notes"} and "1 threads" in found["machine"]
    of_two, of_eight = [row.pop("peak_mb") for row in found["rows"]]
    assert of_two > 32 * 3 * 128 * 128 * 4 / 1e6  # a chunk of masked images
    assert of_eight < 2 * of_two
    same = {"work": SCORE_CAM, "channels": 64, "targets": 1, "batch_size": 4, "mask_batch": 32}
    assert found["rows"] == [{**same, "images": 2}, {**same, "images": 8}]
    [masks] = [note for note in found["notes"] if "64 masks" in note]
    assert masks.startswith("arithmetic, not measured") and "are 4.2 MB" in masks and "masked images 12.6 MB" in masks


@pytest.mark.slow
def test_wrong_input_that_only_the_case_finds_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "cases", lambda options, peer: [Case(SCORE_CAM, "stage9")])
    assert run(tmp_path / "table.json") == 2
    error = capsys.readouterr().err
    assert "stage9" in error and "Traceback" not in error and not (tmp_path / "table.json").exists()


def test_each_sweep_changes_one_size() -> None:
    options = PARSER.parse_args(["--mask-batch", "16", "--batch-size", "8"])
    found = list(memory.cases(options, peer=True))
    assert len(set(found)) == len(found)
    score = [case for case in found if case.work == SCORE_CAM]
    base = Case(SCORE_CAM, "layer2", 1, 1, 8, 16)
    assert score[0] == base
    for case in score[1:]:
        changed = [name for name, value in vars(case).items() if value != getattr(base, name)]
        assert len(changed) == 1, case
    assert {case.images for case in score} == {1, 2, 4} and {case.targets for case in score} == {1, 10}
    assert {case.mask_batch for case in score} == {8, 16, 32} and {case.layer for case in score} == {"layer2", "layer4"}
    assert {case.images for case in found if case.work == GRADIENT} == {8, 32, 128}
    assert {case.work for case in found} == {SCORE_CAM, GRADIENT, SMOOTH, PEER}
    assert PEER not in {case.work for case in memory.cases(options, peer=False)}


def test_growth_is_what_is_held_at_the_peak() -> None:
    size = 100_000_000

    def holds_and_frees() -> None:
        held = torch.ones(size, dtype=torch.uint8)
        del held

    torch.ones(2 * size, dtype=torch.uint8)  # an earlier, higher peak does not hide it
    assert 0.95 * size < memory.growth(holds_and_frees) < 1.3 * size


def test_a_session_that_gives_too_few_maps_is_an_error() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    attributor = Attributor(net.eval(), memory.METHODS[GRADIENT], layers=["0"], batch_size=2)
    images = torch.randn(2, 3, 8, 8)
    memory.stream(attributor, Case(GRADIENT, "0", 3, 4, batch_size=2), images)
    with pytest.raises(CamlakeError, match=r"gave 60 maps instead of 75; give a model of 5 classes or more"):
        memory.stream(attributor, Case(GRADIENT, "0", 3, 5, batch_size=2), images)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    before = dict(os.environ)
    with memory.environment(memory.MALLOC):
        assert os.environ["MALLOC_MMAP_THRESHOLD_"] == "131072" and os.environ["MALLOC_TRIM_THRESHOLD_"] == "1"
    assert dict(os.environ) == before
