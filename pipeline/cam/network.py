"""What a network is like, for those who run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Makes a network faster for inputs of one static shape, of which an example is given.
Accelerate = Callable[[nn.Module, Tensor], Callable[[Tensor], Any]]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into its own mode at the end."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def network_layout(model: nn.Module) -> tuple[torch.dtype, torch.memory_format]:
    """Return the precision and memory format that the model's input should have, from its parameters.

    The first floating parameter gives the precision; the first convolution kernel of more than one element and input
    channel shows whether the model was moved to channels-last.
    """
    dtype = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 4 and parameter.shape[1] > 1 and parameter.shape[2] * parameter.shape[3] > 1:
            if parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous():
                return dtype, torch.channels_last
            break
    return dtype, torch.contiguous_format
