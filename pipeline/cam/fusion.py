"""How the maps of several layers become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# Scale of LayerCAM's tanh (Jiang et al. 2021, eq. 9).
_GAMMA = 2.0


def scaled_by_maximum(maps: Tensor) -> Tensor:
    """Divide each map (T, h, w) by its own largest absolute value; a map of zeros stays as it is."""
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest == 0, 1.0, largest)


def fuse(maps: Sequence[Tensor], how: str, deepest: int) -> Tensor:
    """Fuse the raw maps of several layers on the finest of their grids.

    Every map is first divided by its own largest absolute value, so that layers count alike whatever their
    magnitudes; with ``tanh_max`` all but the deepest layer's then become ``tanh(2 M / max M)``. The maps are enlarged
    bilinearly (``align_corners=False``) and combined by mean (``mean``) or element-wise maximum (``max``,
    ``tanh_max``). The result has no magnitude of its own.

    Args:
        maps: one (T, h_l, w_l) float32 tensor per layer.
        how: ``mean``, ``max`` or ``tanh_max``.
        deepest: position of the layer that the forward pass reaches last.

    Returns:
        (T, max h_l, max w_l) float32.
    """
    size = (max(each.shape[1] for each in maps), max(each.shape[2] for each in maps))
    same_size = []
    for position, each in enumerate(maps):
        scaled = scaled_by_maximum(each)
        if how == "tanh_max" and position != deepest:
            scaled = torch.tanh(_GAMMA * scaled)
        if scaled.shape[1:] != size:
            scaled = functional.interpolate(scaled[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        same_size.append(scaled)
    stacked = torch.stack(same_size)
    return stacked.mean(0) if how == "mean" else stacked.amax(0)
