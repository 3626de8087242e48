"""What is chosen depends on one split alone, and what is reported on the other alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import Result

from jobs.cli import build
from jobs.evaluate_labels import evaluate
from pipeline.lake import Lake
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.confusion import Confusion, class_results, totals
from pipeline.pseudolabels.evaluate import Coverage, pairs_of
from pipeline.pseudolabels.png import encode_index
from pipeline.pseudolabels.split import is_drawn, place
from pipeline.pseudolabels.truth import open_truth
from pipeline.pseudolabels.tune import Tuner, make_tuning, refined
from schemas.errors import InputError
from schemas.pseudolabels import PseudoLabels
from tests.pipeline.pseudolabels.conftest import SETTINGS, index_of, label_lake

Run = Callable[..., Result]
FRACTION, SEED = 0.5, 3


def truth_at(labels: Lake, folder: Path, threshold: Callable[[str], float]) -> Path:
    """Masks that a threshold on the scores gives, another for each image."""
    lake = LabelLake(labels)
    for item in (item for part in lake.parts() for item in part):
        scores, ids = lake.scores(item.soft or "")
        index = np.where(scores[0] > np.float32(threshold(item.image_id)), ids[0], 0).astype(np.uint8)
        path = folder / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_index(index))
    return folder


def tuned(labels: Lake, truth: Path, *tried: Any, fraction: float = FRACTION) -> Any:
    lake = LabelLake(labels)
    masks = open_truth(str(truth), lake)
    tuner = pickle.loads(pickle.dumps(Tuner(lake, masks, fraction, SEED, tried or ("stored",))))
    (part,) = pairs_of(lake, masks, "error", Coverage())
    return make_tuning(tuner(part), lake, str(truth), fraction, SEED, str)


def test_splits_share_no_image() -> None:
    places = [place(f"image-{number}", 0) for number in range(4000)]
    assert min(places) >= 0 and max(places) < 1
    counts = np.histogram(places, 10, (0, 1))[0]
    assert np.abs(counts - 400).max() < 5 * 20
    assert [place(f"image-{number}", 1) for number in range(3)] != places[:3]
    assert not any(is_drawn(name, 0.0, 0) for name in "abc") and all(is_drawn(name, 1.0, 0) for name in "abc")


def test_the_choice_is_of_one_split_and_the_report_of_the_other(labels: Lake, tmp_path: Path) -> None:
    def chosen(image_id: str) -> bool:
        return is_drawn(image_id, FRACTION, SEED)

    first = tuned(labels, truth_at(labels, tmp_path / "a", lambda image_id: 0.4 if chosen(image_id) else 0.2))
    assert 0 < first.images[0] < 7 and sum(first.images) == 7
    assert first.choice.point.value == 0.4 and first.choice.point.totals.miou == 1.0
    # Other masks of the images that are reported on: the same choice, another report.
    second = tuned(labels, truth_at(labels, tmp_path / "b", lambda image_id: 0.4 if chosen(image_id) else 0.55))
    assert second.tried == first.tried and second.totals != first.totals
    # Other masks of those that are chosen on, for which another threshold is best: the same figures at that threshold.
    third = tuned(labels, truth_at(labels, tmp_path / "c", lambda image_id: 0.1 if chosen(image_id) else 0.2))
    assert third.choice.point.value == 0.1 and third.before == first.before
    # The report is that of the labels at 0.4 on the rest, pixel by pixel.
    lake, confusion = LabelLake(labels), Confusion()
    for item in (item for part in lake.parts() for item in part):
        if not chosen(item.image_id):
            scores, ids = lake.scores(item.soft or "")
            found = np.where(scores[0] > np.float32(0.4), ids[0], 0).astype(np.int32)
            confusion.add(np.where(scores[0] > np.float32(0.2), ids[0], 0).astype(np.int32), found)
    assert first.totals == totals(class_results(confusion.pairs, str))


def test_pamr_is_chosen_where_it_is_better(labels: Lake, pictures: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "refine": {"method": "pamr"}}
    expected = label_lake(pictures, tmp_path / "pamr", **settings)
    for path in (tmp_path / "pamr" / "masks").rglob("*.png"):
        target = tmp_path / "truth" / path.relative_to(tmp_path / "pamr" / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    found = tuned(labels, tmp_path / "truth", "stored", "pamr")
    assert found.choice.candidate == "pamr" and found.choice.point.value == 0.3 == SETTINGS["background"]["threshold"]
    assert found.totals.miou is not None and found.before.miou is not None
    assert found.totals.miou > 0.99 > found.before.miou
    # Refined here as the job refines, but for the scores' rounding to float16.
    seeds, theirs = LabelLake(labels), LabelLake(expected)
    scores, _ = seeds.scores("soft/two/turned.npz")
    mine = refined(scores, (pictures / "images" / "two" / "turned.jpg").read_bytes(), seeds)
    np.testing.assert_allclose(mine, theirs.scores("soft/two/turned.npz")[0], atol=2e-3)


def test_sweep_at_the_own_threshold_gives_the_labels(labels: Lake, tmp_path: Path) -> None:
    truth = truth_at(labels, tmp_path / "truth", lambda image_id: 0.5)
    lake = LabelLake(labels)
    found = evaluate(lake, open_truth(str(truth), lake), str(truth), missing="error")
    at = {(point.rule, point.value): point.totals for point in found.points}
    assert at["constant", 0.3].miou == pytest.approx(found.totals.miou, abs=2e-3)  # float16
    assert at["constant", 0.5].miou == 1.0 and found.document()["sweep"]["constant"] == {"value": 0.5, "miou": 1.0}
    assert "best: 0.5, mIoU 1.000" in found.files()["sweep.svg"].decode()
    assert found.counted.swept == 7 and set(found.files()) >= {"sweep.parquet", "sweep-power.svg"}


def test_commands(labels: Lake, tmp_path: Path, camlake: Run) -> None:
    truth = truth_at(labels, tmp_path / "truth", lambda image_id: 0.4)
    output = tmp_path / "out"
    result = camlake("tune-labels", labels.store.uri, "--truth", truth, "--fraction", 0.5, "--output", output)
    assert result.exit_code == 0, result.output
    assert (
        "constant 0.4, refinement none: mIoU 1.0000" in result.stdout
        and "others: mIoU 1.0000 as chosen" in result.stdout
    )
    lines = yaml.safe_load((output / "tuned.yaml").read_text())
    assert lines == {
        "pseudo_labels": {"background": {"rule": "constant", "threshold": 0.4}, "refine": {"method": "none"}}
    }
    PseudoLabels.model_validate(lines["pseudo_labels"])
    report = json.loads((output / "tuning.json").read_text())
    assert report["images_chosen_on"] + report["images_reported_on"] == 7 and report["reported"]["miou"] == 1.0
    result = camlake("evaluate-labels", labels.store.uri, "--truth", truth, "--output", output)
    assert result.exit_code == 0, result.output
    assert "best constant background: threshold 0.4, mIoU 1.0000" in result.stdout
    assert json.loads((output / "evaluation.json").read_text())["images"] == 7
    result = camlake("evaluate-labels", Path(labels.store.uri) / "masks", "--truth", truth, "--output", tmp_path / "o2")
    assert result.exit_code == 0 and "sweep     none: a plain folder has no scores" in result.stdout
    for arguments, words in (
        (("--fraction", 0), "none is chosen on"),
        (("--fraction", 1), "none is left to report on"),
        (("--truth", tmp_path / "no"), "holds no index images"),
    ):
        result = camlake("tune-labels", labels.store.uri, "--truth", truth, "--output", output, *arguments)
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1


def test_what_cannot_be_tuned(pictures: Path, tmp_path: Path, camlake: Run) -> None:
    lake = label_lake(pictures, tmp_path / "lake", **{**SETTINGS, "files": {}})
    result = camlake("tune-labels", lake.store.uri, "--truth", tmp_path)
    assert result.exit_code == 2 and "has no scores to tune with" in result.stderr
    lake = label_lake(pictures, tmp_path / "refined", **{**SETTINGS, "refine": {"method": "pamr", "iterations": 1}})
    result = camlake("tune-labels", lake.store.uri, "--truth", tmp_path, "--pamr")
    assert result.exit_code == 2 and "are refined by PAMR already" in result.stderr
    assert index_of(lake, "one/0").shape == (80, 96)


@pytest.fixture
def camlake() -> Run:
    """Runs ``camlake ARGUMENTS`` in this process."""
    from typer.testing import CliRunner

    app = build()
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_no_images_to_choose_on(labels: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is chosen on"):
        tuned(labels, truth_at(labels, tmp_path / "t", lambda image_id: 0.4), fraction=0.0)
