"""Winograd's convolutions: the error of float32, the same bits in any company, and only where they serve."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pipeline.models.optimise as optimise
from pipeline.cam.base import TargetLayer
from pipeline.models.optimise import prepare
from pipeline.models.winograd import (
    WinogradConv2d,
    available,
    replaceable,
    transformed,
    winograd,
    worthwhile,
)

pytestmark = pytest.mark.skipif(not available(), reason="needs a C++ compiler")


def conv(channels: int = 16, out_channels: int = 32, padding: int = 1, bias: bool = True, seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, out_channels, 3, padding=padding, bias=bias).eval().requires_grad_(False)


def images(count: int, channels: int, height: int, width: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, height, width, generator=generator).relu()
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("count", "channels", "out_channels", "height", "width"),
    [
        (1, 16, 32, 4, 4),
        (3, 48, 64, 9, 13),  # tiles that are cut at both edges
        (5, 64, 32, 28, 3),
        (2, 256, 256, 14, 14),  # blocks of a thread's own
        (13, 512, 512, 7, 7),  # blocks of all threads
        (60, 384, 384, 7, 7),  # several of these
    ],
)
def test_the_error_is_that_of_float32(
    count: int, channels: int, out_channels: int, height: int, width: int, padding: int
) -> None:
    layer, source = conv(channels, out_channels, padding), images(count, channels, height, width)
    exact = functional.conv2d(source.double(), layer.weight.double(), layer.bias.double(), padding=padding)  # type: ignore[union-attr]
    found = winograd(source, transformed(layer.weight), layer.bias, None, padding, False)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - exact).abs().max() <= 4e-6 * exact.abs().max()


def test_the_points_are_chosen_for_their_error() -> None:
    layer, source = conv(128, 128), images(4, 128, 28, 28)
    exact = functional.conv2d(source.double(), layer.weight.double(), layer.bias.double(), padding=1)  # type: ignore[union-attr]
    found = winograd(source, transformed(layer.weight), layer.bias, None, 1, False)
    # With the usual points 0, +-1, +-2 it is twice as large.
    assert (found - exact).square().mean().sqrt() <= 1.4e-6 * exact.square().mean().sqrt()


def test_what_the_kernel_could_not_see_is_refused() -> None:
    layer, source = conv(32, 32), images(2, 32, 8, 8)
    points = transformed(layer.weight)
    for name, arguments in {
        "images": (source.double(), points, layer.bias, None),
        "points": (source[:, :16], points, layer.bias, None),
        "bias": (source, points, torch.zeros(31), None),
        "residual": (source, points, layer.bias, source.bfloat16()),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            winograd(*arguments, 1, True)
    with pytest.raises(ValueError, match=r"^residual: torch.float32 of shape \(2, 32, 8, 7\), not"):
        winograd(source, points, layer.bias, source[..., :7], 1, True)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_bias_residual_and_relu(bias: bool, relu: bool) -> None:
    layer, source = conv(32, 32, bias=bias), images(2, 32, 10, 7)
    residual = torch.randn(2, 32, 10, 7)  # not channels-last: as it comes
    expected = layer(source) + residual
    expected = expected.relu() if relu else expected
    found = winograd(source, transformed(layer.weight), layer.bias, residual, 1, relu)
    assert torch.allclose(found, expected, atol=1e-5)
    assert bool((found < 0).any()) is not relu


def test_what_is_not_channels_last_is_taken_as_it_comes() -> None:
    layer, source = conv(), images(2, 16, 8, 8)
    points = transformed(layer.weight)
    expected = winograd(source, points, layer.bias, None, 1, False)
    assert torch.equal(winograd(source.contiguous(), points, layer.bias, None, 1, False), expected)
    shifted = torch.cat([images(1, 16, 8, 8, seed=9), source])[1:]
    assert torch.equal(winograd(shifted, points, layer.bias, None, 1, False), expected)


def test_nan_is_kept_and_spreads_no_further_than_its_tiles() -> None:
    layer, source = conv(), images(2, 16, 16, 16)
    source[0, 3, 5, 5] = torch.nan
    found = winograd(source, transformed(layer.weight), layer.bias, None, 1, True)
    assert found[0, :, 4:7, 4:7].isnan().all()
    assert found[0, :, 8:].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize(("channels", "size"), [(64, 20), (384, 7)])
def test_bits_depend_on_neither_the_batch_nor_the_threads(channels: int, size: int) -> None:
    layer, source = conv(channels, channels), images(9, channels, size, size)
    points = transformed(layer.weight)
    together = winograd(source, points, layer.bias, None, 1, True)
    for first, end in pairwise([0, 1, 3, 9]):
        assert torch.equal(winograd(source[first:end], points, layer.bias, None, 1, True), together[first:end])
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            assert torch.equal(winograd(source, points, layer.bias, None, 1, True), together)
    finally:
        torch.set_num_threads(threads)


def test_the_shape_is_known_without_computing() -> None:
    torch.library.opcheck(winograd, (images(2, 16, 6, 6), transformed(conv().weight), conv().bias, None, 1, True))


def test_small_images_gain_nothing() -> None:
    assert [worthwhile(size, size, 1) for size in (1, 2, 3, 4, 5, 7, 56)] == [
        False,
        False,
        True,
        True,
        True,
        True,
        True,
    ]
    assert not worthwhile(2, 2, 0)
    assert worthwhile(5, 5, 0) == worthwhile(3, 3, 1)  # three outputs either way


class TestModule:
    def test_it_takes_a_convolution_s_place(self) -> None:
        plain = conv()
        fast = WinogradConv2d(plain)
        assert fast.weight is plain.weight
        assert fast.bias is plain.bias
        assert not fast.training
        assert list(fast.state_dict()) == list(plain.state_dict())
        source = images(2, 16, 12, 12)
        with torch.no_grad():
            found = fast(source)
            assert torch.equal(found, winograd(source, fast.points, fast.bias, None, 1, False))
            assert torch.equal(copy.deepcopy(fast)(source), found)
        assert torch.allclose(found, plain(source), atol=1e-5)

    def test_gradients_other_precisions_and_small_images_are_convolved_directly(self) -> None:
        plain = conv().requires_grad_(True)
        fast = WinogradConv2d(plain)
        source = images(2, 16, 12, 12)
        assert torch.equal(fast(source), plain(source))
        fast(source).sum().backward()
        assert plain.weight.grad is not None
        plain.requires_grad_(False)
        assert not torch.equal(fast(source), plain(source))  # the other way of computing it
        wanting = source.clone().requires_grad_()
        assert torch.equal(fast(wanting), plain(wanting))
        small = images(2, 16, 2, 2)
        assert torch.equal(fast(small), plain(small))
        with torch.autocast("cpu", torch.bfloat16):
            assert fast(source).dtype == torch.bfloat16
        assert torch.equal(
            copy.deepcopy(fast).double()(source.double()), copy.deepcopy(plain).double()(source.double())
        )

    @pytest.mark.parametrize(
        "other",
        [
            nn.Conv2d(8, 32, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.Conv2d(16, 32, 3, padding=2, dilation=2),
            nn.Conv2d(32, 32, 3, padding=1, groups=2),
            nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(16, 32, 3, padding="same"),
            nn.Conv2d(16, 32, 3, padding=2),
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(16, 32, 3, padding=1).double(),
            nn.Conv2d(16, 32, 3, padding=1, device="meta"),
            nn.Linear(16, 32),
            WinogradConv2d(conv()) if available() else nn.Identity(),
        ],
    )
    def test_other_modules_are_left(self, other: nn.Module) -> None:
        assert not replaceable(other)

    def test_a_convolution_with_hooks_is_left(self) -> None:
        hooked = conv()
        assert replaceable(hooked)
        handle = hooked.register_forward_hook(lambda module, args, output: None)
        assert not replaceable(hooked)
        handle.remove()
        hooked.register_forward_pre_hook(lambda module, args: None)
        assert not replaceable(hooked)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, source: Tensor) -> Tensor:
        features = self.norm(self.second(self.first(source).relu())).relu()
        return self.head(features.mean((2, 3)))


def made() -> tuple[nn.Module, list[TargetLayer]]:
    torch.manual_seed(3)
    net = Net().eval()
    return net, [TargetLayer("norm", net.norm, lambda grid: grid)]


class TestPrepare:
    def test_the_prepared_copy_has_it(self) -> None:
        net, layers = made()
        prepared, copies = prepare(net, layers, input_size=(32, 32))
        assert type(prepared.get_submodule("second")) is WinogradConv2d
        assert type(prepared.get_submodule("first")) is nn.Conv2d
        assert copies[0].module is prepared.get_submodule("norm")
        assert type(net.second) is nn.Conv2d
        source = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(prepared(source), net(source), atol=1e-5)

    @pytest.mark.parametrize("options", [{"winograd": False}, {"precision": "bf16"}])
    def test_not_where_it_is_off_or_in_another_precision(self, options: dict[str, object]) -> None:
        prepared, _ = prepare(*made(), input_size=(32, 32), **options)  # type: ignore[arg-type]
        assert type(prepared.get_submodule("second")) is nn.Conv2d

    def test_not_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(optimise, "available", lambda: False)
        prepared, _ = prepare(*made(), input_size=(32, 32))
        assert type(prepared.get_submodule("second")) is nn.Conv2d

    def test_not_where_it_gives_other_values(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("pipeline.models.winograd._FINITE", (0.0, 0.5, -0.5, 1.5, -1.5))
        prepared, _ = prepare(*made(), input_size=(32, 32))
        assert type(prepared.get_submodule("second")) is nn.Conv2d
        assert "gives other values" in caplog.text
