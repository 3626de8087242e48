"""Masks of Score-CAM, kept on the layer's small grid: scaling, merging of equal masks, and the range after enlarging.

Enlarging is linear and its weights sum to one, so a mask that is scaled after it was enlarged equals the enlarged
small grid, scaled by the extremes of the enlarged one. Masks at the input's resolution never exist all at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskSet:
    """The distinct masks of one image at one layer.

    ``grids`` (U, h, w) float32 in [0, 1], no two equal; ``channel`` (C,) int64 is each channel's row, U for the null
    mask; ``constant`` and ``not_finite`` (C,) bool. ``has_null``: some channel has the null mask.
    """

    grids: Tensor
    channel: Tensor
    constant: Tensor
    not_finite: Tensor
    has_null: bool

    def with_grids(self, grids: Tensor) -> MaskSet:
        """Return the same masks on other values of their grids."""
        return replace(self, grids=grids)


def distinct_masks(activation: Tensor) -> list[MaskSet]:
    """Scale each channel to [0, 1] on its grid and merge those that become exactly equal, per image.

    The scaling comes first: every channel with a single active cell becomes the same one-hot grid, bit for bit.
    Channels that are constant or not finite get the null mask, which is zero everywhere.

    Args:
        activation: (N, C, h, w) float32.

    Returns:
        One mask set per image. The device is waited for once per call, not per image or mask.
    """
    batch, channels, height, width = activation.shape
    flat = activation.flatten(2)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    finite = low.isfinite() & high.isfinite()
    constant = finite & (low == high)
    scaled = torch.where(finite & ~constant, (flat - low) / (high - low), 0.0)
    # The image's number as first column keeps images apart; it is exact in float32, and rows come out sorted.
    number = torch.arange(batch, device=flat.device, dtype=flat.dtype)[:, None, None].expand(batch, channels, 1)
    keys = torch.cat([number, scaled], 2).flatten(0, 1)
    rows, inverse = torch.unique(keys, dim=0, return_inverse=True)
    counts = torch.bincount(rows[:, 0].long(), minlength=batch)
    starts = counts.cumsum(0) - counts
    # Sorted, and no other grid is without a positive cell: the null mask is the first of its image.
    nulls = ~(rows[starts, 1:] > 0).any(1)
    grids = rows[:, 1:].reshape(-1, height, width)
    sets, start = [], 0
    for image, (count, null) in enumerate(torch.stack([counts, nulls.long()], 1).tolist()):
        distinct = count - null
        position = inverse.view(batch, channels)[image] - (start + null)
        sets.append(
            MaskSet(
                grids=grids[start + null : start + count],
                channel=torch.where(position < 0, distinct, position),
                constant=constant[image, :, 0],
                not_finite=~finite[image, :, 0],
                has_null=bool(null),
            )
        )
        start += count
    return sets


@dataclass(frozen=True)
class _Samples:
    """Places along an axis: between cells ``lower`` and ``upper`` (n,) int64, at ``fraction`` (n,) float32."""

    lower: Tensor
    upper: Tensor
    fraction: Tensor


@lru_cache(maxsize=64)
def _samples(cells: int, pixels: int, align_corners: bool, device: torch.device) -> _Samples:
    """Return the pixels at which an enlarged axis can be extreme.

    Between two cell centres it is linear, so of the pixels there only the first and the last matter: at most two per
    cell.
    """
    if align_corners:
        places = [pixel * (cells - 1) / (pixels - 1) if pixels > 1 else 0.0 for pixel in range(pixels)]
    else:
        places = [min(max((pixel + 0.5) * cells / pixels - 0.5, 0.0), cells - 1.0) for pixel in range(pixels)]
    between = [int(place) for place in places]
    kept = [
        pixel
        for pixel in range(pixels)
        if between[max(pixel - 1, 0)] != between[pixel]
        or between[min(pixel + 1, pixels - 1)] != between[pixel]
        or pixel in (0, pixels - 1)
    ]
    return _Samples(
        torch.tensor([between[pixel] for pixel in kept], device=device),
        torch.tensor([min(between[pixel] + 1, cells - 1) for pixel in kept], device=device),
        torch.tensor([places[pixel] - between[pixel] for pixel in kept], dtype=torch.float32, device=device),
    )


def _sampled(grids: Tensor, dim: int, samples: _Samples) -> Tensor:
    shape = [1, 1, 1]
    shape[dim] = -1
    part = samples.fraction.view(shape)
    # Product and sum apart, not a matrix product: the same bits for a mask whatever the number of masks.
    return grids.index_select(dim, samples.lower) * (1 - part) + grids.index_select(dim, samples.upper) * part


def scaled_after_enlarging(grids: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return (U, h, w) grids whose bilinear enlargement to ``size`` has minimum 0 and maximum 1.

    The extremes of each enlarged grid are those over a reduced grid of at most (2h, 2w) of its pixels.
    """
    rows = _samples(grids.shape[1], size[0], align_corners, grids.device)
    columns = _samples(grids.shape[2], size[1], align_corners, grids.device)
    reduced = _sampled(_sampled(grids, 1, rows), 2, columns)
    low, high = reduced.amin((1, 2), keepdim=True), reduced.amax((1, 2), keepdim=True)
    # A grid finer than the input can lose its only active cell in between pixels: then nothing is left to scale.
    return (grids - low) / torch.where(high > low, high - low, 1.0)
