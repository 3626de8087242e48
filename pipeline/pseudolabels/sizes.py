"""The sizes in which a model is shown an image, and in which its maps are summed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.optimise import outputs
from pipeline.models.replica import Replica
from pipeline.models.trace import FORWARD_ERRORS, probe_image
from pipeline.sources.decode import MAX_PIXELS, DecodeError
from schemas.errors import InputError
from schemas.pseudolabels import PseudoLabels
from schemas.view import View

Size = tuple[int, int]

#: Shortest sides that are tried on a model, least first: most networks halve an image five times.
_SIDES = (32, 64, 96, 128, 160, 192)


@dataclass(frozen=True)
class Sizes:
    """Sizes by the image's own.

    Args:
        scales: factors of the image's size, the first of which is 1 where 1 is among them.
        max_pixels: of the image at scale 1.
        smallest: the least side that the model takes; smaller ones are brought up to it.
        fixed: the one (height, width) that the model takes, where it takes no other.
    """

    scales: tuple[float, ...]
    max_pixels: int
    smallest: int
    fixed: Size | None = None

    def base(self, height: int, width: int) -> Size:
        """Return the size in which the maps of an image (height, width) are summed and refined: mostly its own."""
        if height * width <= self.max_pixels:
            return height, width
        factor = math.sqrt(self.max_pixels / (height * width))
        short = max(1, int(min(height, width) * factor))
        long = min(int(max(height, width) * factor), self.max_pixels // short) if short > 1 else self.max_pixels
        long = min(long, max(height, width))
        return (short, long) if height <= width else (long, short)

    def scaled(self, height: int, width: int, scale: float) -> Size:
        """Return the size at a scale of the base size, rounded as the protocol's code does."""
        if self.fixed is not None:
            return self.fixed
        base = self.base(height, width)
        return max(self.smallest, round(base[0] * scale)), max(self.smallest, round(base[1] * scale))


def in_order(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Return the scales with 1 first: the targets are chosen from what the model says of the image as it is."""
    return tuple(sorted(scales, key=lambda scale: scale != 1))


def find_sizes(settings: PseudoLabels, replica: Replica) -> Sizes:
    """Find out which sizes a model takes, by a few forwards.

    Raises:
        InputError: it takes one size only, and several scales are asked for.
    """
    scales = in_order(settings.scales)
    height, width = replica.preprocess.input_size
    # All strides up to 32 and patches up to 32 divide this one, if they divide the model's own.
    if not _takes(replica, (height + 32, width + 64)):
        if scales != (1.0,):
            raise InputError(
                f"pseudo_labels.scales: {replica.config.name} takes images of {height}x{width} and no other, so it "
                "cannot be shown several scales; give scales: [1.0] (images are then resized to that size), or another "
                "model"
            )
        return Sizes(scales, settings.max_pixels, 1, (height, width))
    smallest = next((side for side in _SIDES if _takes(replica, (side, side))), min(height, width))
    return Sizes(scales, settings.max_pixels, smallest)


def _takes(replica: Replica, size: Size) -> bool:
    """Say whether the model runs on images of a size and its layers have a place for more than one cell."""
    layers = [*replica.layers, *replica.method_layers]
    try:
        with torch.no_grad():
            logits, grids = outputs(replica.model, layers, probe_image(replica.model, size, batch=1))
    except (InputError, *FORWARD_ERRORS):
        return False
    return logits.shape[1] == replica.num_classes and all(
        grid.dim() == 4 and grid.shape[2] * grid.shape[3] > 1 for grid in grids.values()
    )


class Scaled(NamedTuple):
    """An image as the stages want it: uint8 RGB on the CPU.

    ``size`` (H, W) of the original; ``base`` (3, h, w) in the size of :meth:`Sizes.base`; ``scaled`` (3, h_s, w_s), one
    per scale, scale 1 first (which may be there for the choice of targets alone).
    """

    size: Size
    base: Tensor
    scaled: tuple[Tensor, ...]

    @property
    def pixels(self) -> int:
        """Pixels held."""
        return sum(each.shape[1] * each.shape[2] for each in (self.base, *self.scaled))


@dataclass(frozen=True)
class ScaledImages:
    """Brings decoded pixels to their scales; no crop and no padding, so the model sees the whole image.

    Resizing is bicubic on uint8 and antialiased, as the protocol's Pillow does it (within one grey level).
    """

    sizes: Sizes

    def __call__(self, pixels: Tensor) -> tuple[Scaled, View]:
        """Return the scales of pixels (3, H, W) uint8, and the whole image as the view.

        Raises:
            DecodeError: the image is so narrow that a scale of it would have more pixels than the limit.
        """
        height, width = pixels.shape[1:]
        sizes = [self.sizes.scaled(height, width, scale) for scale in self.shown()]
        largest = max(sizes, key=lambda size: size[0] * size[1])
        if largest[0] * largest[1] > MAX_PIXELS:
            raise DecodeError(
                f"an image of {width} x {height} pixels would have {largest[1]} x {largest[0]} at a scale, more than "
                f"the limit of {MAX_PIXELS}; give smaller pseudo_labels.scales"
            )
        base = resized(pixels, self.sizes.base(height, width))
        scaled = tuple(resized(pixels, size) for size in sizes)
        return Scaled((height, width), base, scaled), View(0.0, 0.0, float(width), float(height))

    def shown(self) -> tuple[float, ...]:
        """Return the scales that the model is shown: those of the job, and 1 before them."""
        return self.sizes.scales if self.sizes.scales[0] == 1 else (1.0, *self.sizes.scales)


def resized(pixels: Tensor, size: Size) -> Tensor:
    if tuple(pixels.shape[1:]) == size:
        return pixels
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    resized: Tensor = functional.resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized
