"""The demo's network: a small convolutional net with global average pooling and a linear head, so that CAM applies."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def _unit(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class DigitNet(nn.Module):
    """Four stages; the last two see a grid of an eighth of the input (12 x 12 for 96 x 96 pixels).

    ``widths`` are the channels of the stages. Input (N, 3, H, W) float32, normalised; output logits (N, classes).
    """

    def __init__(self, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stage1 = nn.Sequential(*_unit(3, first, stride=2))
        self.stage2 = nn.Sequential(*_unit(first, second, stride=2))
        self.stage3 = nn.Sequential(*_unit(second, third, stride=2), *_unit(third, third))
        self.stage4 = nn.Sequential(*_unit(third, fourth))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(fourth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, 3, H, W)."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(images))))
        logits: Tensor = self.head(self.flatten(self.pool(features)))
        return logits


def digit_net(num_classes: int = 10, widths: Sequence[int] = (16, 32, 64, 96)) -> DigitNet:
    """Return the demo's network with random weights; in a job file: ``name: jobs.demo.network:digit_net``."""
    return DigitNet(num_classes, widths)
