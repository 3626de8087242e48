"""Small networks that stand for the kinds that must work: 5 classes, input 3 x 20 x 24, grids that are not square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.cam.base import LinearHead, TargetLayer

SIZE = (20, 24)
CLASSES = 5


class GapNet(nn.Module):
    """Convolutions with batch norm and ReLU, global average pooling, one linear layer. Grids 10x12 and 5x6."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.features = nn.Sequential(nn.Conv2d(8, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.fc = nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.2, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(self.stem(images)).mean((2, 3)))

    def head(self) -> LinearHead:
        return LinearHead("features", self.fc.weight.detach(), self.fc.bias.detach())


class InplaceNet(nn.Module):
    """VGG-like: in-place ReLUs behind the convolutions, no global pooling. Grids 20x24 and 10x12."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveMaxPool2d((5, 6))
        self.classifier = nn.Sequential(nn.Linear(12 * 30, 16), nn.ReLU(inplace=True), nn.Linear(16, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        output = self.relu2(self.conv2(self.relu1(self.conv1(images))))
        return self.classifier(self.pool(output).flatten(1))


class TokenNet(nn.Module):
    """A vision transformer of one block and one attention, with a class token and GELU. Grid 5x6 of 4x4 patches."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.mix = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        tokens = self.block(tokens)
        query, key, value = self.mix(tokens).chunk(3, -1)
        attention = (query @ key.transpose(1, 2)).softmax(-1)
        return self.head((tokens + attention @ value)[:, 0])


def token_grid(tokens: Tensor) -> Tensor:
    """(N, 1 + 30, C) to (N, C, 5, 6)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (5, 6))


def target_layers(model: nn.Module) -> list[TargetLayer]:
    """Every layer of a net that the tests explain, shallow to deep."""
    if isinstance(model, GapNet):
        return [TargetLayer("stem", model.stem), TargetLayer("features", model.features)]
    if isinstance(model, InplaceNet):
        return [TargetLayer("conv1", model.conv1), TargetLayer("conv2", model.conv2)]
    assert isinstance(model, TokenNet)
    return [TargetLayer("block", model.block, token_grid)]


def make(kind: str, seed: int = 0) -> nn.Module:
    """Return a net with seeded weights in eval mode: ``gap``, ``inplace`` or ``token``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"gap": GapNet, "inplace": InplaceNet, "token": TokenNet}[kind]().eval()


def images(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Return seeded images (count, 3, *size)."""
    return torch.randn((count, 3, *size), generator=torch.Generator().manual_seed(seed))


def scaled(maps: Tensor) -> Tensor:
    """Maps divided by their own largest absolute value."""
    largest = maps.abs().amax((-2, -1), keepdim=True)
    return maps / torch.where(largest == 0, 1.0, largest)


def difference(ours: Tensor, reference: Tensor) -> float:
    """Largest difference of max-scaled maps."""
    assert ours.shape == reference.shape
    return float((scaled(ours.double()) - scaled(reference.double())).abs().max())
