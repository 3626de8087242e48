"""The network over masked images: with and without the stem, and when memory does not suffice."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cam.mask_stream import Segment
from pipeline.cam.masked_forward import MaskedNetwork
from tests.pipeline.cam import nets

SIZE = (64, 48)


class Wide(nn.Module):
    """A stem of 7x7 over three channels, which pays to be computed from cells, and an in-place ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, nets.CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv1(images)).mean((2, 3)))


def make(size: int, split: bool, memory_format: torch.memory_format = torch.channels_last) -> tuple[Wide, Any, list]:
    """Return the model, its masked network, and the list in which calls of the split are counted."""
    torch.manual_seed(0)
    model = Wide().eval().to(memory_format=memory_format)
    calls: list[tuple[int, int]] = []

    def parts(images: tuple[int, int]) -> tuple[nn.Conv2d, nn.Module]:
        calls.append(images)
        rest = Wide().eval()
        rest.load_state_dict(model.state_dict())
        rest.conv1 = nn.Identity()
        return model.conv1, rest

    return model, MaskedNetwork(model, size, parts if split else None, None), calls


def segments(*counts: int, grid: tuple[int, int] = (4, 3), align_corners: bool = False) -> list[Segment]:
    found, row = [], 0
    for number, count in enumerate(counts):
        generator = torch.Generator().manual_seed(number)
        image = torch.randn((3, *SIZE), generator=generator)
        found.append(Segment(row, image, torch.rand((count, *grid), generator=generator), align_corners))
        row += count
    return found


def expected(model: nn.Module, parts: list[Segment]) -> Tensor:
    masked = [
        part.image
        * functional.interpolate(part.grids[:, None], SIZE, mode="bilinear", align_corners=part.align_corners)
        for part in parts
    ]
    with torch.no_grad():
        logits: Tensor = model(torch.cat(masked))
    return logits


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_are_those_of_masked_images(split: bool, align_corners: bool) -> None:
    model, network, calls = make(8, split)
    for parts in (segments(8), segments(3, 4), segments(2, 1, 5)):
        parts = [part._replace(align_corners=align_corners) for part in parts]
        count = sum(len(part.grids) for part in parts)
        assert torch.allclose(network(parts, 8)[:count], expected(model, parts), atol=1e-5)
    assert calls == ([SIZE] if split else [])


def test_grids_that_do_not_pay_go_the_long_way_beside_those_that_do() -> None:
    model, network, _ = make(8, True)
    few, many = segments(3)[0], segments(4, grid=(32, 24))[0]._replace(row=3)
    for parts in ([few, many], [many._replace(row=0), few._replace(row=4)]):
        assert torch.allclose(network(parts, 8)[:7], expected(model, parts), atol=1e-5)


def test_an_image_that_is_not_finite_spoils_no_other() -> None:
    model, network, _ = make(8, True)
    bad, good = segments(3, 5)
    bad.image[0, 5, 5] = torch.nan
    logits = network([bad, good], 8)
    assert bool(logits[:3].isnan().all())
    assert torch.allclose(logits[3:], expected(model, [good]), atol=1e-5)


def test_a_contiguous_network_is_not_split() -> None:
    _, network, calls = make(4, True, torch.contiguous_format)
    network(segments(4), 4)
    assert calls == []


def test_a_faster_form_is_made_once_for_each_size() -> None:
    model, _, _ = make(4, False)
    shapes = []

    def accelerate(network: nn.Module, example: Tensor) -> Any:
        shapes.append(tuple(example.shape))
        return lambda images: network(images) * 2

    network = MaskedNetwork(model, 4, None, accelerate)
    parts = segments(4)
    for _ in range(2):
        assert torch.allclose(network(parts, 4), 2 * expected(model, parts), atol=1e-5)
    assert network.halve()
    network([parts[0]._replace(grids=parts[0].grids[:2])], 2)
    assert shapes == [(4, 3, *SIZE), (2, 3, *SIZE)]


def test_halving_ends_at_one_image(caplog: pytest.LogCaptureFixture) -> None:
    _, network, _ = make(5, False)
    with caplog.at_level(logging.WARNING):
        assert [network.halve() and network.size for _ in range(3)] == [2, 1, False]
    assert "going on with 2 masked images" in caplog.text
