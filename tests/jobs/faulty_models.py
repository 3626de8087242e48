"""Networks that fail on some images, by what the images look like; ``model.name: tests.jobs.faulty_models:faulty``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobs.demo.network import DigitNet

#: An image is marked where the mean of its normalised values is above this.
BRIGHT = 0.8
#: A masked image is recognised by so large a share of values that are exactly zero.
_MASKED = 0.02


class Features(nn.Module):
    """The target layer: changes the features (N, C, h, w) of marked images."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, features: Tensor, marked: Tensor) -> Tensor:
        """Return the features with the fault in the images that ``marked`` (N,) names."""
        chosen = marked[:, None, None, None]
        if self.fault == "zero_features":
            return torch.where(chosen, 0.0, features)
        if self.fault == "huge_features":
            return torch.where(chosen, features * 1e30, features)
        if self.fault in ("nan_features", "inf_features"):
            channel = torch.arange(features.shape[1])[:, None, None] == 1
            return torch.where(chosen & channel, float(self.fault[:3]), features)
        return features


class Faulty(DigitNet):
    """The demo's network with one fault."""

    preprocess = {"resize": 96, "crop": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self, fault: str, num_classes: int) -> None:
        super().__init__(num_classes, (4, 6, 8, 8))
        self.fault = fault
        self.features = Features(fault)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, H, W)."""
        marked = images.mean((1, 2, 3)) > BRIGHT
        found = self.features(self.stage4(self.stage3(self.stage2(self.stage1(images)))), marked)
        # Only the map is to see what is not finite.
        logits: Tensor = self.head(self.flatten(self.pool(torch.where(found.isfinite(), found, 0.0))))
        if self.fault in ("nan", "inf"):
            logits = torch.where(marked[:, None], float(self.fault), logits)
        if self.fault in ("one_nan", "one_inf", "one_minus_inf"):
            third = torch.arange(logits.shape[1]) == 3
            value = float(self.fault.removeprefix("one_").replace("minus_", "-"))
            logits = torch.where(marked[:, None] & third, value, logits)
        if self.fault == "masked_nan":
            bright = images.flatten(1).amax(1) > 1.9
            masked = (images == 0).float().mean((1, 2, 3)) > _MASKED
            logits = torch.where((bright & masked)[:, None], torch.nan, logits)
        return logits


def faulty(fault: str, num_classes: int = 10) -> Faulty:
    """Return the network with ``fault``; ``none`` for none."""
    return Faulty(fault, num_classes)
