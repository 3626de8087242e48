"""The exact scores of all masks of an image, kept in a folder where one is given."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.inputs import Subject, say
from pipeline.cam.base import MaskGroup
from pipeline.cam.mask_stream import MaskJob, MaskStream
from pipeline.cam.masked_forward import MaskedNetwork
from pipeline.cam.masks import MaskSet, distinct_masks, scaled_after_enlarging
from pipeline.cam.score_cam import ScoreCAM
from pipeline.models.compiled import compiled
from pipeline.models.optimise import outputs


@dataclass(frozen=True)
class Scored:
    """An image's masks and their exact scores.

    ``activation`` (C, h, w); ``masks`` the distinct ones; ``logits`` (U + 1, K), of the null mask in the last row;
    ``target`` is the predicted class.
    """

    activation: Tensor
    masks: MaskSet
    logits: Tensor
    target: int

    @property
    def count(self) -> int:
        """Distinct masks, U."""
        return len(self.masks.grids)

    def scores(self, method: ScoreCAM) -> Tensor:
        """What the method weights by, of each distinct mask: (U + 1, 1) float64."""
        logits = self.logits.double()
        scores = logits.softmax(1) if method.needs_probability else logits
        return scores[:, [self.target]]


def score_all(subject: Subject, network: MaskedNetwork, image: Tensor) -> Scored:
    """Run every distinct mask of an image (3, H, W), scaled after it is enlarged, and the null mask."""
    logits, grids = outputs(subject.replica.model, subject.replica.layers, image[None])
    activation = grids[subject.layer]
    masks = distinct_masks(activation)[0]
    masks = masks.with_grids(scaled_after_enlarging(masks.grids, (image.shape[1], image.shape[2]), False))
    group = MaskGroup(subject.layer, "after", False)
    classes = torch.arange(logits.shape[1])
    stream = MaskStream(network, False, "softmax")
    stream.push_null(image, len(classes), group)
    job = MaskJob(0, group, image, activation[0], masks, classes, classes)
    stream.push(job)
    list(stream.run(drain=True))
    found = torch.cat([job.logit, stream.null_logits[None]])
    return Scored(activation[0], masks, found, int(logits[0].argmax()))


def all_scores(subject: Subject, images: Tensor, options: argparse.Namespace) -> Iterator[Scored]:
    """Yield the exact scores of each image, from ``--scores`` where they are there."""
    network = MaskedNetwork(subject.replica.model, options.mask_batch, None, None if options.eager else compiled)
    for number, image in enumerate(images):
        path = None
        if options.scores is not None:
            options.scores.mkdir(parents=True, exist_ok=True)
            content = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
            path = options.scores / f"{subject.replica.digest[:12]}-{subject.layer}-{content}.pt"
        if path is not None and path.exists():
            document = torch.load(path)
            yield Scored(**document | {"masks": MaskSet(**document["masks"])})
            continue
        scored = score_all(subject, network, image)
        say(f"image {number + 1} of {len(images)}: {scored.count} masks scored")
        if path is not None:
            partial = path.with_suffix(".partial")
            torch.save(vars(scored) | {"masks": vars(scored.masks)}, partial)
            partial.rename(path)
        yield scored
