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
        images: (B, C, H, W) uint8, for which weights are made in float32; or float32 or float64 of any range.
        dilations: distances of the neighbours, in pixels.
    """

    def __init__(self, images: Tensor, dilations: Sequence[int]) -> None:
        self._shifts = [(y * dilation, x * dilation) for dilation in dilations for y, x in _NEIGHBOURS]
        self._reach = max(dilations)
        whole = not images.is_floating_point()
        values = images.to(torch.float32) if whole else images
        # Of whole numbers up to 255 the sums are exact in float32.
        deviation = _deviation(values if whole else values.double(), dilations).to(values.dtype)
        scale = deviation.mul_(_SHARE).add_(_EPSILON).reciprocal_().div_(-images.shape[1])
        #: (P, B, 1, H, W), which sum to 1 over the P neighbours.
        self.weights = values.new_empty((len(self._shifts), images.shape[0], 1, *images.shape[2:]))
        difference = torch.empty_like(values)
        for weight, shifted in zip(self.weights, self._shifted(values), strict=True):
            torch.sub(shifted, values, out=difference).abs_()
            torch.mul(difference[:, :1], scale[:, :1], out=weight)
            for channel in range(1, images.shape[1]):
                weight.addcmul_(difference[:, channel : channel + 1], scale[:, channel : channel + 1])
        # No maximum has to be taken off first: a ninth of the values behind a deviation are the pixel's own, which
        # bounds the mean square difference by 11 of its squares, so not all exponents are below -34.
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


def _deviation(values: Tensor, dilations: Sequence[int]) -> Tensor:
    """Return the unbiased standard deviation (B, C, H, W) float64 over each pixel's 3 x 3 places at all distances."""
    total = torch.zeros_like(values)
    square = torch.zeros_like(values)
    reach = max(dilations)
    height, width = values.shape[2:]
    padded = functional.pad(values, (reach, reach, reach, reach), mode="replicate")
    for each, found in ((padded, total), (padded * padded, square)):
        for dilation in dilations:
            top, left = reach - dilation, reach - dilation
            rows = each[:, :, top : top + height].clone()
            for place in (reach, reach + dilation):
                rows += each[:, :, place : place + height]
            for place in (left, reach, reach + dilation):
                found += rows[..., place : place + width]
    count = (len(_NEIGHBOURS) + 1) * len(dilations)
    total, square = total.double(), square.double()
    # Exact for whole numbers, so that even colours have a deviation of 0.
    return ((square * count - total * total).clamp_(min=0) / (count * (count - 1))).sqrt_()


def bytes_per_pixel(dilations: Sequence[int]) -> int:
    """Return the bytes that the weights of one pixel take, in float32."""
    return 4 * len(_NEIGHBOURS) * len(dilations)
