"""The shared pass: one forward, with the graph kept from the first target layer to the logits only.

Hooks capture the target layers. Where gradients are wanted, the graph begins at the first such layer that the
forward reaches: parameters are frozen and the input needs no gradient, so the trunk before it costs what inference
costs. The layer's output is handed on as a clone, so that an in-place ReLU behind it cannot change what was captured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer
from pipeline.cam.network import evaluation_mode
from schemas.errors import InputError

# Small gradients fall below float16's normal range; a power of two is taken out again without a rounding error.
_HALF_SCALE = 256.0


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def check_logits(logits: Any, rows: int) -> Tensor:
    """Return ``logits`` if it is a (rows, K) tensor.

    Raises:
        InputError: it is not; the message says what the model returned.
    """
    if not isinstance(logits, Tensor):
        raise InputError(
            f"model: its forward returned {type(logits).__name__}, not a tensor of logits (images, classes); "
            "wrap it in a module that returns the logits"
        )
    if logits.dim() != 2 or logits.shape[0] != rows:
        raise InputError(
            f"model: its forward returned shape {tuple(logits.shape)} for {rows} images, not logits "
            f"({rows}, classes); only classifiers of whole images can be explained"
        )
    return logits


class _Capture:
    """Forward hooks on the target layers."""

    def __init__(self, layers: Sequence[TargetLayer], gradient_layers: Collection[str], rows: int) -> None:
        self.layers = layers
        self.gradient_layers = gradient_layers
        self.rows = rows
        self.sources: dict[str, Tensor] = {}
        self.grids: dict[str, Tensor] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        try:
            for layer in self.layers:
                handles.append(layer.module.register_forward_hook(self._hook(layer)))  # noqa: PERF401 (removed one by one on failure)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: TargetLayer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
            if layer.name in self.sources:
                raise InputError(
                    f"layer '{layer.name}' runs more than once in a forward pass, so it has no single activation; "
                    "name a layer that runs once, such as the block around it"
                )
            if not isinstance(output, Tensor):
                raise InputError(
                    f"layer '{layer.name}' returns {type(output).__name__}, not a tensor; name another layer"
                )
            if layer.name in self.gradient_layers and not output.requires_grad:
                source = output.detach().requires_grad_()
            else:
                source = output
            grid = layer.to_grid(source.detach())
            if grid.dim() != 4 or grid.shape[0] != self.rows:
                raise InputError(
                    f"layer '{layer.name}' gives a tensor of shape {tuple(grid.shape)} for {self.rows} images, where "
                    f"({self.rows}, channels, height, width) is needed; name a layer with a spatial output, or give "
                    "its TargetLayer a to_grid"
                )
            self.sources[layer.name] = source
            self.grids[layer.name] = grid
            return source.clone()

        return hook


@dataclass(frozen=True)
class SharedPass:
    """One clean forward over a batch.

    ``logits`` (N, K) float32; ``activations[layer]`` (N, C, h, w) float32, in the order in which the forward reached
    the layers, so the last is the deepest; ``precisions[layer]`` is what the network computed the layer in.
    """

    logits: Tensor
    activations: dict[str, Tensor]
    precisions: dict[str, torch.dtype]
    _layers: dict[str, TargetLayer]
    _sources: dict[str, Tensor]
    _raw: Tensor

    def gradients(self, target: Tensor, active: Tensor, *, last: bool) -> dict[str, Tensor]:
        """Return ``dS_c/dA`` of one target per image, for all gradient layers, from one backward pass.

        Args:
            target: (N,) int64 class per image.
            active: (N,) bool; other images get a zero gradient.
            last: free the graph; no further call is possible.

        Returns:
            layer -> (N, C, h, w) float32.

        Raises:
            InputError: the logits do not depend on one of the layers.
        """
        names = list(self._sources)
        if not names:
            return {}
        if not self._raw.requires_grad:
            raise InputError(f"layer '{names[0]}' does not influence the logits by any differentiable path")
        scale = _HALF_SCALE if any(source.dtype == torch.float16 for source in self._sources.values()) else 1.0
        seed = torch.zeros_like(self._raw).scatter_(1, target[:, None], active[:, None].to(self._raw.dtype) * scale)
        found = torch.autograd.grad(
            self._raw, list(self._sources.values()), seed, retain_graph=not last, allow_unused=True
        )
        gradients = {}
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                raise InputError(f"layer '{name}' does not influence the logits by any differentiable path")
            grid = self._layers[name].to_grid(gradient).float()
            gradients[name] = grid if scale == 1.0 else grid / scale
        return gradients


def shared_pass(
    model: nn.Module, images: Tensor, layers: Sequence[TargetLayer], gradient_layers: Collection[str]
) -> SharedPass:
    """Run ``model`` once over ``images`` (N, 3, H, W) and capture ``layers``.

    Modes, ``requires_grad``, ``param.grad`` and hooks are left as they were found, also on failure.

    Args:
        model: a classifier; its forward returns logits (N, K).
        images: the model's input, on its device and in its precision.
        layers: what is captured.
        gradient_layers: names of the layers that :meth:`SharedPass.gradients` is to serve.

    Raises:
        InputError: a layer runs twice or not at all, or has no grid; or the output is no (N, K) tensor.
    """
    capture = _Capture(layers, gradient_layers, images.shape[0])
    with (
        evaluation_mode(model),
        _frozen(model),
        capture.hooked(),
        torch.inference_mode(False),
        torch.set_grad_enabled(bool(gradient_layers)),
    ):
        raw = check_logits(model(images.detach()), images.shape[0])
    by_name = {layer.name: layer for layer in layers}
    for name in by_name:
        if name not in capture.grids:
            raise InputError(
                f"layer '{name}' does not run in the model's forward pass in eval mode; name a layer that does"
            )
    return SharedPass(
        logits=raw.detach().float(),
        activations={name: grid.detach().float() for name, grid in capture.grids.items()},
        precisions={name: grid.dtype for name, grid in capture.grids.items()},
        _layers=by_name,
        _sources={name: source for name, source in capture.sources.items() if name in gradient_layers},
        _raw=raw,
    )
