"""Every method in float64, written from its formula, for one image and one class at a time.

Nothing of the code under test is used: activations and gradients come from a full autograd graph of a double-precision
copy, masks exist at full resolution one by one, singular vectors come from numpy's SVD.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Grid = Callable[[Tensor], Tensor]


def double_copy(model: nn.Module) -> nn.Module:
    """The same network in float64 and eval mode."""
    return copy.deepcopy(model).double().eval().requires_grad_(True)


def signals(model: nn.Module, layer: str, to_grid: Grid, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Return A and g = dS_c/dA, each (C, h, w) float64, of one image (3, H, W)."""
    network = double_copy(model)
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        seen.append(output)
        output.retain_grad()
        return output.clone()

    handle = network.get_submodule(layer).register_forward_hook(hook)
    network(image[None].double())[0, target].backward()
    handle.remove()
    assert seen[0].grad is not None
    return to_grid(seen[0].detach())[0], to_grid(seen[0].grad)[0]


def cam(activation: Tensor, weight: Tensor, target: int) -> Tensor:
    """sum_k w_ck A_k"""
    return torch.einsum("k,kij->ij", weight.detach().double()[target], activation)


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """relu(sum_k mean_ij(g_kij) A_k)"""
    return torch.einsum("k,kij->ij", gradient.mean((1, 2)), activation).relu()


def grad_cam_pp(activation: Tensor, gradient: Tensor) -> Tensor:
    """alpha = g^2 / (2 g^2 + s g^3), w = sum_ij alpha relu(g), relu(sum_k w_k A_k); s below 0 counts as 0."""
    return smooth_grad_cam_pp(activation, [gradient])


def smooth_grad_cam_pp(activation: Tensor, gradients: Sequence[Tensor], numerator: str = "second") -> Tensor:
    """The same with the powers of g averaged over the samples."""
    stack = torch.stack(list(gradients))
    first, second, third = stack.mean(0), (stack**2).mean(0), (stack**3).mean(0)
    total = activation.sum((1, 2), keepdim=True).clamp(min=0)
    denominator = 2 * second + total * third
    alpha = (second if numerator == "second" else first) / denominator
    alpha[denominator == 0] = 0
    return torch.einsum("k,kij->ij", (alpha * first.relu()).sum((1, 2)), activation).relu()


def layer_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """relu(sum_k relu(g_kij) A_kij)"""
    return torch.einsum("kij,kij->ij", gradient.relu(), activation).relu()


def hires_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """relu(sum_k g_kij A_kij)"""
    return torch.einsum("kij,kij->ij", gradient, activation).relu()


def xgrad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """a_k = sum_ij g A / sum_ij A (no part where that sum is 0), relu(sum_k a_k A_k)"""
    total = activation.sum((1, 2))
    weight = torch.einsum("kij,kij->k", gradient, activation) / torch.where(total == 0, 1.0, total)
    weight[total == 0] = 0
    return torch.einsum("k,kij->ij", weight, activation).relu()


def eigen_cam(activation: Tensor) -> Tensor:
    """M v_1 with M (cells, channels), its sum made non-negative"""
    matrix = activation.flatten(1).T.numpy()
    projection = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
    if projection.sum() < 0:
        projection = -projection
    return torch.from_numpy(projection).view(activation.shape[1:])


def score_cam(
    model: nn.Module,
    activation: Tensor,
    image: Tensor,
    target: int,
    *,
    score: str,
    weight: str,
    normalise: str,
    align_corners: bool,
    activation_of_logits: str = "softmax",
) -> Tensor:
    """relu(sum_k a_k A_k), each mask enlarged, scaled and scored by itself."""
    network = double_copy(model)
    weights = []
    constant = []
    for channel in activation:
        low, high = channel.min(), channel.max()
        constant.append(bool(low == high))
        if constant[-1]:
            mask = torch.zeros(image.shape[1:], dtype=torch.float64)
        else:
            grid = (channel - low) / (high - low) if normalise == "before" else channel
            mask = functional.interpolate(
                grid[None, None], image.shape[1:], mode="bilinear", align_corners=align_corners
            )[0, 0]
            if normalise == "after":
                mask = (mask - mask.min()) / (mask.max() - mask.min())
        with torch.no_grad():
            logits = network((image.double() * mask)[None])[0]
        if score == "probability":
            logits = logits.softmax(0) if activation_of_logits == "softmax" else logits.sigmoid()
        weights.append(logits[target])
    channel_weight = torch.stack(weights)
    if weight == "softmax":
        channel_weight = channel_weight.softmax(0)
    else:
        channel_weight[torch.tensor(constant)] = 0
    return torch.einsum("k,kij->ij", channel_weight, activation).relu()


def fused(maps: Sequence[Tensor], how: str, deepest: int) -> Tensor:
    """Each map over its own maximum (tanh(2 x) but for the deepest, with tanh_max), enlarged, combined."""
    size = [max(each.shape[axis] for each in maps) for axis in (0, 1)]
    parts = []
    for position, each in enumerate(maps):
        part = each / each.abs().max() if each.abs().max() > 0 else each
        if how == "tanh_max" and position != deepest:
            part = torch.tanh(2 * part)
        parts.append(functional.interpolate(part[None, None], size, mode="bilinear", align_corners=False)[0, 0])
    stack = torch.stack(parts)
    return stack.mean(0) if how == "mean" else stack.amax(0)
