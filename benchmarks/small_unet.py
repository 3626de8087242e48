"""A small U-Net for segmentation, and its training in minutes on a CPU: what labels are worth to who trains on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_IGNORE = 255


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [nn.Conv2d(first, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) of four stages: (N, 3, H, W) to logits (N, classes, H, W).

    It works at half the resolution, which is a quarter of the time, and its logits are enlarged. H and W are multiples
    of 16.
    """

    def __init__(self, classes: int, widths: tuple[int, int, int, int] = (12, 24, 48, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_unit(a, b) for a, b in zip((12, *widths[:3]), widths, strict=True))
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(_unit(shallow + deep, shallow) for shallow, deep in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        kept = []
        values = functional.pixel_unshuffle(images, 2)
        for number, stage in enumerate(self.down):
            values = stage(functional.max_pool2d(values, 2) if number else values)
            kept.append(values)
        for stage, shallow in zip(self.up, kept[-2::-1], strict=True):
            wide = functional.interpolate(values, shallow.shape[2:], mode="bilinear", align_corners=False)
            values = stage(torch.cat([shallow, wide], 1))
        logits: Tensor = functional.interpolate(self.head(values), scale_factor=2, mode="bilinear", align_corners=False)
        return logits


def fit_unet(
    images: Tensor,
    masks: Tensor,
    classes: int,
    *,
    epochs: int,
    seed: int = 0,
    batch: int = 8,
    rate: float = 6e-3,
    say: Callable[[str], None] = lambda line: None,
) -> SmallUNet:
    """Train a network on masks; the same arguments give the same network.

    Args:
        images: (n, 3, H, W) uint8.
        masks: (n, H, W) uint8, 255 is ignored.
        classes: background included.
        epochs: passes over the images, in one learning-rate cycle.
        seed: of the first weights and of the order.
        batch: images per step.
        rate: the cycle's highest.
        say: told of each epoch.
    """
    torch.manual_seed(seed)
    # Most pixels are background: by the root of its share, so that neither drowns the other.
    counts = torch.bincount(masks.flatten().int(), minlength=256)[:classes].clamp_min(1)
    weights = counts.float().pow(-0.5)
    weights /= weights.mean()
    model = SmallUNet(classes).to(memory_format=torch.channels_last)
    order = torch.Generator().manual_seed(seed)
    steps = len(images) // batch
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        total = 0.0
        for part in torch.split(torch.randperm(len(images), generator=order)[: steps * batch], batch):
            shown = normalised(images[part])
            loss = functional.cross_entropy(model(shown), masks[part].long(), weights, ignore_index=_IGNORE)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item()
        say(f"epoch {epoch + 1}/{epochs}: loss {total / steps:.4f}")
    return model.eval()


def segment(model: SmallUNet, images: Tensor, batch: int = 64) -> Tensor:
    """Return the best class (n, H, W) uint8 of each pixel."""
    with torch.inference_mode():
        parts = [model(normalised(part)).argmax(1).to(torch.uint8) for part in torch.split(images, batch)]
    return torch.cat(parts)


def normalised(images: Tensor) -> Tensor:
    """Return uint8 pixels as the network takes them."""
    return ((images.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
