"""Masks on the small grid: merging, and the range after enlarging."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.cam.masks import distinct_masks, scaled_after_enlarging


def test_equal_masks_are_merged_exactly() -> None:
    activation = torch.zeros(2, 7, 2, 3)
    activation[0, 0, 1, 2] = 0.3  # one active cell, three magnitudes: one mask
    activation[0, 1, 1, 2] = 1 / 3
    activation[0, 2, 1, 2] = 1e20
    activation[0, 3] = torch.arange(6.0).view(2, 3)
    activation[0, 4] = 5.0  # constant, not zero
    activation[0, 5, 0, 0] = torch.nan
    activation[1, 0, 0, 0] = 1.0
    first, second = distinct_masks(activation)
    assert len(first.grids) == 2
    assert first.grids[first.channel[0]].flatten().tolist() == [0, 0, 0, 0, 0, 1]
    assert first.channel[0] == first.channel[1] == first.channel[2]
    assert torch.equal(first.grids[first.channel[3]], torch.arange(6.0).view(2, 3) / 5)
    assert first.channel[4:].tolist() == [2, 2, 2]  # the null mask's place: behind the grids
    assert first.constant.tolist() == [False, False, False, False, True, False, True]
    assert first.not_finite.tolist() == [False] * 5 + [True, False]
    assert first.has_null
    # Another image's equal mask is another mask: it multiplies another image.
    assert len(second.grids) == 1
    assert second.channel.tolist() == [0] + [1] * 6


def test_an_image_without_constant_channels_has_no_null_mask() -> None:
    activation = torch.rand((3, 5, 4, 4), generator=torch.Generator().manual_seed(0))
    for masks, image in zip(distinct_masks(activation), activation, strict=True):
        assert not masks.has_null
        assert sorted(masks.channel.tolist()) == list(range(5))
        low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
        assert torch.equal(masks.grids[masks.channel], (image - low) / (high - low))


def test_masks_are_the_same_in_any_company() -> None:
    activation = torch.randn((4, 6, 3, 5), generator=torch.Generator().manual_seed(2)).relu()
    alone = [distinct_masks(activation[image : image + 1])[0] for image in range(4)]
    for one, among in zip(alone, distinct_masks(activation), strict=True):
        assert torch.equal(one.grids, among.grids)
        assert torch.equal(one.channel, among.channel)
    assert distinct_masks(torch.zeros(1, 3, 1, 1))[0].grids.shape == (0, 1, 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((7, 7), (224, 224)),
        ((5, 6), (20, 24)),
        ((3, 4), (10, 13)),
        ((4, 3), (5, 3)),
        ((1, 5), (9, 11)),
        ((1, 1), (4, 4)),
        ((5, 5), (1, 2)),
        ((9, 9), (4, 5)),
        ((14, 14), (14, 14)),
        ((2, 2), (3, 1)),
    ],
)
def test_range_of_the_enlarged_mask_without_enlarging_it(
    grid: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    grids = torch.randn((40, *grid), generator=torch.Generator().manual_seed(0))
    grids[:10] = 0
    for index in range(10):  # masks of one cell, which no pixel may hit at its full height
        grids[index].view(-1)[index * 7 % grids[index].numel()] = 1
    enlarged = functional.interpolate(grids[:, None].double(), size, mode="bilinear", align_corners=align_corners)
    low, high = enlarged.amin((2, 3), keepdim=True), enlarged.amax((2, 3), keepdim=True)
    expected = (enlarged - low) / torch.where(high > low, high - low, 1.0)
    folded = scaled_after_enlarging(grids, size, align_corners)
    ours = functional.interpolate(folded[:, None].double(), size, mode="bilinear", align_corners=align_corners)
    wide = ((high - low) > 1e-3).flatten()
    assert torch.allclose(ours[wide], expected[wide], rtol=0, atol=1e-4)
    assert wide.any() or grid == (1, 1)
    assert torch.isfinite(folded).all()
