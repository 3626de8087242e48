"""Faithfulness beside the metrics of torchcam and grad-cam, on the same maps: agreement, and where a peer differs.

ROAD, coherency and complexity are compared with grad-cam's in ``test_road.py``.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.cam.faithfulness import Faithfulness, blurred, faithfulness, scaled_masks
from tests.pipeline.cam import nets

# The peers' own warnings are not ours to fix.
pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES, STEPS = 12, 16  # 480 pixels: torchcam's steps are as large as ours


class Case(NamedTuple):
    """A network that is sure of some classes, its images (n, 3, H, W), their maps (n, h, w) and classes."""

    model: nn.Module
    images: Tensor
    maps: Tensor
    targets: list[int]

    def score(self, image: int) -> Any:
        return lambda pictures: self.model(pictures).softmax(1)[:, self.targets[image]]

    def ours(self, **options: Any) -> list[Faithfulness]:
        masks = scaled_masks(self.maps, nets.SIZE)
        with torch.no_grad():
            return [
                faithfulness(self.score(row), image, masks[row : row + 1], **options)
                for row, image in enumerate(self.images)
            ]


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(3)
    model = nets.make("gap").eval()
    with torch.no_grad():
        model.fc.weight.mul_(8)
        images = nets.images(IMAGES)
        targets = model(images).argmax(1).tolist()
    maps = torch.rand(IMAGES, 5, 6, generator=torch.Generator().manual_seed(4)).square()
    return Case(model, images, maps, targets)


class Given:
    """A torchcam extractor whose maps are given, on the layer's grid and scaled to [0, 1]."""

    def __init__(self, case: Case) -> None:
        self.model, self._case = case.model, case

    def __call__(self, classes: list[int], scores: Tensor) -> list[Tensor]:
        assert classes == self._case.targets
        least = self._case.maps.amin((1, 2), keepdim=True)
        return [(self._case.maps - least) / (self._case.maps.amax((1, 2), keepdim=True) - least)]

    def fuse_cams(self, maps: list[Tensor]) -> Tensor:
        (only,) = maps
        return only

    def _hooks_off(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture(scope="module")
def torchcam() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchcam.metrics
    return torchcam.metrics


@pytest.fixture(scope="module")
def grad_cam() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam.metrics.cam_mult_image as found
    return found


def column(found: list[Faithfulness], name: str) -> Tensor:
    return torch.cat([getattr(each, name) for each in found])


def test_drop_and_increase_are_torchcam_s(case: Case, torchcam: Any) -> None:
    metric = torchcam.ClassificationMetric(Given(case), partial(torch.softmax, dim=-1))
    metric.update(case.images)
    theirs, found = metric.summary(), case.ours(steps=1)
    assert theirs["avg_drop"] == pytest.approx(float(column(found, "drop").mean()), abs=1e-5)
    assert theirs["conf_increase"] == pytest.approx(float(column(found, "increase").mean()), abs=1e-9)
    assert 0.05 < theirs["avg_drop"] < 0.95 and 0 < theirs["conf_increase"] < 1  # there is something to agree on


def test_torchcam_counts_logits_by_default(case: Case, torchcam: Any) -> None:
    metric = torchcam.ClassificationMetric(Given(case))
    metric.update(case.images)
    assert abs(metric.summary()["avg_drop"] - float(column(case.ours(steps=1), "drop").mean())) > 0.05


def test_deletion_and_insertion_are_torchcam_s(case: Case, torchcam: Any) -> None:
    found = case.ours(steps=STEPS)
    # Its insertion begins with what its deletion ends with: ours with the mean colour, or with the blurred image.
    for name, baseline in (("deletion", None), ("insertion", blurred)):
        metric = torchcam.DeletionInsertionMetric(
            Given(case), partial(torch.softmax, dim=-1), steps=STEPS, baseline=baseline
        )
        metric.update(case.images)
        expected = float(column(found, name).mean())
        assert metric.summary()[f"{name}_auc"] == pytest.approx(expected, abs=1e-5), name
    assert float(column(found, "insertion").std()) > 0.01


def test_grad_cam_s_drop_is_not_divided_by_the_score(case: Case, grad_cam: Any) -> None:
    masks = scaled_masks(case.maps, nets.SIZE).numpy()
    targets = [partial(lambda output, which: output.softmax(0)[which], which=which) for which in case.targets]
    theirs = {
        name: torch.from_numpy(np.asarray(getattr(grad_cam, name)()(case.images, masks, targets, case.model))).double()
        for name in ("CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence")
    }
    found = case.ours(steps=1)
    full = torch.tensor([each.full for each in found], dtype=torch.float64)
    drop = column(found, "drop")
    assert torch.equal(theirs["IncreaseInConfidence"], column(found, "increase"))
    assert torch.allclose(theirs["DropInConfidence"], drop * full, rtol=0, atol=1e-6)
    assert torch.allclose(theirs["CamMultImageConfidenceChange"].clamp_max(0), -drop * full, rtol=0, atol=1e-6)
    # Chattopadhay et al., section 4.1, divide: it matters where the model is not sure.
    assert float((drop - theirs["DropInConfidence"]).max()) > 0.1
