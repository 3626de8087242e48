"""3 x 3 convolutions with a quarter of the multiplications, on a CPU, with about twice the direct ones' rounding error.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016: F(4 x 4, 3 x 3). The points are chosen for
their rounding error (see ``winograd.cpp``, which does the work).
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.models.native import library

_SOURCE = Path(__file__).with_name("winograd.cpp")
_TILE, _POINTS = 4, 36
#: Multiplications of the direct convolution per one of Winograd's below which the transforms are not made up for.
MIN_GAIN = 1.5
#: Numbers of channels must be divisible by these: vectors of input channels, and pairs of them of output channels.
CHANNELS, OUT_CHANNELS = 16, 32

# The filter's values at the points 0, 3/4, -3/4, 3/2, -3/2 and infinity, over the product of the point's distances
# from the other finite ones.
_FINITE = (0.0, 0.75, -0.75, 1.5, -1.5)


def _filter_transform() -> Tensor:
    """Return G, (6, 3) float64."""
    rows = []
    for point in _FINITE:
        distance = 1.0
        for other in _FINITE:
            distance *= point - other if other != point else 1.0
        rows.append([point**power / distance for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


@lru_cache
def _native() -> ctypes.CDLL | None:
    loaded = library(_SOURCE)
    if loaded is not None:
        loaded.camlake_winograd_panel.restype = ctypes.c_int64
        loaded.camlake_winograd_scratch.restype = ctypes.c_int64
        loaded.camlake_winograd_scratch.argtypes = [ctypes.c_int64] * 7
        loaded.camlake_winograd.restype = None
        loaded.camlake_winograd.argtypes = [*[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 8]
    return loaded


def available() -> bool:
    """Tell whether this machine can compile the kernel."""
    return _native() is not None


def transformed(weight: Tensor) -> Tensor:
    """Return filters (K, C, 3, 3) as the kernel takes them: (36, K / panel, C, panel) float32.

    Args:
        weight: C divisible by :data:`CHANNELS` and K by :data:`OUT_CHANNELS`.
    """
    native = _native()
    assert native is not None
    panel = native.camlake_winograd_panel()
    matrix = _filter_transform()
    points = torch.einsum("ai,kcij,bj->abck", matrix, weight.detach().double(), matrix)
    channels, out_channels = points.shape[2:]
    panels = points.reshape(_POINTS, channels, out_channels // panel, panel).transpose(1, 2)
    return panels.float().contiguous()


def worthwhile(height: int, width: int, padding: int) -> bool:
    """Tell whether images of (height, width) have fewer multiplications: small ones fill the last tiles badly."""
    out_height, out_width = height + 2 * padding - 2, width + 2 * padding - 2
    if out_height < 1 or out_width < 1:
        return False
    tiles = -(-out_height // _TILE) * -(-out_width // _TILE)
    return 9 * out_height * out_width >= MIN_GAIN * _POINTS * tiles


@torch.library.custom_op("camlake::winograd", mutates_args=(), device_types="cpu")
def winograd(
    images: Tensor, points: Tensor, bias: Tensor | None, residual: Tensor | None, padding: int, relu: bool
) -> Tensor:
    """Return ``relu(conv2d(images, weight, bias, padding=padding) + residual)``.

    Args:
        images: (N, C, H, W) float32.
        points: :func:`transformed` of the weight (K, C, 3, 3).
        bias: (K,) float32, or None.
        residual: like the output, or None.
        padding: zeros on each side.
        relu: whether the ReLU is applied.

    Returns:
        (N, K, H + 2 padding - 2, W + 2 padding - 2) float32, channels-last.

    Raises:
        ValueError: a tensor is of another shape or precision, which the kernel could not see.
    """
    native = _native()
    assert native is not None
    count, channels, height, width = images.shape
    output = _output_like(images, points, padding)
    panel = native.camlake_winograd_panel()
    _check("points", points, (_POINTS, output.shape[1] // panel, channels, panel))
    _check("images", images, images.shape)
    _check("bias", bias, output.shape[1:2])
    _check("residual", residual, output.shape)
    images = images.contiguous(memory_format=torch.channels_last)
    residual = None if residual is None else residual.contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    shape = (count, height, width, channels, output.shape[1], padding)
    scratch = torch.empty(native.camlake_winograd_scratch(*shape, threads))
    native.camlake_winograd(
        *(None if each is None else each.data_ptr() for each in (images, points, bias, residual, output, scratch)),
        *shape,
        int(relu),
        threads,
    )
    return output


@winograd.register_fake
def _shaped(
    images: Tensor, points: Tensor, bias: Tensor | None, residual: Tensor | None, padding: int, relu: bool
) -> Tensor:
    return _output_like(images, points, padding)


def _output_like(images: Tensor, points: Tensor, padding: int) -> Tensor:
    count, _, height, width = images.shape
    shape = (count, points.shape[1] * points.shape[3], height + 2 * padding - 2, width + 2 * padding - 2)
    return torch.empty(shape, device=images.device, memory_format=torch.channels_last)


def _check(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and (tensor.dtype != torch.float32 or tensor.shape != shape):
        raise ValueError(f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)}, not float32 of {tuple(shape)}")


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution that runs :func:`winograd` where that serves, else as it always does.

    It serves float32 images that need no gradient and are large enough (:func:`worthwhile`). The filters are
    transformed once: what changes in the weight later is not seen.

    Args:
        conv: for which :func:`replaceable` is true; its parameters are shared.
    """

    points: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        padding = conv.padding[0]
        assert isinstance(padding, int)
        # On no device: its own parameters are replaced at once.
        super().__init__(
            conv.in_channels, conv.out_channels, 3, padding=padding, bias=conv.bias is not None, device="meta"
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer("points", transformed(conv.weight), persistent=False)
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of (N, C, H, W)."""
        padding = self.padding[0]
        assert isinstance(padding, int)
        if (
            input.dtype != torch.float32
            or not worthwhile(input.shape[2], input.shape[3], padding)
            or (torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad))
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        output: Tensor = winograd(input, self.points, self.bias, None, padding, False)
        return output


def replaceable(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that :class:`WinogradConv2d` can take the place of."""
    return (
        type(module) is nn.Conv2d  # a subclass may do more in its forward
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), (1, 1))
        and module.padding_mode == "zeros"
        and module.in_channels % CHANNELS == 0
        and module.out_channels % OUT_CHANNELS == 0
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )
