"""The compiler's pass: a Winograd convolution takes the residual sum and the ReLU behind it along, where it may."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import pipeline.models.compiled as module
from pipeline.models.compiled import compiled
from pipeline.models.fusion import fuse_winograd
from pipeline.models.winograd import WinogradConv2d, available, transformed

pytestmark = pytest.mark.skipif(not available(), reason="needs a C++ compiler")

torch.manual_seed(0)
BIAS = torch.randn(32)
POINTS = transformed(torch.randn(32, 32, 3, 3) / 17) if available() else BIAS


def convolve(source: Tensor) -> Tensor:
    found: Tensor = torch.ops.camlake.winograd(source, POINTS, BIAS, None, 1, False)
    return found


def images() -> Tensor:
    return torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)


def traced(run: object) -> fx.GraphModule:
    return make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(images())  # type: ignore[no-any-return, operator]


def operations(graph: fx.Graph) -> list[str]:
    return sorted(str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function")


def two_users(source: Tensor) -> Tensor:
    once = convolve(source)
    return once.relu() + once


def sum_is_used(source: Tensor) -> Tensor:
    total = convolve(source) + source
    return total.relu() * total


@pytest.mark.parametrize(
    ("run", "left"),
    [
        (lambda x: convolve(x).relu(), ["winograd"]),
        (lambda x: (convolve(x) + x).relu(), ["winograd"]),
        (lambda x: (x + convolve(x)).relu(), ["winograd"]),
        (lambda x: (convolve(x) + convolve(x + 1)).relu(), ["add", "winograd", "winograd"]),
        (lambda x: (convolve(x) + x.mean((2, 3), keepdim=True)).relu(), ["add", "mean", "relu", "winograd"]),
        (lambda x: torch.add(convolve(x), x, alpha=2).relu(), ["add", "relu", "winograd"]),
        (lambda x: (convolve(x) + 1).relu(), ["add", "relu", "winograd"]),
        (lambda x: (convolve(x) + x.bfloat16()).relu(), ["add", "relu", "winograd"]),
        (lambda x: convolve(x) + x, ["add", "winograd"]),
        (lambda x: convolve(x).relu().relu(), ["relu", "winograd"]),
        (two_users, ["add", "relu", "winograd"]),
        (sum_is_used, ["add", "mul", "relu", "winograd"]),
    ],
)
def test_what_is_fused(run: object, left: list[str]) -> None:
    traced_run = traced(run)
    source = images()
    before = traced_run(source)
    fuse_winograd(traced_run.graph)
    traced_run.recompile()
    assert [each for each in operations(traced_run.graph) if each in ("add", "mean", "mul", "relu", "winograd")] == left
    assert torch.allclose(traced_run(source), before, atol=1e-6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = WinogradConv2d(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))
        self.second = WinogradConv2d(nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False))

    def forward(self, source: Tensor) -> Tensor:
        return (self.second(self.first(source).relu()) + source).relu()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def spy(graph: fx.Graph) -> None:
        fuse_winograd(graph)
        graphs.append(operations(graph))

    monkeypatch.setattr(module, "fuse_winograd", spy)
    network, source = Block().eval(), images()
    fast = compiled(network, source)
    assert graphs == [["winograd", "winograd"]]
    with torch.no_grad():
        assert torch.allclose(fast(source), network(source), atol=1e-6)
