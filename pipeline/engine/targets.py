"""What the maps table says of each target: its rank, logit and probability, and why it was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

import schemas.job
from pipeline.cam.base import Selection
from pipeline.cam.selection import TargetSelector, probabilities


@dataclass(frozen=True)
class Chosen:
    """The targets of a batch, one entry per (image, class), ordered by image and then by class.

    Arrays of length T: ``image`` and ``target`` int64, ``kind`` str, ``rank`` int64 (of the class's logit in its image,
    from 0; ties by class index), ``is_predicted`` bool, ``logit`` and ``probability`` float32.
    """

    image: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    rank: np.ndarray
    is_predicted: np.ndarray
    logit: np.ndarray
    probability: np.ndarray


def describe(selection: Selection, logits: Tensor, activation: str) -> Chosen:
    """Describe the targets of ``selection`` by the logits (n, K) of their batch.

    Raises:
        ValueError: the selection does not say why each class is a target.
    """
    if selection.kind is None:
        raise ValueError("the selection has no kinds; choose targets with TargetSelector")
    scores = logits.detach().float().cpu().numpy()
    # A stable sort of the negated logits ranks ties by class index.
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None, :].repeat(len(scores), 0), axis=1)
    image, target = selection.image.cpu().numpy(), selection.target.cpu().numpy()
    return Chosen(
        image=image,
        target=target,
        kind=np.array(selection.kind, dtype=object),
        rank=ranks[image, target],
        is_predicted=ranks[image, target] == 0,
        logit=scores[image, target],
        probability=probabilities(logits, activation).cpu().numpy()[image, target],
    )


def choose(selector: TargetSelector, logits: Tensor, labels: Sequence[Sequence[int]]) -> Selection:
    """Choose the targets of a batch; none for images that have no probabilities, whose maps would mean nothing.

    Args:
        selector: of the job.
        logits: (n, K).
        labels: the classes that each image is labelled with.
    """
    found = selector(logits, labels=labels)
    sound = probabilities(logits, selector.activation).isfinite().all(1).cpu()[found.image]
    kind = tuple(reason for reason, kept in zip(found.kind or (), sound.tolist(), strict=True) if kept)
    return Selection(found.image[sound], found.target[sound], kind)


def in_words(targets: schemas.job.Targets, num_classes: int) -> str:
    """Say which classes of an image are explained."""
    parts = []
    if targets.label:
        parts.append("the label")
    if targets.predicted:
        parts.append("the prediction")
    if targets.top_k is not None:
        parts.append(f"the top {min(targets.top_k, num_classes)}")
    if targets.threshold is not None:
        parts.append(f"every class of probability >= {targets.threshold:g}")
    if targets.classes:
        parts.append(f"{len(targets.classes)} fixed classes")
    return " and ".join(parts)
