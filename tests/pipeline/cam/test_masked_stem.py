"""The first convolution of masked images equals the direct one, whatever the geometry and the other masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cam import masked_stem
from pipeline.cam.masked_stem import StemResponses, worthwhile


def convolution(kernel: int | tuple[int, int], stride: int, padding: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(3, 8, kernel, stride, padding, bias=bias).to(memory_format=torch.channels_last)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks_of(count: int, grid: tuple[int, int], seed: int) -> Tensor:
    return torch.rand((count, *grid), generator=torch.Generator().manual_seed(seed))


def direct(conv: nn.Conv2d, image: Tensor, masks: Tensor, align_corners: bool) -> Tensor:
    """The convolution of the masked images, in float64."""
    size = (image.shape[1], image.shape[2])
    large = functional.interpolate(masks[:, None].double(), size, mode="bilinear", align_corners=align_corners)
    bias = None if conv.bias is None else conv.bias.detach().double()
    weight = conv.weight.detach().double()
    return functional.conv2d(image.double() * large, weight, bias, conv.stride, conv.padding)  # type: ignore[arg-type]


def output_like(reference: Tensor) -> Tensor:
    """Memory for the result, with values that must not be seen in it."""
    out = torch.full(reference.shape, torch.nan, dtype=torch.float32)
    return out.contiguous(memory_format=torch.channels_last)


def assert_close(out: Tensor, reference: Tensor) -> None:
    assert (out.double() - reference).abs().max() <= 2e-6 * reference.abs().max()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("size", "grid", "kernel", "stride", "padding"),
    [
        ((64, 64), (7, 7), 7, 2, 3),
        ((65, 47), (5, 9), 7, 2, 3),
        ((33, 64), (3, 4), 3, 1, 1),
        ((45, 31), (7, 2), 3, 2, 0),
        ((67, 95), (7, 6), 11, 4, 2),
        ((64, 96), (4, 6), 16, 16, 0),
        ((40, 24), (10, 6), 4, 4, 0),
        ((31, 29), (31, 29), 3, 2, 1),  # a hat is a pixel
        ((12, 11), (20, 30), 3, 2, 1),  # more cells than pixels: some reach nothing
        ((23, 34), (1, 1), 7, 2, 3),
        ((23, 34), (1, 5), (3, 5), 1, 2),
        ((5, 5), (2, 2), 1, 1, 3),  # some outputs see padding alone
        ((7, 7), (3, 3), 7, 2, 0),  # one output
    ],
)
def test_equals_the_direct_convolution(
    size: tuple[int, int],
    grid: tuple[int, int],
    kernel: int | tuple[int, int],
    stride: int,
    padding: int,
    align_corners: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = convolution(kernel, stride, padding)
    image, masks = random(3, *size, seed=2), masks_of(6, grid, seed=3)
    reference = direct(conv, image, masks, align_corners)
    for product_cost in (10**9, 0):  # one tile, and as many as save terms
        monkeypatch.setattr(masked_stem, "PRODUCT_COST", product_cost)
        monkeypatch.setattr(masked_stem, "FREE_TERMS", 1)
        masked_stem._layout.cache_clear()
        responses = StemResponses(conv, image, grid, align_corners)
        out = output_like(reference)
        responses.add(masks, True, torch.ones(6), out)
        assert_close(out, reference)
    masked_stem._layout.cache_clear()


def test_tiles_save_terms_on_a_fine_grid() -> None:
    conv = convolution(7, 2, 3)
    rows, columns = masked_stem._axes(conv, (224, 224), (28, 28), False)
    layout = masked_stem._layout(rows, columns, 64)
    assert len({block.columns for block in layout.blocks}) > 1
    assert layout.elements < 20 * 112 * 112
    coarse = masked_stem._layout(*masked_stem._axes(conv, (224, 224), (7, 7), False), 64)
    assert coarse.merged and len(coarse.blocks) == 13


def test_without_a_bias_and_with_a_null_image() -> None:
    image, masks = random(3, 32, 40, seed=2), masks_of(4, (3, 4), seed=3)
    conv = convolution(7, 2, 3, bias=False)
    reference = direct(conv, image, masks, False)
    out = output_like(reference)
    StemResponses(conv, image, (3, 4), False).add(masks, True, torch.ones(4), out)
    assert_close(out, reference)
    with_bias = convolution(7, 2, 3)
    assert with_bias.bias is not None
    StemResponses(with_bias, torch.zeros_like(image), (3, 4), False).add(masks, True, torch.ones(4), out)
    assert torch.equal(out, with_bias.bias.detach()[:, None, None].expand_as(out))


def filled(responses: list[StemResponses], owners: list[int | None], masks: Tensor, order: list[int]) -> Tensor:
    """One chunk (8 x 48 x 56) whose row i holds mask i of image ``owners[i]``; the images are added in ``order``."""
    out = output_like(torch.empty(len(owners), 8, 48, 56))
    for number in order:
        active = torch.tensor([float(owner == number) for owner in owners])
        responses[number].add(masks * active[:, None, None], number == order[0], active, out)
    return out


@pytest.mark.parametrize("grid", [(7, 7), (14, 14)])
def test_a_chunk_of_two_images(grid: tuple[int, int]) -> None:
    conv = convolution(7, 2, 3)
    images, masks = [random(3, 96, 112, seed=2), random(3, 96, 112, seed=4)], masks_of(8, grid, seed=3)
    owners: list[int | None] = [0, 0, 1, 1, 1, 0, 1, None]
    out = filled([StemResponses(conv, image, grid, False) for image in images], owners, masks, [0, 1])
    for number in (0, 1):
        rows = [row for row, owner in enumerate(owners) if owner == number]
        assert_close(out[rows], direct(conv, images[number], masks[rows], False))
    assert not out[7].any()


@pytest.mark.parametrize("chunk", [32, 8])
@pytest.mark.parametrize("grid", [(7, 7), (28, 28), (1, 1)])
def test_bits_of_a_mask_do_not_depend_on_its_row_or_company(chunk: int, grid: tuple[int, int]) -> None:
    conv = convolution(7, 2, 3)
    responses = [StemResponses(conv, random(3, 96, 112, seed=seed), grid, False) for seed in (2, 4)]
    masks = masks_of(chunk, grid, seed=3)
    whole = filled(responses, [0] * chunk, masks, [0])
    assert torch.equal(filled(responses, [0] * chunk, masks.flip(0), [0]).flip(0), whole)
    for order in ([0, 1], [1, 0]):
        for row in range(chunk):
            owners: list[int | None] = [1] * chunk
            owners[row] = 0
            assert torch.equal(filled(responses, owners, masks, order)[row], whole[row])


def test_no_memory_is_allocated_for_the_result() -> None:
    conv = convolution(7, 2, 3)
    image, masks = random(3, 96, 96, seed=2), masks_of(8, (7, 7), seed=3)
    responses = StemResponses(conv, image, (7, 7), False)
    out = output_like(direct(conv, image, masks, False))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        responses.add(masks, True, torch.ones(8), out)
        responses.add(masks, False, torch.ones(8), out)
    events = {event.key: event for event in profile.key_averages()}
    assert events["aten::mm"].count == events["aten::addmm_"].count > 0
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in events.values())
    assert allocated < out.numel() * 4 / 10


def test_worthwhile() -> None:
    conv = convolution(7, 2, 3)
    assert worthwhile(conv, (224, 224), (7, 7))
    assert worthwhile(conv, (224, 224), (56, 56), True)
    assert not worthwhile(conv, (224, 224), (224, 224))  # a hat is a pixel: no fewer terms than weights
    assert not worthwhile(convolution(1, 1, 0), (224, 224), (7, 7))
    assert not worthwhile(conv, (2240, 2240), (7, 7))  # too much memory
    assert not worthwhile(convolution(7, 2, 0), (6, 6), (2, 2))  # no output
    assert not worthwhile(convolution(7, 2, 3).to(torch.bfloat16), (224, 224), (7, 7))
