"""The benchmark of localisation, drop and increase, on scenes drawn here."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import localisation as benchmark
from benchmarks.effects import BASELINES, CONVENTIONS, Effect, effects, mean_and_error
from pipeline.audit.frame import make_frame
from pipeline.audit.model import LakeModel, load_model
from pipeline.cam.faithfulness import faithfulness, scaled_masks
from pipeline.lake import Lake
from pipeline.lake.originals import Originals
from schemas.audit import Settings

SCENES = 8


class Explained:
    """A lake of drawn scenes, its model, and the effects of its maps."""

    def __init__(self, folder: Path) -> None:
        options = argparse.Namespace(
            model="jobs.demo.network:digit_net",
            weights="random",
            images=None,
            boxes="boxes",
            size=None,
            mean=None,
            std=None,
            scenes=SCENES,
            score_cam=False,
        )
        self.lake: Lake = benchmark.explain(folder, options)
        self.model: LakeModel = load_model(self.lake)
        self.series = make_frame(self.lake, Settings()).series
        self.effects: list[Effect] = list(effects(self.lake, self.model, self.series))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Explained:
    return Explained(tmp_path_factory.mktemp("made"))


def test_drop_and_increase_are_those_of_the_measures_by_each_convention(made: Explained) -> None:
    assert {str(each) for each in CONVENTIONS} == {
        "mean colour, probability",
        "black, probability",
        "mean colour, logit",
    }
    settings, network = made.model.replica.preprocess.settings, made.model.replica.model
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (settings.mean, settings.std))
    units = dict(zip(*(made.lake.images.to_table()[name].to_pylist() for name in ("image_id", "unit_id")), strict=True))
    originals = Originals(made.lake)
    for each in made.effects:
        image = made.model.picture(originals, made.lake.image(each.image_id, units[each.image_id]))
        stored = [
            made.lake.heatmap(row, scaled=True)
            for series in made.series
            for row in made.lake.unit_maps(units[each.image_id]).to_pylist()
            if (row["image_id"], row["target_class"], row["method"]) == (each.image_id, each.target, series.method)
        ]
        masks = torch.cat([scaled_masks(torch.from_numpy(values)[None], (96, 96)) for values in stored])

        def score(pictures: torch.Tensor, target: int = each.target) -> torch.Tensor:
            with torch.inference_mode():
                return network(pictures)[:, target].double().sigmoid()

        plain = faithfulness(score, image, masks, steps=1)
        count = len(stored)
        assert each.explained.shape == (3, count + len(BASELINES))
        assert each.sure == pytest.approx(plain.full, rel=1e-5)
        assert torch.allclose(each.drop[0, :count], plain.drop, atol=1e-5)
        assert torch.equal(each.increase[0, :count], plain.increase)
        assert torch.allclose(each.kept[:count], plain.kept, atol=1e-6)
        dark = ((image * std + mean) * masks[:, None] - mean) / std
        assert torch.allclose(each.explained[1, :count], score(dark), atol=1e-5)
        assert torch.allclose(each.explained[2, :count].sigmoid(), each.explained[0, :count], atol=1e-5)
        assert math.isnan(float(each.drop[2, 0])) == (float(each.full[2]) <= 0)


def test_figures_are_the_lake_s(made: Explained) -> None:
    rows = benchmark.rows_of(made.lake, made.effects, True)
    by = {(row["targets"], row["method"]): row for row in rows}
    assert {target for target, _ in by} == {"label", "predicted"}
    labelled = benchmark.targeted(made.lake, made.effects, "label")
    assert len(labelled) == SCENES == by["label", "cam"]["images"]
    place = [each.method for each in made.series].index("layer_cam")
    found = by["label", "layer_cam"]
    drops = torch.stack([each.drop[0, place] for each in labelled])
    assert found["mean colour, probability"]["drop"] == pytest.approx(float(drops.mean()))
    error = float(drops.std()) / SCENES**0.5
    assert found["mean colour, probability"]["drop_error"] == pytest.approx(error, abs=1e-9)
    assert sum(each["images"] for each in found["by_probability"]) == SCENES
    # Behind global average pooling these are one map; boxes are the digit's, and the middle is no method.
    assert by["label", "grad_cam"] | {"method": ""} == by["label", "hires_cam"] | {"method": ""}
    assert 0 < found["energy"] < 1 and found["enrichment"] > 0
    assert by["label", "random map"]["max_box_acc_v2"] is None
    assert 0 < by["label", "centred Gaussian"]["max_box_acc_v2"] < 1
    lines = benchmark.tables(rows)
    assert any(line.startswith("| grad_cam, hires_cam, xgrad_cam |") for line in lines)
    assert f"Maps of the labelled class (GT-known), {SCENES} images:" in lines


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "rows.json"
    arguments = ["--scenes", "2", "--wsolevaluation", "--threads", "1", "--json", str(path)]
    assert benchmark.main(arguments) == 0
    assert "wsolevaluation's MaxBoxAcc" in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document["images"] == 2 and "torch" in document["machine"]
    for row in document["rows"]:
        assert (row["wsolevaluation_v2"] is None) == row["method"].startswith("random")


def test_without_boxes(made: Explained) -> None:
    rows = benchmark.rows_of(made.lake, made.effects, False)
    assert all(row["pointing"] is None for row in rows)
    assert not any("pointing" in line for line in benchmark.tables(rows))


def test_what_is_not_defined_does_not_count() -> None:
    values = torch.tensor([[1.0, math.nan], [2.0, 5.0], [6.0, math.nan]], dtype=torch.float64)
    mean, error = mean_and_error(values)
    assert mean.tolist() == [3.0, 5.0]
    assert error[0] == pytest.approx(math.sqrt(7 / 3))


def test_wrong_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--model", "resnet81"]) == 2
    errors: Any = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "resnet81" in errors[0]
