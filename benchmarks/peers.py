"""The packages grad-cam and torchcam, called as their documentation shows, and their maps beside ours."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.inputs import say

#: Our method -> the peers' classes; a method that a package lacks is added to it (``Peer.added``) or left out.
GRAD_CAM = {
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMPlusPlus",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
    "xgrad_cam": "XGradCAM",
    "score_cam": "ScoreCAM",
}
TORCHCAM = {
    "cam": "CAM",
    "grad_cam": "GradCAM",
    "grad_cam_pp": "GradCAMpp",
    "smooth_grad_cam_pp": "SmoothGradCAMpp",
    "layer_cam": "LayerCAM",
    "xgrad_cam": "XGradCAM",
    "score_cam": "ScoreCAM",
}
# Small maps (below about 1e-5) do not reach 1 by it.
_TORCHCAM_EPSILON = 1e-8


class Peer(Protocol):
    """A package that computes maps."""

    name: str
    classes: dict[str, str]
    wrong: dict[str, str]
    #: Methods that the package lacks, each written as a class of its own base in a few lines, as its user would.
    added: dict[str, Any]

    def maps(self, model: nn.Module, layer: str, method: str, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Return maps as the package gives them by default: between 0 and 1."""

    def like(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Scale (and enlarge to ``size``) our raw maps (T, h, w) as the package does its own."""


class GradCamPackage:
    """The package grad-cam: maps (n, H, W) at the images' size."""

    name = "grad-cam"
    classes = GRAD_CAM
    #: Methods of which the package computes something else than the paper, and what.
    wrong = {"grad_cam_pp": "it adds an absolute 1e-6 to alpha's denominator, which drowns small g^2"}  # noqa: RUF012

    def __init__(self) -> None:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.image import scale_cam_image
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self._package, self._scale, self._target = pytorch_grad_cam, scale_cam_image, ClassifierOutputTarget

        class CAM(pytorch_grad_cam.base_cam.BaseCAM):  # type: ignore[misc]
            """The head's weights of the class, behind global average pooling (Zhou et al. 2016, equation 2)."""

            def __init__(self, model: nn.Module, target_layers: list[nn.Module]) -> None:
                super().__init__(model, target_layers, uses_gradients=False)
                self._head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]

            def get_cam_weights(
                self, input_tensor: Tensor, target_layer: nn.Module, targets: list[Any], activations: Any, grads: Any
            ) -> Any:
                return self._head.weight[[target.category for target in targets]].detach().cpu().numpy()

        self.added = {"cam": CAM}

    def maps(self, model: nn.Module, layer: str, method: str, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Return the maps (n, H, W) of one class per image."""
        wanted = [self._target(target) for target in targets]
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,  # Score-CAM draws a progress bar
            redirect_stderr(nowhere),
            self._class(method)(model, [model.get_submodule(layer)]) as explainer,
        ):
            return torch.from_numpy(explainer(images, wanted))

    def _class(self, method: str) -> Any:
        return self.added[method] if method in self.added else getattr(self._package, self.classes[method])

    def like(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Scale our maps twice, once enlarging them, as the package does."""
        positive = np.maximum(maps.numpy(), 0)
        return torch.from_numpy(self._scale(self._scale(positive, size[::-1])))


class TorchcamPackage:
    """The package torchcam: maps (n, h, w) at the layer's resolution."""

    name = "torchcam"
    classes = TORCHCAM
    wrong = {  # noqa: RUF012
        "grad_cam_pp": "its division of alpha edits a copy, so the weights are sum g^2 relu(g)",
        "smooth_grad_cam_pp": "it takes relu(g) and A of its last noised copy, and draws other noise",
    }

    def __init__(self) -> None:
        import torchcam.methods

        self._methods = torchcam.methods
        logging.getLogger("torchcam").setLevel(logging.ERROR)  # it warns that it chose CAM's layer itself

        class HiResCAM(torchcam.methods.LayerCAM):  # type: ignore[misc]
            """The gradients themselves as weights (Draelos and Carin 2020, equation 3)."""

            def _get_weights(self, class_idx: Any, scores: Tensor, **kwargs: Any) -> list[Tensor]:
                self._backprop(scores, class_idx, **kwargs)
                return list(self.hook_g)

            @staticmethod
            def _scale_cams(cams: list[Tensor], gamma: float = 2.0) -> list[Tensor]:
                return cams

        self.added = {"hires_cam": HiResCAM}

    def maps(
        self, model: nn.Module, layer: str, method: str, images: Tensor, targets: Sequence[int], **options: Any
    ) -> Tensor:
        """Return the maps (n, h, w) of one class per image, from a forward of their own."""
        with self._extractor(model, layer, method, images, options) as extractor:
            logits = model(images)
            maps: Tensor = extractor(list(targets), logits)[0].detach()
        return maps

    def graph_kept(
        self, model: nn.Module, layer: str, methods: Sequence[str], images: Tensor, targets: Sequence[Sequence[int]]
    ) -> None:
        """Compute all of ``methods`` for all targets from one forward, whose graph is kept.

        The package's documentation does not show it, but its ``retain_graph`` allows it for the gradient methods.

        Args:
            targets: a list of classes per image, all of one length.
        """
        with ExitStack() as stack:
            extractors = [
                (method, stack.enter_context(self._extractor(model, layer, method, images, {}))) for method in methods
            ]
            logits = model(images)
            for rank in zip(*targets, strict=True):
                for method, extractor in extractors:
                    extractor(list(rank), logits, **({} if method == "cam" else {"retain_graph": True}))

    def like(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Scale our maps to [0, 1] with its epsilon; ``size`` is not needed, they stay at the layer's resolution."""
        low = maps.amin((1, 2), keepdim=True)
        return (maps - low) / ((maps - low).amax((1, 2), keepdim=True) + _TORCHCAM_EPSILON)

    def _extractor(self, model: nn.Module, layer: str, method: str, images: Tensor, options: dict[str, Any]) -> Any:
        shape = tuple(images.shape[1:])
        found = self.added[method] if method in self.added else getattr(self._methods, self.classes[method])
        return found(model, [layer], input_shape=shape, **options)


@contextmanager
def quiet() -> Any:
    """Hide the peers' warnings: escapes in docstrings, deprecated calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def installed() -> tuple[GradCamPackage | None, TorchcamPackage | None]:
    """Return the peers that can be imported; what is missing is said."""
    found: list[Any] = []
    for package in (GradCamPackage, TorchcamPackage):
        try:
            with quiet():
                found.append(package())
        except ImportError as error:
            say(f"{package.name} is missing ({error}), its rows are left out; pip install 'camlake[peers]'")
            found.append(None)
    return found[0], found[1]


def agreement(peer: Peer, ours: Tensor, theirs: Tensor, size: tuple[int, int]) -> float:
    """Largest difference between the peer's maps and our raw maps scaled likewise (largest value 1)."""
    return float((peer.like(ours, size) - theirs).abs().max())
