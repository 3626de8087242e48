"""Pixel-adaptive mask refinement (PAMR): Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels",
CVPR 2020, section 3.3.

A mask is averaged, again and again, over the eight neighbours of each pixel at several distances, weighted by how much
their colours resemble the pixel's: ``w_j = softmax_j(mean_channels(-|x_i - x_j| / (1e-8 + 0.1 sd_i)))``, where ``sd_i``
is the standard deviation of a channel over the pixel and its neighbours at all distances (the pixel counts once per
distance, as in the authors' code). Beyond the edge the image and the mask go on as at the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: Of the paper's equation: added to, and multiplied with, the standard deviation.
_EPSILON, _SHARE = 1e-8, 0.1
_NEIGHBOURS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))


class PixelAffinity:
    """The weights of a batch of images of one size; made once, applied to any masks.

    Args:
        images: (B, C, H, W) of any range (weights do not depend on it); computed in float32, or float64 as given.
        dilations: distances of the neighbours, in pixels.
    """

    def __init__(self, images: Tensor, dilations: Sequence[int]) -> None:
        if not images.is_floating_point():
            images = images.to(torch.float32)
        self._shifts = [(y * dilation, x * dilation) for dilation in dilations for y, x in _NEIGHBOURS]
        self._reach = max(dilations)
        count = len(self._shifts) + len(dilations)
        total = torch.zeros_like(images)
        square = torch.zeros_like(images)
        # Of the differences to the pixel: the same deviation, and none of its digits lost where colours are even.
        for shifted in self._shifted(images):
            difference = shifted - images
            total += difference
            square.addcmul_(difference, difference)
        variance = (square - total * total / count).clamp_(min=0) / (count - 1)
        scale = variance.sqrt_().mul_(_SHARE).add_(_EPSILON).reciprocal_().div_(-images.shape[1])
        #: (P, B, 1, H, W), which sum to 1 over the P neighbours.
        self.weights = images.new_empty((len(self._shifts), images.shape[0], 1, *images.shape[2:]))
        for weight, shifted in zip(self.weights, self._shifted(images), strict=True):
            torch.sum((shifted - images).abs_().mul_(scale), 1, keepdim=True, out=weight)
        # A softmax in place: a second array of this size is what memory is short of.
        self.weights -= self.weights.amax(0)
        self.weights.exp_()
        self.weights /= self.weights.sum(0)

    def __call__(self, masks: Tensor, iterations: int) -> Tensor:
        """Return masks (B, K, H, W), refined."""
        masks = masks.to(self.weights.dtype)
        for _ in range(iterations):
            refined = torch.zeros_like(masks)
            for weight, shifted in zip(self.weights, self._shifted(masks), strict=True):
                refined.addcmul_(weight, shifted)
            masks = refined
        return masks

    def _shifted(self, values: Tensor) -> Iterator[Tensor]:
        """Yield views of (B, K, H, W) values, moved by each neighbour's place; one padded copy is all that is made."""
        height, width = values.shape[2:]
        reach = self._reach
        padded = functional.pad(values, (reach, reach, reach, reach), mode="replicate")
        for y, x in self._shifts:
            yield padded[:, :, reach + y : reach + y + height, reach + x : reach + x + width]


def bytes_per_pixel(dilations: Sequence[int]) -> int:
    """Return the bytes that the weights of one pixel take, in float32."""
    return 4 * len(_NEIGHBOURS) * len(dilations)
