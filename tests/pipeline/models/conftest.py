"""A factory module of one's own, importable by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = '''
import torch
from torch import nn

NUMBER = 3


class Tiny(nn.Module):
    """Two convolutions with batch norm, an in-place ReLU, global average pooling and a linear head."""

    def __init__(self, num_classes=4, width=6):
        super().__init__()
        norm = nn.BatchNorm2d(width)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), norm, nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(width, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.body(self.stem(x))).flatten(1))


def tiny(num_classes=4, width=6):
    return Tiny(num_classes, width)


def with_preprocess():
    model = Tiny()
    model.preprocess = {"resize": [20, 24], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    return model


def no_module():
    return {"a": 1}


def broken():
    raise OSError("no such thing")


class Tuple(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


def returns_tuple():
    return Tuple()
'''


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with factories."""
    name = "camlake_test_factories"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / "camlake_test_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)
