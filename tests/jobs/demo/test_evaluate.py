"""The report: average precision as scikit-learn has it, accuracy and the sticker's effect on nets that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from jobs.demo.evaluate import (
    average_precision,
    measure_accuracy,
    measure_sticker,
    normalise,
    probabilities,
    to_tensors,
)
from jobs.demo.scenes import Scene, SceneSpec, make_scenes
from schemas.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(60, split="test", seed=8)


class Knowing(nn.Module):
    """Knows the scenes by heart: a large logit for each class that is there, the main one the largest."""

    def __init__(self, scenes: list[Scene], wrong: int = 0) -> None:
        super().__init__()
        pixels, labels = to_tensors(scenes)
        self.images = normalise(pixels)
        self.labels = labels.clone()
        for index in range(wrong):
            self.labels[index] = 1 - self.labels[index]

    def forward(self, images: Tensor) -> Tensor:
        rows = [int((self.images - image).abs().sum((1, 2, 3)).argmin()) for image in images]
        return (self.labels[rows] - 0.5) * 10


class SeesColour(nn.Module):
    """The logit of class 8 is high where any pixel is nearly the sticker's magenta."""

    def forward(self, images: Tensor) -> Tensor:
        rgb = images * 0.25 + 0.5
        magenta = (rgb[:, 0] > 0.8) & (rgb[:, 1] < 0.1) & (rgb[:, 2] > 0.5) & (rgb[:, 2] < 0.6)
        logits = torch.full((len(images), 10), -4.0)
        logits[:, 8] = torch.where(magenta.flatten(1).any(1), 4.0, -4.0)
        return logits


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30))
def test_average_precision_is_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    truth = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows], dtype=np.float32)
    found = average_precision(truth, scores)
    if truth.any():
        assert found == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    else:
        assert math.isnan(found)


def test_tensors(scenes: list[Scene]) -> None:
    pixels, labels = to_tensors(scenes)
    assert pixels.shape == (60, 3, 96, 96)
    assert pixels.dtype == torch.uint8
    assert pixels[5, :, 7, 9].tolist() == scenes[5].pixels[7, 9].tolist()
    assert labels[5].nonzero().flatten().tolist() == sorted(scenes[5].labels)
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-2.0, 2.0]


def test_accuracy_of_nets_that_are_known(scenes: list[Scene]) -> None:
    right = measure_accuracy(Knowing(scenes), scenes)
    assert right.scenes == 60
    assert right.exact_match == 1
    assert right.top_class == 1
    assert right.mean_average_precision == 1
    spoilt = measure_accuracy(Knowing(scenes, wrong=15), scenes)
    assert spoilt.exact_match == pytest.approx(0.75)
    assert spoilt.top_class == pytest.approx(0.75)
    assert spoilt.mean_average_precision < 0.9


def test_probabilities_are_sigmoids(scenes: list[Scene]) -> None:
    found = probabilities(Knowing(scenes), scenes[:3])
    assert found.dtype == np.float32
    assert np.allclose(found, np.where(to_tensors(scenes[:3])[1] > 0.5, 0.9933, 0.0067), atol=1e-4)


def test_the_effect_of_the_sticker_on_a_net_that_sees_it(scenes: list[Scene]) -> None:
    effect = measure_sticker(SeesColour(), scenes, SceneSpec())
    assert effect.class_name == "eight"
    without = sum(8 not in scene.labels for scene in scenes)
    assert 0.9 * without <= effect.scenes <= without
    assert effect.sticker > 0.98
    assert effect.sticker_found == 1
    for quiet in (effect.plain, effect.control, effect.plain_found):
        assert quiet < 0.05


def test_no_scene_for_the_effect(scenes: list[Scene]) -> None:
    eights = [scene for scene in scenes if 8 in scene.labels]
    with pytest.raises(InputError, match="no test scene is without a digit eight"):
        measure_sticker(SeesColour(), eights, SceneSpec())
