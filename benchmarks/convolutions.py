"""Winograd's 3 x 3 convolutions against direct ones, layer by layer, with the error of both.

    python -m benchmarks.convolutions [--count 32] [--threads 2] [--json FILE]

The shapes are those of a ResNet's four stages. Direct is PyTorch's own convolution of channels-last tensors (oneDNN's,
on x86); both are followed by a ReLU. Errors are root mean squares against float64, relative to the values' own.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import command, make_parser, positive
from pipeline.models.winograd import available, transformed, winograd
from schemas.errors import InputError

#: (channels, side) of the 3 x 3 convolutions.
SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
DIRECT = "direct convolution"


def error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, relative to that of the exact values."""
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def run(options: argparse.Namespace) -> Report:
    """Time both for each shape.

    Raises:
        InputError: this machine has no C++ compiler.
    """
    if not available():
        raise InputError("Winograd's kernel cannot be compiled on this machine; install a C++ compiler (g++)")
    report = Report()
    for channels, side in SHAPES:
        torch.manual_seed(0)
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last).requires_grad_(False)
        assert layer.bias is not None
        images = torch.randn(options.count, channels, side, side).relu()
        images = images.contiguous(memory_format=torch.channels_last)
        points = transformed(layer.weight)

        def direct(layer: nn.Conv2d = layer, images: Tensor = images) -> Tensor:
            return layer(images).relu_()  # type: ignore[no-any-return]

        ours = partial(winograd, images, points, layer.bias, None, 1, True)
        with torch.inference_mode():
            timings = alternate([Contestant(DIRECT, direct), Contestant("ours", ours)], options.repeats)
        exact = functional.conv2d(images.double(), layer.weight.double(), layer.bias.double(), padding=1).relu()
        mine, theirs = timings["ours"], timings[DIRECT]
        errors = error(mine.result, exact), error(theirs.result, exact)
        work = f"3 x 3, {channels} to {channels} channels, {side} x {side}"
        report.rows.append(Row(work, DIRECT, mine.median, theirs.median, errors[0]))
        report.notes.append(f"{work}: error {errors[0]:.1e}, of the direct convolution {errors[1]:.1e}")
    report.notes.append("agreement is the relative root mean square error of ours against float64")
    return report


PARSER = make_parser("convolutions", __doc__, repeats=15)
PARSER.add_argument("--count", type=positive, default=32, help="images (default: %(default)s)")
main = command("benchmarks.convolutions", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
