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


# Values of a band of rows that is worked on at a time on a CPU, so that what is added up stays in its cache.
_BAND_VALUES = 196608


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
        batch, channels, height, width = values.shape
        # (P, B, 1, H, W), and one over their sum over the P neighbours: to divide each of them would be a pass more.
        self._weights = values.new_empty((len(self._shifts), batch, 1, height, width))
        self._inverse = values.new_zeros((batch, 1, height, width))
        padded = self._padded(values)
        # Of whole numbers up to 255 the sums are exact in float32.
        exact = padded if whole else padded.double()
        squares = exact * exact
        bands = _bands(values)
        difference = values.new_empty((batch, channels, bands[0][1], width))
        for top, bottom in bands:
            deviation = _deviation(exact, squares, dilations, top, bottom).to(values.dtype)
            factor = deviation.mul_(_SHARE).add_(_EPSILON).reciprocal_().div_(-channels)
            own, total = values[:, :, top:bottom], self._inverse[:, :, top:bottom]
            part = difference[:, :, : bottom - top]
            weights = self._weights[:, :, :, top:bottom]
            for weight, shifted in zip(weights, self._shifted(padded, top, bottom), strict=True):
                torch.sub(shifted, own, out=part).abs_()
                torch.mul(part[:, :1], factor[:, :1], out=weight)
                for channel in range(1, channels):
                    weight.addcmul_(part[:, channel : channel + 1], factor[:, channel : channel + 1])
                # No maximum has to be taken off first: a ninth of the values behind a deviation are the pixel's own,
                # which bounds the mean square difference by 11 of its squares, so not all exponents are below -34.
                total += weight.exp_()
        self._inverse.reciprocal_()

    def __call__(self, masks: Tensor, iterations: int) -> Tensor:
        """Return masks (B, K, H, W), refined."""
        masks = masks.to(self._weights.dtype)
        for _ in range(iterations):
            padded = self._padded(masks)
            refined = torch.zeros_like(masks)
            for top, bottom in _bands(masks):
                part = refined[:, :, top:bottom]
                for weight, shifted in zip(
                    self._weights[:, :, :, top:bottom], self._shifted(padded, top, bottom), strict=True
                ):
                    part.addcmul_(weight, shifted)
                part *= self._inverse[:, :, top:bottom]
            masks = refined
        return masks

    def _padded(self, values: Tensor) -> Tensor:
        reach = self._reach
        return functional.pad(values, (reach, reach, reach, reach), mode="replicate")

    def _shifted(self, padded: Tensor, top: int, bottom: int) -> Iterator[Tensor]:
        """Yield views of rows ``top`` to ``bottom`` of padded values, moved by each neighbour's place."""
        reach = self._reach
        width = padded.shape[3] - 2 * reach
        for y, x in self._shifts:
            yield padded[:, :, reach + y + top : reach + y + bottom, reach + x : reach + x + width]


def _bands(values: Tensor) -> list[tuple[int, int]]:
    """Return the first row and the one after the last of each band of (B, C, H, W) values."""
    height = values.shape[2]
    rows = height
    if values.device.type == "cpu":
        rows = max(1, _BAND_VALUES * height // max(1, values.numel()))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _deviation(padded: Tensor, squares: Tensor, dilations: Sequence[int], top: int, bottom: int) -> Tensor:
    """Return the unbiased standard deviation (B, C, rows, W) float64 over each pixel's 3 x 3 places at all distances.

    Args:
        padded: values with as many rows and columns around them as the largest distance.
        squares: of ``padded``.
        dilations: the distances.
        top: the first row.
        bottom: the row after the last.
    """
    reach = max(dilations)
    width = padded.shape[3] - 2 * reach
    found = []
    for each in (padded, squares):
        total = each.new_zeros((*each.shape[:2], bottom - top, width))
        for dilation in dilations:
            first, *others = (each[:, :, reach + y + top : reach + y + bottom] for y in (-dilation, 0, dilation))
            rows = first + others[0]
            rows += others[1]
            for x in (-dilation, 0, dilation):
                total += rows[..., reach + x : reach + x + width]
        found.append(total.double())
    total, square = found
    count = (len(_NEIGHBOURS) + 1) * len(dilations)
    # Exact for whole numbers, so that even colours have a deviation of 0.
    return square.mul_(count).sub_(total.square_()).clamp_(min=0).div_(count * (count - 1)).sqrt_()


def bytes_per_pixel(dilations: Sequence[int]) -> int:
    """Return the bytes that the weights of one pixel take, in float32."""
    return 4 * len(_NEIGHBOURS) * len(dilations)
