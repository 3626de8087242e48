"""The linear head behind global average pooling, which CAM needs: found by its numbers, not by its name."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cam.base import LinearHead, TargetLayer
from pipeline.models.trace import evaluating, forward, hooked, probe_image

#: The head is among the last linear layers and convolutions that run.
_LAST_CALLS = 8


def find_linear_head(
    model: nn.Module, layer: TargetLayer, example_input_size: tuple[int, int] | None = None
) -> LinearHead | None:
    """Return the head if ``logits = mean_ij A @ weight.T + bias`` holds for the layer's activation A, else None.

    A linear layer, or a 1x1 convolution before or after the average, is a candidate. One forward with the layer's
    output scaled cell by cell at random (so that no coincidence of one activation passes; signs are kept, since a ReLU
    on what is a ReLU's output changes nothing) decides: the candidate's input must be A or its mean, and its output,
    or the mean of it, the logits. (Zhou et al., CVPR 2016, equations 1 and 2.)

    Raises:
        InputError: the model does not run at this size.
    """
    image = probe_image(model, example_input_size, batch=2, seed=2)
    generator = torch.Generator().manual_seed(3)
    activations: list[Tensor] = []
    calls: deque[tuple[nn.Module, Tensor, Tensor]] = deque(maxlen=_LAST_CALLS)

    def replace(_name: str, _module: nn.Module, _args: Any, output: Any) -> Any:
        factor = 0.5 + torch.rand(output.shape, generator=generator)
        output = output * factor.to(output.device, output.dtype)
        activations.append(layer.to_grid(output).clone())
        return output

    def record(_name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls.append((module, args[0].clone(), output.clone()))  # copies, since what follows may work in place

    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    with evaluating(model), torch.no_grad(), hooked({layer.name: layer.module}, replace), hooked(modules, record):
        logits = forward(model, image)
    if len(activations) != 1:
        return None
    shape = (logits.shape[1], activations[0].shape[1])
    for module, source, output in reversed(calls):
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        if weight is None or weight.shape[:2] != shape or weight[0, 0].numel() != 1:
            continue
        matrix = weight.detach().flatten(1).float().clone()
        offset = None if bias is None else bias.detach().float().clone()
        computed = nn.functional.linear(_mean(activations[0].float()), matrix, offset)
        if _same_mean(source, activations[0]) and _same_mean(output, logits) and _same_mean(computed, logits):
            return LinearHead(layer.name, matrix, offset)
    return None


def _mean(grid: Tensor) -> Tensor:
    return grid.mean((2, 3)) if grid.dim() == 4 else grid


def _same_mean(value: Tensor, expected: Tensor) -> bool:
    """Compare means over space to float tolerance."""
    value, expected = _mean(value.float()), _mean(expected.float())
    if value.shape != expected.shape:  # allclose would broadcast
        return False
    return torch.allclose(value, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
