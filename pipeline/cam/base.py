"""What a CAM method is, what it is given, and the arithmetic that the methods share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from schemas.methods import MethodSpec


def identity_grid(output: Tensor) -> Tensor:
    """The grid of a convolutional layer: its output as it is, (N, C, h, w)."""
    return output


@dataclass(frozen=True)
class TargetLayer:
    """A layer whose activation is explained.

    ``to_grid`` turns the module's output into a (N, C, h, w) grid; vision transformers drop their prefix tokens and
    reshape there. It is applied to gradients as well, so it may only select and rearrange elements.
    """

    name: str
    module: nn.Module
    to_grid: Callable[[Tensor], Tensor] = identity_grid


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier behind global average pooling of ``layer``: ``logits = mean_ij A @ weight.T + bias``.

    ``weight`` is (classes, C) float32, ``bias`` (classes,) float32 or None.
    """

    layer: str
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """The targets of a batch, one entry per (image, class), ordered by image.

    ``image`` (T,) int64 position in the batch, ``target`` (T,) int64 class index. ``kind`` says why each class is a
    target (``label``, ``predicted``, ``top_k``, ``threshold`` or ``class``), where the selector knows.
    """

    image: Tensor
    target: Tensor
    kind: tuple[str, ...] | None = None


#: Chooses the targets of a batch from its logits (n, K) float32.
Selector = Callable[[Tensor], Selection]


@dataclass(frozen=True)
class MapBatch:
    """Finished raw maps of one method and layer.

    ``image`` (T,) int64 on the CPU: running number of the image since the session began; ``target`` (T,) int64 on the
    CPU; ``maps`` (T, h, w) float32 on the compute device, after the method's own ReLU, unscaled. Of methods that mask
    images, ``masks_scored`` (T,) int64 are the masked forwards behind each map, and ``expected_correlation`` (T,)
    float32 is that with the exact map, NaN where it is exact; both on the CPU.
    """

    method: str
    layer: str
    image: Tensor
    target: Tensor
    maps: Tensor
    masks_scored: Tensor | None = None
    expected_correlation: Tensor | None = None


@dataclass(frozen=True)
class LayerSignals:
    """The clean activation of a layer, float32, with what several methods derive from it.

    ``activation`` (N, C, h, w), in the memory format that the network left it in.
    """

    activation: Tensor

    @property
    def cells(self) -> int:
        """h * w."""
        return self.activation.shape[-2] * self.activation.shape[-1]

    @cached_property
    def total(self) -> Tensor:
        """``sum_ij A_kij``, (N, C)."""
        return self.activation.sum((2, 3))


def weighted_sum(weight: Tensor, activation: Tensor) -> Tensor:
    """Return ``sum_k weight_k A_k``: (N, C) and (N, C, h, w) to (N, h, w), always in full float32 precision."""
    channels_last = activation.is_contiguous(memory_format=torch.channels_last)
    if activation.device.type == "cpu" and channels_last and activation.shape[1] % 16 == 0:
        # A matrix-vector product per image, without a temporary. MKL's bits depend on where a row begins in its cache
        # line, and so on the image's place in the batch; here every row begins at one.
        height, width = activation.shape[-2:]
        return torch.bmm(weight.unsqueeze(1), activation.flatten(2)).view(-1, height, width)
    # On accelerators matrix products may be set to TF32 by the user; a product and a sum never are.
    return (weight[:, :, None, None] * activation).sum(1)


def cell_sum(values: Tensor, cells: int) -> Tensor:
    """Sum (N, C, h, w) over the cells to (N, C); (N, C, 1, 1) stands for the same value in each of ``cells`` cells."""
    repeats = cells // (values.shape[-2] * values.shape[-1])
    return values.sum((2, 3)) * repeats


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute maps without gradients and in float32, even where the caller is inside autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Method:
    """A CAM method with its parameters; one of the three kinds below."""

    #: Maps may be negative (no ReLU at the end).
    signed: ClassVar[bool] = False
    #: Needs a linear head behind global average pooling, and explains that head's layer only.
    needs_linear_head: ClassVar[bool] = False

    def __init__(self, spec: MethodSpec) -> None:
        self.spec = spec

    @property
    def key(self) -> str:
        """Name of the maps."""
        return self.spec.key

    @property
    def parameters(self) -> dict[str, Any]:
        """The resolved parameters, as the lake's manifest records them."""
        return self.spec.model_dump(mode="json", exclude={"name", "label", "layers"})


class PassMethod(Method, ABC):
    """A method that needs the shared pass only: activations, and the gradients of the target's logit."""

    #: Needs d logit / d activation.
    needs_gradients: ClassVar[bool] = True
    #: One map per image serves all of its targets.
    class_independent: ClassVar[bool] = False

    @abstractmethod
    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the raw maps (N, h, w) float32, one per image, for one target of each.

        Args:
            signals: the clean activation A, (N, C, h, w).
            gradient: g = dS_c/dA, (N, C, h, w) float32, or (N, C, 1, 1) where it is the same in every cell (a linear
                head behind global average pooling); None where ``needs_gradients`` is False.
            target: (N,) int64 class indices.
            head: the linear head, where ``needs_linear_head``.
        """


@dataclass(frozen=True)
class Moments:
    """``mean(g)``, ``mean(g^2)`` and ``mean(g^3)`` over the noised copies of each image.

    Each is (N, C, h, w) float32, or (N, C, 1, 1) where the gradient is the same in every cell.
    """

    first: Tensor
    second: Tensor
    third: Tensor


class NoiseMethod(Method, ABC):
    """A method that averages gradients over noised copies of the input."""

    #: Noised copies, and their standard deviation over (max - min) of each input.
    samples: int
    noise_level: float

    @abstractmethod
    def maps(self, signals: LayerSignals, moments: Moments) -> Tensor:
        """Return the raw maps (N, h, w) float32 from the clean activation and the moments of one target per image."""


@dataclass(frozen=True)
class Budget:
    """How many masks of an image are scored.

    ``first`` masks (below 1: this share of the distinct ones) are scored, then rounds of ``round`` more until the
    correlation to expect with the exact map is ``correlation`` for every target (0: none). ``probability``: scores
    are probabilities, else logits; ``exponential``: weights are their softmax over the channels, else the scores.
    """

    first: float
    correlation: float
    round: int
    probability: bool
    exponential: bool

    def masks(self, distinct: int) -> int:
        """Masks of ``distinct`` that are scored at first."""
        return min(distinct, max(1, math.ceil(self.first * distinct if self.first < 1 else self.first)))


@dataclass(frozen=True)
class MaskGroup:
    """What the masks of a layer depend on; methods of one group share their masked forwards."""

    layer: str
    normalise: str
    align_corners: bool
    budget: Budget | None = None


@dataclass(frozen=True)
class ChannelScores:
    """Scores of one image's masked forwards, per channel, for each of its T targets.

    ``logit`` and ``probability`` (T, C) float32; constant channels hold the score of the null mask. ``constant`` and
    ``not_finite`` (C,) bool mark channels that are equal in all cells, and that hold NaN or infinity.
    ``probability`` is None where no method of the group asks for it.
    """

    logit: Tensor
    probability: Tensor | None
    constant: Tensor
    not_finite: Tensor


class MaskMethod(Method, ABC):
    """A method that scores the image under a mask per channel."""

    needs_probability: bool
    #: Constant channels enter the map, through the score of the null mask.
    needs_null: bool

    @abstractmethod
    def group(self, layer: str) -> MaskGroup:
        """Return what the masks of ``layer`` depend on."""

    @abstractmethod
    def maps(self, activation: Tensor, scores: ChannelScores) -> Tensor:
        """Return the raw maps (T, h, w) float32 of one image from its activation (C, h, w) float32."""
