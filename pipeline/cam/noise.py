"""Gradients over noised copies of the images, for Smooth Grad-CAM++."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.cam.base import LinearHead, Moments
from pipeline.cam.shared_pass import SharedPass

# Most bytes of accumulators held at a time; more targets per image repeat the noised forwards, with the same noise.
_ACCUMULATOR_BYTES = 1 << 30
_MASK = (1 << 64) - 1


def noise_seed(seed: int, image_seed: int, sample: int) -> int:
    """Mix (seed, image, sample) into one seed of 64 bits by SplitMix64's finaliser; no batch or worker enters."""
    state = 0
    for part in (seed, image_seed, sample):
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def noised(image: Tensor, level: float, seed: int) -> Tensor:
    """Return ``image`` (3, H, W) plus normal noise of standard deviation ``level * (max - min)`` of the image.

    The noise depends on ``seed``, the shape and the kind of device (CPU or CUDA) only.
    """
    generator = torch.Generator(device=image.device).manual_seed(seed)
    noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
    low, high = torch.aminmax(image)
    return image + noise.mul_(level * (high - low))


@dataclass(frozen=True)
class RankTargets:
    """The r-th target of every image that has one: ``target`` (N,) int64, ``active`` (N,) bool, on the device."""

    target: Tensor
    active: Tensor


def head_moments(head: LinearHead, target: Tensor, cells: int) -> Moments:
    """Return the moments behind global average pooling: the gradient W_c / (h w) does not depend on the input."""
    gradient = head_gradient(head, target, cells)
    square = gradient * gradient
    return Moments(gradient, square, square * gradient)


def head_gradient(head: LinearHead, target: Tensor, cells: int) -> Tensor:
    """Return ``dS_c/dA = W_c / (h w)`` as (N, C, 1, 1), for ``target`` (N,)."""
    return (head.weight[target] / cells)[:, :, None, None]


def noised_moments(
    forward: Callable[[Tensor], SharedPass],
    images: Tensor,
    image_seeds: Sequence[int],
    ranks: Sequence[RankTargets],
    clean: dict[str, Tensor],
    *,
    samples: int,
    level: float,
    seed: int,
) -> Iterator[dict[str, Moments]]:
    """Yield, for each rank in turn, the moments of the gradients over ``samples`` noised copies of each image.

    (sample, image) pairs fill batches of the one static shape (N, 3, H, W), so few images cost few forwards; every
    image's samples are added up in their order, whatever the company. Samples are streamed, none is stored.

    Args:
        forward: the cut-graph pass of the layers in ``clean``.
        images: (N, 3, H, W) float32, of which the first ``len(image_seeds)`` are images and the rest is padding.
        image_seeds: one seed per image.
        ranks: the targets.
        clean: layer -> clean activation (N, C, h, w): the shapes of the gradients.
        samples: noised copies per image.
        level: noise over the range of each image.
        seed: the job's seed.
    """
    per_rank = 3 * sum(activation.numel() * activation.element_size() for activation in clean.values())
    together = max(1, _ACCUMULATOR_BYTES // max(1, per_rank))
    for start in range(0, len(ranks), together):
        group = ranks[start : start + together]
        sums = [{name: _Sums(activation) for name, activation in clean.items()} for _ in group]
        for batch, members, segments in _noised_batches(images, image_seeds, samples, level, seed):
            result = forward(batch)
            for index, (rank, layer_sums) in enumerate(zip(group, sums, strict=True)):
                gradients = result.gradients(rank.target[members], rank.active[members], last=index == len(group) - 1)
                for name, gradient in gradients.items():
                    layer_sums[name].add(gradient, segments)
        for layer_sums in sums:
            yield {name: total.moments(samples) for name, total in layer_sums.items()}


def _noised_batches(
    images: Tensor, image_seeds: Sequence[int], samples: int, level: float, seed: int
) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, int, int]]]]:
    """Yield batches of noised images with each row's image (N,) and the segments (row, end row, first image)."""
    size, count = images.shape[0], len(image_seeds)
    pairs = [(sample, image) for sample in range(samples) for image in range(count)]
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        batch = torch.zeros_like(images)
        segments: list[tuple[int, int, int]] = []
        for row, (sample, image) in enumerate(part):
            batch[row] = noised(images[image], level, noise_seed(seed, image_seeds[image], sample))
            if row == 0 or image == 0:
                segments.append((row, row + 1, image))
            else:
                segments[-1] = (segments[-1][0], row + 1, segments[-1][2])
        members = [image for _, image in part] + [0] * (size - len(part))
        yield batch, torch.tensor(members, device=images.device), segments


class _Sums:
    """Running sums of the gradient's powers."""

    def __init__(self, like: Tensor) -> None:
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like)
        self.third = torch.zeros_like(like)

    def add(self, gradient: Tensor, segments: list[tuple[int, int, int]]) -> None:
        square = gradient * gradient
        cube = square * gradient
        for row, end, image in segments:
            rows, images = slice(row, end), slice(image, image + end - row)
            self.first[images] += gradient[rows]
            self.second[images] += square[rows]
            self.third[images] += cube[rows]

    def moments(self, samples: int) -> Moments:
        return Moments(self.first.div_(samples), self.second.div_(samples), self.third.div_(samples))
