"""How well the demo's network does on held-out scenes, and how far the sticker alone moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.demo.digits import CLASS_NAMES
from jobs.demo.drawing import CONTROL_COLOURS
from jobs.demo.scenes import Scene, SceneSpec, with_sticker
from schemas.errors import InputError

#: Normalisation of pixels in [0, 1], the same for each channel; written into the weights' metadata.
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Over held-out scenes.

    ``average_precision`` by class (NaN where no scene has it) and its mean; ``exact_match``: share of scenes whose
    classes above probability 0.5 are exactly those in the scene; ``top_class``: share of scenes that do hold the class
    of the largest logit.
    """

    scenes: int
    average_precision: tuple[float, ...]
    mean_average_precision: float
    exact_match: float
    top_class: float


@dataclass(frozen=True, slots=True)
class StickerEffect:
    """What the sticker does to scenes that hold neither it nor its class.

    ``plain``, ``sticker`` and ``control``: mean probability of ``class_name`` as the scenes are, with the sticker
    pasted into a free corner, and with a grey patch of the same shape at a place drawn in the same way;
    ``plain_found`` and ``sticker_found``: share of these scenes in which the class is above 0.5 (all wrongly).
    """

    class_name: str
    scenes: int
    plain: float
    sticker: float
    control: float
    plain_found: float
    sticker_found: float


def to_tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return pixels (n, 3, H, W) uint8 and labels (n, classes) float32, 1 where the class is in the scene."""
    pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
    labels = torch.zeros(len(scenes), len(CLASS_NAMES))
    for index, scene in enumerate(scenes):
        labels[index, list(scene.labels)] = 1
    return pixels, labels


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 pixels as the network takes them: float32, ``(x / 255 - mean) / std``."""
    return (pixels.float() / 255 - MEAN) / STD


def probabilities(model: nn.Module, scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """Return the probability (n, classes) float32 of each class in each scene; the model is in evaluation mode."""
    pixels, _ = to_tensors(scenes)
    with torch.inference_mode():
        parts = [torch.sigmoid(model(normalise(part))) for part in torch.split(pixels, 128)]
    result: NDArray[np.float32] = torch.cat(parts).numpy()
    return result


def average_precision(truth: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    """Return the area under the precision-recall steps, ``sum (R_i - R_i-1) P_i``; NaN without a positive.

    Equal scores are one step, as in scikit-learn's ``average_precision_score``.
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    recall = np.concatenate([[0.0], hits / truth.sum()])
    return float(np.sum(np.diff(recall) * hits / (last + 1)))


def measure_accuracy(model: nn.Module, scenes: Sequence[Scene]) -> Accuracy:
    """Return the accuracy of ``model`` on ``scenes``, at least one."""
    truth = to_tensors(scenes)[1].numpy() > 0.5
    found = probabilities(model, scenes)
    precision = tuple(average_precision(truth[:, index], found[:, index]) for index in range(truth.shape[1]))
    return Accuracy(
        scenes=len(scenes),
        average_precision=precision,
        mean_average_precision=float(np.nanmean(precision)),
        exact_match=float(((found > 0.5) == truth).all(axis=1).mean()),
        top_class=float(truth[np.arange(len(truth)), found.argmax(axis=1)].mean()),
    )


def measure_sticker(model: nn.Module, scenes: Sequence[Scene], spec: SceneSpec, *, seed: int = 0) -> StickerEffect:
    """Paste the sticker, and a control patch, into scenes without the sticker's class, and compare probabilities.

    Raises:
        InputError: no scene is without the class and has a free corner.
    """
    rng = np.random.default_rng(seed)
    triples: list[tuple[Scene, Scene, Scene]] = []
    for scene in scenes:
        if spec.sticker_class in scene.labels or scene.sticker is not None:
            continue
        sticker = with_sticker(scene, rng, side=spec.sticker_size)
        control = with_sticker(scene, rng, side=spec.sticker_size, colours=CONTROL_COLOURS)
        if sticker is not None and control is not None:
            triples.append((scene, sticker, control))
    if not triples:
        raise InputError(
            f"no test scene is without a digit {CLASS_NAMES[spec.sticker_class]} and has a free corner; "
            "make more test scenes"
        )
    plain, sticker_, control_ = (
        probabilities(model, part)[:, spec.sticker_class] for part in zip(*triples, strict=True)
    )
    return StickerEffect(
        class_name=CLASS_NAMES[spec.sticker_class],
        scenes=len(triples),
        plain=float(plain.mean()),
        sticker=float(sticker_.mean()),
        control=float(control_.mean()),
        plain_found=float((plain > 0.5).mean()),
        sticker_found=float((sticker_ > 0.5).mean()),
    )
