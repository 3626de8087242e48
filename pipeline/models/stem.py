"""The first convolution of a network and the rest of it, so that what enters the rest can be made in another way."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.trace import FORWARD_ERRORS, evaluating, forward, hooked, probe_image
from schemas.errors import InputError

#: Largest difference between the two parts and the whole, relative to the largest logit. Both run the same operations.
SPLIT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Stem:
    """A network in two parts: ``rest(conv(image))`` are its logits.

    ``conv`` is the network's own module and takes images (N, 3, H, W) of its own precision. ``rest`` takes the
    convolution's output, which it may overwrite, and returns logits (N, K); it shares every parameter and buffer with
    the network.
    """

    conv: nn.Conv2d
    rest: nn.Module


def split_stem(model: nn.Module, input_size: tuple[int, int] | None = None) -> Stem | None:
    """Return the two parts of ``model``, or None where its image does not go into one plain convolution alone.

    Plain are zero padding given in pixels, one group, no dilation and no hooks. A model that looks at its input's
    shape, as timm's ``PatchEmbed`` does, is not split. The model is left as it is.

    Args:
        model: takes images (N, 3, H, W); may cast them to its precision in a forward pre-hook.
        input_size: (H, W) of the probing forwards.
    """
    image = probe_image(model, input_size, batch=2, seed=8)
    try:
        conv, logits = _first_convolution(model, image)
        if conv is None:
            return None
        rest = _without(model, conv)
        with evaluating(conv), evaluating(rest), torch.no_grad():
            parts = forward(rest, conv(image.to(conv.weight.dtype)))
    except (InputError, AttributeError, *FORWARD_ERRORS):  # a model may ask its convolution for its weight's dtype
        return None
    agree = parts.shape == logits.shape and (parts - logits).abs().max() <= SPLIT_TOLERANCE * logits.abs().max()
    return Stem(conv, rest) if agree else None


def _first_convolution(model: nn.Module, image: Tensor) -> tuple[nn.Conv2d | None, Tensor]:
    """Return the only convolution that is given the image itself, if it is plain and runs once; and the logits."""
    taking: list[nn.Module] = []
    ran: list[nn.Module] = []

    def record(_name: str, module: nn.Module, args: Any, _output: Any) -> None:
        ran.append(module)
        if args and args[0].shape == image.shape and torch.equal(args[0], image.to(args[0].dtype)):
            taking.append(module)

    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    with evaluating(model), torch.no_grad(), hooked(convolutions, record):
        logits = forward(model, image.clone())  # a model may change its input in place
    conv = taking[0] if len(taking) == 1 and ran.count(taking[0]) == 1 else None
    return conv if isinstance(conv, nn.Conv2d) and _plain(conv) else None, logits


def _plain(conv: nn.Conv2d) -> bool:
    return (
        type(conv) is nn.Conv2d  # a subclass may do more in its forward
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not conv._forward_hooks
        and not conv._forward_pre_hooks
    )


def _without(model: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """Return a copy of the modules with the same tensors and an identity in the place of ``conv``."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo[id(conv)] = nn.Identity().train(conv.training)
    return copy.deepcopy(model, memo)
