"""The shared pass where no gradient has to be computed: a static network with the target layers as further outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer
from pipeline.cam.network import Accelerate
from pipeline.cam.shared_pass import SharedPass, check_logits


class _Capturing(nn.Module):
    """The network with its logits and the grids of some layers as outputs."""

    def __init__(self, model: nn.Module, layers: Sequence[TargetLayer]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self._grids: dict[str, Tensor] = {}
        names = {id(module): name for name, module in model.named_modules()}
        for layer in layers:
            self.model.get_submodule(names[id(layer.module)]).register_forward_hook(self._hook(layer))
        self._order = [layer.name for layer in layers]

    def _hook(self, layer: TargetLayer) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            # A copy, because an in-place ReLU may follow.
            self._grids[layer.name] = layer.to_grid(output).clone()

        return hook

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(images)
        return (logits, *(self._grids[name] for name in self._order))


class CapturedPass:
    """Runs the shared pass in a faster form.

    Args:
        model: the classifier; what changes in it later is not seen.
        layers: what is captured, in the order in which the forward reaches them.
        accelerate: makes the network faster.
        example: images as they will be given.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[TargetLayer], accelerate: Accelerate, example: Tensor
    ) -> None:
        self._layers = layers
        self.shape = example.shape
        self._run = accelerate(_Capturing(model, layers), example)

    def __call__(self, images: Tensor) -> SharedPass:
        """Run the network once over images (N, 3, H, W) of the example's shape, precision and layout."""
        with torch.no_grad():
            raw, *grids = self._run(images)
        names = [layer.name for layer in self._layers]
        return SharedPass(
            logits=check_logits(raw, images.shape[0]).float(),
            activations={name: grid.float() for name, grid in zip(names, grids, strict=True)},
            precisions={name: grid.dtype for name, grid in zip(names, grids, strict=True)},
            _layers={layer.name: layer for layer in self._layers},
            _sources={},
            _raw=raw,
        )
