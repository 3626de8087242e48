"""Average drop and increase by torchcam: its own methods and its own metric."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

#: Its classes; what each gets wrong is told in docs/methods.md.
METHODS = ("GradCAM", "GradCAMpp", "SmoothGradCAMpp", "LayerCAM", "XGradCAM")


def torchcam_effects(model: nn.Module, layer: str, images: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Return the average drop and the increase in confidence, of the predicted class, by method.

    Args:
        model: as its library builds it, in evaluation mode.
        layer: the target layer's name.
        images: (3, H, W) each, normalised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchcam.methods
        import torchcam.metrics

        found = {}
        kept = list(images)
        for name in METHODS:
            torch.manual_seed(0)  # of the noise
            network = copy.deepcopy(model)
            with getattr(torchcam.methods, name)(network, [layer], input_shape=tuple(kept[0].shape)) as extractor:
                metric = torchcam.metrics.ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
                for image in kept:
                    metric.update(image[None])
            summary = metric.summary()
            found[name] = summary["avg_drop"], summary["conf_increase"]
    return found
