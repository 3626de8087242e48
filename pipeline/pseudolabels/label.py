"""From summed maps to the labels of an image: normalised per class, compared with the background, refined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.cam.selection import KINDS
from pipeline.pseudolabels.classes import LabelClasses
from pipeline.pseudolabels.labels import ClassScore, ImageLabels
from pipeline.pseudolabels.pamr import PixelAffinity, bytes_per_pixel
from schemas.pseudolabels import (
    BACKGROUND_ID,
    EPSILON,
    Background,
    BandBackground,
    ConstantBackground,
    PamrRefinement,
    PowerBackground,
)

# Bytes of neighbours' weights that PAMR holds at a time, for several images of one size; one image may take more.
_WEIGHT_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}


@dataclass(frozen=True)
class ClassMaps:
    """The classes of an image and their normalised maps (K, h, w) float32 in [0, 1], in order of the label's id."""

    classes: tuple[ClassScore, ...]
    maps: Tensor


def class_maps(
    sums: Tensor, targets: Sequence[int], kinds: Sequence[str], probabilities: Sequence[float], classes: LabelClasses
) -> ClassMaps:
    """Return the maps of an image's label classes: the largest of their model classes', over its maximum + 1e-5.

    Args:
        sums: (T, h, w) float32 >= 0; a map with a value that is not finite counts as one of zeros.
        targets, kinds, probabilities: of the T maps: the model's class, why it is one, and its probability.
        classes: of the labels. A class of the model that is in none is left out.
    """
    members: dict[int, list[int]] = defaultdict(list)
    names: dict[int, str] = {}
    for row, target in enumerate(targets):
        for owner in classes.of_model.get(target, ()):
            members[owner.label_id].append(row)
            names[owner.label_id] = owner.name
    scores, maps = [], []
    for label_id, rows in sorted(members.items()):
        found = torch.stack([sums[row] for row in rows]).amax(0) if len(rows) > 1 else sums[rows[0]]
        largest = found.amax()
        # Of NaN the maximum is NaN.
        maps.append(torch.where(largest.isfinite(), found / (largest + EPSILON), 0.0))
        kind = min((kinds[row] for row in rows), key=KINDS.index)
        scores.append(ClassScore(label_id, names[label_id], kind, max(probabilities[row] for row in rows)))
    return ClassMaps(tuple(scores), torch.stack(maps) if maps else sums.new_zeros((0, *sums.shape[1:])))


@dataclass(frozen=True)
class Stack:
    """The scores that compete for the pixels of an image: the background's, and the classes' (K, h, w).

    ``background`` is a number, or (h, w) where it differs between pixels.
    """

    background: float | Tensor
    maps: Tensor

    def scores(self) -> Tensor:
        """Return (K + 1, h, w), the background first."""
        shape = self.maps.shape[1:]
        first = self.background if isinstance(self.background, Tensor) else self.maps.new_full(shape, self.background)
        return torch.cat([first[None], self.maps])


def stacks(maps: Tensor, background: Background) -> list[Stack]:
    """Return what competes by the background rule: one stack, or with a band one per threshold, foreground first."""
    if isinstance(background, BandBackground):
        return [Stack(background.foreground, maps), Stack(background.background, maps)]
    if isinstance(background, PowerBackground):
        rest = 1 - (maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:]))
        return [Stack(rest**background.power, maps)]
    if isinstance(background, ConstantBackground):
        return [Stack(background.threshold, maps)]
    raise TypeError(f"no background rule of type {type(background).__name__}")


def refined_by_pamr(
    images: Sequence[Tensor], found: Sequence[list[Stack]], settings: PamrRefinement
) -> list[list[Stack]]:
    """Refine the stacks of images of one size, as many at a time as memory allows.

    A constant is what it is after any average, and the stacks of a band differ in nothing else, so they share maps.

    Args:
        images: (3, h, w) uint8 each, on the device.
        found: the stacks of each.
        settings: of the job.
    """
    channels = [_channels(stacks[0]) for stacks in found]
    height, width = images[0].shape[1:]
    budget = _WEIGHT_BYTES.get(images[0].device.type, _WEIGHT_BYTES["cuda"])
    together = max(1, budget // (bytes_per_pixel(settings.dilations) * height * width))
    refined = list(channels)
    by_count: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(channels):
        if len(each):
            by_count[len(each)].append(number)
    for numbers in by_count.values():
        for start in range(0, len(numbers), together):
            part = numbers[start : start + together]
            affinity = PixelAffinity(torch.stack([images[number] for number in part]), settings.dilations)
            masks = affinity(torch.stack([channels[number] for number in part]), settings.iterations)
            for number, each in zip(part, masks, strict=True):
                refined[number] = each
    return [[_with_channels(stack, each) for stack in stacks] for stacks, each in zip(found, refined, strict=True)]


def _channels(stack: Stack) -> Tensor:
    return stack.scores() if isinstance(stack.background, Tensor) else stack.maps


def _with_channels(stack: Stack, channels: Tensor) -> Stack:
    return (
        Stack(channels[0], channels[1:]) if isinstance(stack.background, Tensor) else Stack(stack.background, channels)
    )


def image_labels(
    image_index: int,
    size: tuple[int, int],
    owners: Sequence[ClassScore],
    found: Sequence[Stack],
    classes: LabelClasses,
    *,
    soft: bool,
) -> ImageLabels:
    """Return the labels of an image at its own size: the winner of each pixel, or ignore where two stacks disagree.

    Args:
        image_index: position of the image in its unit.
        size: (H, W) of the image; scores of another size are brought to it bilinearly (``align_corners=False``).
        owners: the classes of the maps.
        found: one stack or two.
        classes: of the labels.
        soft: keep the scores.
    """
    ids = [owner.label_id for owner in owners]
    index, confidence = _winners(found[0], ids, size)
    for other in found[1:]:
        index = torch.where(index == _winners(other, ids, size)[0], index, classes.ignore)
    scores = None
    if soft:
        scores = torch.stack([_enlarged(each, size) for each in found[0].scores()]).cpu().numpy()
    return ImageLabels(
        image_index, index.cpu().numpy().astype(classes.dtype), tuple(owners), confidence.cpu().numpy(), scores
    )


def _winners(stack: Stack, ids: Sequence[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the id (H, W) int32 of the largest score of each pixel and that score; the first of equals wins.

    Class by class, so that no more than one map is held at the full size.
    """
    if isinstance(stack.background, Tensor):
        best = _enlarged(stack.background, size)
    else:
        best = torch.full(size, stack.background, dtype=torch.float32, device=stack.maps.device)
    index = torch.full(size, BACKGROUND_ID, dtype=torch.int32, device=best.device)
    for label_id, each in zip(ids, stack.maps, strict=True):
        score = _enlarged(each, size)
        index = torch.where(score > best, label_id, index)
        best = torch.maximum(best, score)
    return index, best


def _enlarged(values: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(values.shape) == size:
        return values
    return functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def pixels_of(image: Tensor) -> np.ndarray:
    """Return (H, W, 3) uint8 of (3, H, W) uint8, in one piece."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
