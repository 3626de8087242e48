"""A network that uses a green mark and does not use a blue one, by construction, and pictures with either.

``model.name: tests.pipeline.audit.cues:cue_net``.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SIDE, MARK = 96, 16


class CueNet(nn.Module):
    """Class 0 is how green an image is anywhere, class 1 how red. Blue lights the features up and moves no logit."""

    preprocess = {"resize": SIDE, "crop": SIDE, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(8)
        self.features = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(3, 2)
        colours = torch.tensor([[1.0, -0.5, -0.5], [-1.0, 2.0, -1.0], [-2.0, -2.0, 4.0]])
        with torch.no_grad():
            self.features[0].weight.copy_(colours[:, :, None, None])
            self.features[0].bias.fill_(-0.5)
            self.head.weight.copy_(torch.tensor([[0.0, 10.0, 0.0], [5.0, 0.0, 0.0]]) * gain)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, 2) of images (N, 3, 96, 96)."""
        logits: Tensor = self.head(self.flatten(self.pool(self.features(self.cells(images)))))
        return logits


def cue_net(gain: float = 1.0) -> CueNet:
    """Return the network; ``gain`` multiplies its logits."""
    return CueNet(gain)


def picture(label: int, rng: np.random.Generator) -> bytes:
    """A PNG: grey noise, a mark in the upper left corner (class 0: green, 1: blue), of class 1 a red object too."""
    pixels = rng.integers(118, 139, (SIDE, SIDE, 3), dtype=np.uint8)
    if label == 1:
        y, x = rng.integers(34, 60, 2)
        pixels[y : y + 32, x : x + 32] = (255, 0, 0)
    y, x = rng.integers(0, 4, 2)
    pixels[y : y + MARK, x : x + MARK] = (0, 255, 0) if label == 0 else (0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, count: int, seed: int = 0) -> None:
    """A WebDataset shard of ``count`` pictures, half of either class."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            label = number % 2
            for suffix, data in (("png", picture(label, rng)), ("cls", str(label).encode())):
                header = tarfile.TarInfo(f"picture-{number:04d}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def document(folder: Path, gain: float = 1.0) -> dict[str, Any]:
    """A job over ``folder/shard.tar`` into ``folder/lake``; Eigen-CAM, which shows what lights up, used or not."""
    return {
        "source": {"uri": str(folder / "shard.tar"), "format": "webdataset", "label": "cls"},
        "model": {
            "name": "tests.pipeline.audit.cues:cue_net",
            "options": {"gain": gain},
            "layers": ["features"],
            "class_names": ["green", "red"],
        },
        "targets": {"predicted": True},
        "methods": ["eigen_cam"],
        "output": {"uri": str(folder / "lake")},
        "compute": {"batch_size": 8, "threads": 1},
    }
