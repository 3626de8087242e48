"""The benchmark of torchcam's own average drop and increase, against ours on the same maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import torchcam_effects as benchmark
from pipeline.attributor import Attributor
from pipeline.cam.faithfulness import faithfulness, scaled_masks
from tests.benchmarks.conftest import NET, NORMALISED
from tests.pipeline.cam import nets


def ours(model: nn.Module, layer: str, key: str, images: torch.Tensor) -> tuple[float, float]:
    attribution = Attributor(model, [key], layers=[nets.target_layers(model)[-1]])(images)
    masks = scaled_masks(attribution[key], nets.SIZE)
    drop, increase = [], []
    with torch.no_grad():
        for row, (image, target) in enumerate(zip(images, attribution.selection.target.tolist(), strict=True)):

            def score(pictures: torch.Tensor, target: int = target) -> torch.Tensor:
                return model(pictures).softmax(1)[:, target]

            found = faithfulness(score, image, masks[row : row + 1], steps=1)
            drop.append(float(found.drop))
            increase.append(float(found.increase))
    return sum(drop) / len(drop), sum(increase) / len(increase)


@pytest.mark.filterwarnings("ignore")
def test_maps_of_the_logit_give_our_figures_and_others_do_not() -> None:
    torch.manual_seed(3)
    model = nets.make("gap").eval()
    with torch.no_grad():
        model.fc.weight.mul_(4)
    images = nets.images(8)
    layer = nets.target_layers(model)[-1].name
    found = benchmark.torchcam_effects(model, layer, images)
    for name, key in (("GradCAM", "grad_cam"), ("LayerCAM", "layer_cam"), ("XGradCAM", "xgrad_cam")):
        expected = ours(model, layer, key, images)
        assert found[name]["logit"] == pytest.approx(expected, abs=1e-4), name
        assert abs(found[name]["probability"][0] - expected[0]) > 1e-3, name
    assert set(found["SmoothGradCAMpp"]) == {"logit"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--model", NET, "--count", "2", "--size", "48", *NORMALISED, "--threads", "1", "--json", str(path)]
    assert benchmark.main(arguments) == 0
    assert "| GradCAM | " in capsys.readouterr().out
    assert set(json.loads(path.read_text())["rows"]) == set(benchmark.METHODS)
    assert benchmark.main(["--model", "resnet81"]) == 2
