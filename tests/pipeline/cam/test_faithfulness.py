"""Faithfulness measures against numbers worked out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.cam.faithfulness import (
    area_under_curve,
    blurred,
    confidence_drop,
    confidence_increase,
    faithfulness,
    replaced,
    replaced_counts,
    scaled_masks,
)

NAN = math.nan


def float64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_drop_is_clipped_for_each_image_before_the_mean() -> None:
    full, explained = float64([0.8, 0.5, 0.4, 0.0, 0.5]), float64([0.2, 0.5, 0.6, 0.1, NAN])
    drop = confidence_drop(full, explained)
    assert torch.allclose(drop[:3], float64([0.75, 0.0, 0.0]), rtol=1e-12)  # the ratio of means would give 0.235
    assert drop[4].isnan()
    assert confidence_drop(float64([0.0]), float64([0.0])).isnan().all()


def test_increase_is_strict_and_keeps_nan() -> None:
    increase = confidence_increase(float64([0.8, 0.5, 0.4, 0.4]), float64([0.2, 0.5, 0.6, NAN]))
    assert increase[:3].tolist() == [0.0, 0.0, 1.0]
    assert increase[3].isnan()


def test_masks_are_scaled_by_minimum_and_maximum_then_enlarged() -> None:
    maps = float64([[[1.0, 3.0]], [[-2.0, 2.0]], [[5.0, 5.0]], [[NAN, 1.0]], [[math.inf, 1.0]]])
    masks = scaled_masks(maps, (2, 4))
    ramp = float64([0.0, 0.25, 0.75, 1.0])  # align_corners=False
    assert torch.equal(masks[0], ramp.expand(2, 4))
    assert torch.equal(masks[1], ramp.expand(2, 4))
    assert not masks[2].any()  # constant: it marks nothing
    assert masks[3:].isnan().all()


def test_counts_go_from_none_to_all_in_rounded_parts() -> None:
    assert replaced_counts(10, 4) == [0, 3, 5, 8, 10]
    assert replaced_counts(12, 3) == [0, 4, 8, 12]


def test_pixels_are_replaced_in_order_of_the_mask_and_equal_ones_in_reading_order() -> None:
    start, end = torch.zeros(2, 2, 3), torch.ones(2, 2, 3)
    mask = torch.tensor([[0.0, 0.5, 0.0], [1.0, 0.5, 0.2]])
    frames = replaced(start, end, mask, [0, 1, 2, 4, 5])
    assert torch.equal(frames[:, 0], frames[:, 1])
    assert frames[:, 0].flatten(1).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 1, 1, 1],
        [1, 1, 0, 1, 1, 1],
    ]


def test_large_plateaus_go_in_reading_order() -> None:
    # Small sorts are stable by chance.
    mask = torch.zeros(40, 50)
    mask[20:, :] = 1
    frame = replaced(torch.zeros(1, 40, 50), torch.ones(1, 40, 50), mask, [1000 + 73])[0, 0]
    assert frame[20:].all()
    assert frame.flatten()[:73].all()
    assert frame.sum() == 1073


def test_area_is_trapezoidal_over_the_share_of_pixels() -> None:
    scores = float64([[1.0, 0.5, 0.0], [0.2, 0.2, 0.2]])
    # 0 to 1/4: (1 + .5) / 2 / 4; 1/4 to 1: (.5 + 0) / 2 * 3 / 4.
    assert torch.allclose(area_under_curve(scores, [0, 1, 4]), float64([0.375, 0.2]), rtol=1e-12)


def test_blur_is_a_gaussian_of_sigma_5_on_11_pixels() -> None:
    image = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
    image[0, 0, 15, 15] = 1
    result = blurred(image)[0]
    weights = [math.exp(-(offset**2) / 50) for offset in range(-5, 6)]
    expected = math.exp(-(3**2) / 50) * math.exp(-(1**2) / 50) / sum(weights) ** 2
    assert result[0, 18, 14].item() == pytest.approx(expected, rel=1e-12)
    assert result[0, 15, 21].item() == 0
    assert result[0].sum().item() == pytest.approx(1, rel=1e-12)
    assert not result[1].any()
    assert torch.allclose(blurred(torch.full((1, 3, 4, 4), 2.5)), torch.full((1, 3, 4, 4), 2.5))  # edges are repeated


def row_score(weights: Tensor) -> tuple[list[int], object]:
    """A score that is linear in the pixels, and the sizes of the batches that it was given."""
    sizes: list[int] = []

    def score(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return (images * weights).sum((1, 2, 3))

    return sizes, score


def test_measures_of_a_linear_score_by_hand() -> None:
    # One row of four pixels, all 1 (so its blur is itself); the score is .4 .3 .2 .1 of them.
    image = torch.ones(1, 1, 4, dtype=torch.float64)
    sizes, score = row_score(float64([0.4, 0.3, 0.2, 0.1]))
    masks = float64([[[1.0, 0.5, 0.0, 0.0]], [[0.0, 0.25, 0.75, 1.0]], [[NAN] * 4]])
    result = faithfulness(score, image, masks, steps=4, batch=5)  # type: ignore[arg-type]
    assert result.full == pytest.approx(1.0)
    # Explained: .4 + .15 and .075 + .15 + .1.
    assert torch.allclose(result.drop[:2], float64([0.45, 0.675]), rtol=1e-12)
    assert result.increase[:2].tolist() == [0, 0]
    # Best first: 1, .6, .3, .1, 0; worst first: 1, .9, .7, .4, 0.
    assert torch.allclose(result.deletion[:2], float64([(0.5 + 0.6 + 0.3 + 0.1) / 4, (0.5 + 0.9 + 0.7 + 0.4) / 4]))
    assert torch.allclose(result.insertion[:2], float64([1.0, 1.0]))
    assert torch.allclose(result.kept[:2], float64([0.375, 0.5]))
    for column in (result.drop, result.increase, result.deletion, result.insertion, result.kept):
        assert column.dtype == torch.float64
        assert column[2].isnan()
    assert max(sizes) == 5
    assert sum(sizes) == 3 + 3 * (1 + 2 * 3)


def test_insertion_starts_from_the_blurred_image() -> None:
    # A bright pixel in a row of nine; its blur leaves less of it at its place, and the score sees that place only.
    image = torch.zeros(1, 1, 9, dtype=torch.float64)
    image[0, 0, 4] = 1
    weights = image[0, 0].clone()
    _, score = row_score(weights)
    mask = image.clone()
    start = 1 / sum(math.exp(-(offset**2) / 50) for offset in range(-5, 6))
    result = faithfulness(score, image, mask, steps=3)  # type: ignore[arg-type]
    assert result.insertion.item() == pytest.approx(((start + 1) / 2 + 1 + 1) / 3, rel=1e-12)
    assert result.deletion.item() == pytest.approx(0.5 / 3, rel=1e-12)
    # The mask that leaves the pixel to the last third.
    late = faithfulness(score, image, 1 - mask, steps=3)  # type: ignore[arg-type]
    assert late.insertion.item() == pytest.approx((start + start + (start + 1) / 2) / 3, rel=1e-12)
    assert late.drop.item() == 1


def test_wrong_sizes_and_steps_are_refused() -> None:
    _, score = row_score(torch.ones(1))
    with pytest.raises(ValueError, match="enlarge"):
        faithfulness(score, torch.ones(3, 4, 4), torch.ones(2, 2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps is 0"):
        faithfulness(score, torch.ones(3, 4, 4), torch.ones(2, 4, 4), steps=0)  # type: ignore[arg-type]
