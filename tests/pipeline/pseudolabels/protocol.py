"""The protocol of pseudo-labels written down once more: images one by one, loops, float64, nothing of ours."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

Array = npt.NDArray[np.float64]


def bilinear(values: Array, height: int, width: int) -> Array:
    """Enlarge (h, w) with ``align_corners=False``: pixel centres lie at half-integers, edges go on."""
    found = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            at_y = min(max((y + 0.5) * values.shape[0] / height - 0.5, 0), values.shape[0] - 1)
            at_x = min(max((x + 0.5) * values.shape[1] / width - 0.5, 0), values.shape[1] - 1)
            top, left = int(at_y), int(at_x)
            bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
            down, across = at_y - top, at_x - left
            found[y, x] = (1 - down) * ((1 - across) * values[top, left] + across * values[top, right]) + down * (
                (1 - across) * values[bottom, left] + across * values[bottom, right]
            )
    return found


def cam(model: nn.Module, layer: str, head: str, image: npt.NDArray[np.uint8], target: int) -> Array:
    """CAM of a class (h, w): the head's weights over the layer's activation, for pixels (H, W, 3)."""
    double = copy.deepcopy(model).double().eval()
    kept = []
    hook = double.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    pixels = torch.tensor(image, dtype=torch.float64) / 255
    with torch.no_grad():
        double(((pixels - mean.double()) / std.double()).permute(2, 0, 1)[None])
    hook.remove()
    weight = double.get_submodule(head).weight[target].detach()
    return (weight[:, None, None] * kept[0][0]).sum(0).numpy()


def seeds(
    model: nn.Module,
    layer: str,
    head: str,
    image: npt.NDArray[np.uint8],
    targets: Sequence[int],
    scales: Sequence[float],
    flip: bool = True,
) -> Array:
    """Normalised maps (K, H, W) of an image (H, W, 3)."""
    height, width = image.shape[:2]
    found = []
    for target in targets:
        total = np.zeros((height, width))
        for scale in scales:
            size = (round(width * scale), round(height * scale))
            resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
            for mirrored in (False, True) if flip else (False,):
                shown = np.ascontiguousarray(resized[:, ::-1]) if mirrored else resized
                raw = np.maximum(cam(model, layer, head, shown, target), 0)
                total += bilinear(raw[:, ::-1] if mirrored else raw, height, width)
        found.append(total / (total.max() + 1e-5))
    return np.stack(found)


def labels(maps: Array, threshold: float) -> npt.NDArray[np.int64]:
    """Position + 1 of the winning map (H, W), or 0 for the background."""
    return np.concatenate([np.full((1, *maps.shape[1:]), threshold), maps]).argmax(0)


def pamr(image: Array, mask: Array, dilations: Sequence[int], iterations: int) -> Array:
    """Pixel-adaptive mask refinement of (K, H, W) by an image (C, H, W)."""
    _, height, width = image.shape
    eight = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]

    def at(values: Array, y: int, x: int) -> Array:
        return values[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    weights = {}
    for y in range(height):
        for x in range(width):
            places = [(y + d * dy, x + d * dx) for d in dilations for dy, dx in eight]
            own = at(image, y, x)
            around = np.array([at(image, *place) for place in places])
            deviation = np.concatenate([around, np.tile(own, (len(dilations), 1))]).std(axis=0, ddof=1)
            energy = (-np.abs(around - own) / (1e-8 + 0.1 * deviation)).mean(1)
            share = np.exp(energy - energy.max())
            weights[y, x] = places, share / share.sum()
    for _ in range(iterations):
        refined = np.empty_like(mask)
        for (y, x), (places, share) in weights.items():
            refined[:, y, x] = sum(part * at(mask, *place) for part, place in zip(share, places, strict=True))
        mask = refined
    return mask


def dense_crf(
    pixels: npt.NDArray[np.uint8],
    scores: Array,
    *,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    iterations: int,
) -> Array:
    """Mean field of a fully connected CRF with exact kernels: marginals (L, H, W).

    ``gaussian`` is (deviation, weight), ``bilateral`` (deviation of position, of colour, weight); the kernels are
    normalised symmetrically, as pydensecrf does, and count each pixel as its own neighbour, as its lattice does.
    """
    labels, height, width = scores.shape
    y, x = np.mgrid[:height, :width]
    place = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    colour = pixels.reshape(-1, 3).astype(float)
    unary = -np.log(np.maximum(scores, 1e-5)).reshape(labels, -1)

    def kernel(features: Array) -> Array:
        square = ((features[:, None] - features[None]) ** 2).sum(-1)
        values = np.exp(-square / 2)
        norm = 1 / np.sqrt(values.sum(1) + 1e-20)
        return norm[:, None] * values * norm[None]

    kernels = [
        (gaussian[1], kernel(place / gaussian[0])),
        (bilateral[2], kernel(np.concatenate([place / bilateral[0], colour / bilateral[1]], 1))),
    ]

    def normalised(energy: Array) -> Array:
        shares = np.exp(-(energy - energy.min(0)))
        return shares / shares.sum(0)

    found = normalised(unary)
    for _ in range(iterations):
        found = normalised(unary - sum(weight * found @ matrix for weight, matrix in kernels))
    assert math.isclose(float(found.sum()), height * width, rel_tol=1e-6)
    return found.reshape(scores.shape)
