"""The budget's benchmark on a small network: curves that rise to exactness, and scores that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import budget, exact_scores, inputs
from pipeline.attributor import Attributor
from tests.benchmarks.conftest import NET, NORMALISED, Document

pytestmark = pytest.mark.filterwarnings("ignore")
ARGUMENTS = ("--model", NET, "--size", 48, "--mask-batch", 16, "--eager", "--together", *NORMALISED)


def test_curves_and_times(
    document: Callable[..., Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores"
    more = ("--count", 3, "--every", 2, "--timed", 2, "--scores", scores, "--expected", 0.9)
    found = document(budget.main, *ARGUMENTS, *more, "--faithfulness")
    rows = {row["peer"]: row for row in found["rows"]}
    assert set(rows) == {"ours, exact", "grad-cam", "torchcam"}
    # 1 - the least correlation of the maps that the timed method returned with the exact ones.
    assert all(0 <= row["agreement"] < 0.1 for row in rows.values())
    assert set(found["curves"]) == set(budget.CONVENTIONS)
    for points in found["curves"].values():
        named = {each["budget"]: each for each in points}
        assert len(named) == 2 * len(budget.SHARES) + len(budget.WANTED)
        quarter = named["25% of the masks"]
        assert quarter["correlation_min"] > 0.98
        assert quarter["correlation_min"] >= named["2% of the masks"]["correlation_min"]
        assert quarter["share_max"] == pytest.approx(0.25, abs=0.02)
    printed = capsys.readouterr()
    assert "faithfulness, mean over the images" in printed.out
    assert printed.err.count("masks scored") == 3
    kept = {path.name: path.stat().st_mtime_ns for path in scores.iterdir()}
    assert len(kept) == 3
    again = tmp_path / "again.json"
    assert budget.main([*map(str, (*ARGUMENTS, *more)), "--timed", "0", "--threads", "1", "--json", str(again)]) == 0
    kept_curves = json.loads(again.read_text())
    assert kept_curves["curves"] == found["curves"]
    assert kept_curves["rows"] == []
    assert "masks scored" not in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in scores.iterdir()} == kept


@pytest.mark.parametrize("convention", budget.CONVENTIONS)
def test_the_exact_map_is_that_of_the_compute_core(convention: str) -> None:
    options = budget.PARSER.parse_args(["--size", "48", "--eager", "--together", *NORMALISED])
    subject = inputs.load_subject(inputs.model_config(NET, options))
    images = inputs.generated_images(2, (48, 48))
    attributor: Attributor = subject.attributor([{"name": "score_cam", **budget.CONVENTIONS[convention]}])
    expected = attributor(images)["score_cam"]
    method = budget.method_of(convention)
    for scored, maps in zip(exact_scores.all_scores(subject, images, options), expected, strict=True):
        assert torch.allclose(budget.exact_map(scored, method).view(maps.shape).float(), maps, rtol=1e-4, atol=1e-6)


def test_more_timed_images_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(["--count", "1", "--timed", "2"]) == 2
    assert "--timed 2 is more than --count 1" in capsys.readouterr().err
