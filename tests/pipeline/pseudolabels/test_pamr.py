"""PAMR against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.pseudolabels import pamr
from pipeline.pseudolabels.pamr import PixelAffinity
from tests.pipeline.pseudolabels import protocol

DILATIONS = (1, 2, 4, 8, 12, 24)


def picture(height: int, width: int) -> np.ndarray:
    """A slope with an edge, an even region (where the deviation is 0) and noise, in [0, 1]."""
    rng = np.random.default_rng(0)
    image = np.linspace(0, 1, width)[None, None] * np.ones((3, height, 1))
    image[:, :, width // 2 :] *= 0.4
    image[:, 1 : height // 2, : width // 3] = 0.7
    return image + (rng.normal(0, 0.02, image.shape) * (image != 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_its_definition(dtype: torch.dtype) -> None:
    image, masks = picture(9, 13), np.random.default_rng(1).random((2, 9, 13))
    expected = protocol.pamr(image, masks, DILATIONS, 10)
    affinity = PixelAffinity(torch.from_numpy(image)[None].to(dtype), DILATIONS)
    found = affinity(torch.from_numpy(masks)[None], 10)[0].numpy()
    # The definition is in float64: what is left is rounding.
    assert np.abs(found - expected).max() < (2e-6 if dtype == torch.float32 else 1e-12)
    assert np.abs(expected - masks).max() > 0.2, "the masks have not changed"


def test_pixels_of_bytes_give_the_weights_of_their_values() -> None:
    image = (picture(9, 13) * 200).clip(0, 255).astype(np.uint8)
    masks = np.random.default_rng(1).random((1, 9, 13)).astype(np.float32)
    expected = protocol.pamr(image / 255.0, masks, DILATIONS, 10)
    found = PixelAffinity(torch.from_numpy(image)[None], DILATIONS)(torch.from_numpy(masks)[None], 10)[0].numpy()
    assert np.abs(found - expected).max() < 2e-6


def test_a_pixel_unlike_all_others_becomes_the_mean_of_its_neighbours() -> None:
    image = torch.zeros(1, 3, 60, 60, dtype=torch.uint8)
    image[..., 30, 30] = 255
    masks = torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    found = PixelAffinity(image, DILATIONS)(masks, 1)[0, 0]
    places = [(30 + y * each, 30 + x * each) for each in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    expected = sum(masks[0, 0, y, x] for y, x in places) / 48
    assert abs(found[30, 30] - expected) < 1e-6 and bool(found.isfinite().all())


def test_bands_of_rows_meet_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(picture(40, 24))[None]
    masks = torch.rand(1, 2, 40, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = PixelAffinity(image, DILATIONS)(masks, 4)
    monkeypatch.setattr(pamr, "_BAND_VALUES", 500)  # of three colours six rows, of two masks ten
    assert (PixelAffinity(image, DILATIONS)(masks, 4) - whole).abs().max() < 1e-13


def test_images_of_a_batch_and_masks_of_an_image_do_not_see_each_other() -> None:
    images = torch.rand(3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(3, 2, 20, 30, generator=torch.Generator().manual_seed(1))
    together = PixelAffinity(images, DILATIONS)(masks, 3)
    for number in range(3):
        alone = PixelAffinity(images[number : number + 1], DILATIONS)
        for channel in range(2):
            each = alone(masks[number : number + 1, channel : channel + 1], 3)[0, 0]
            # Not bit by bit: PyTorch's exp rounds otherwise at the end of an array than in its middle.
            assert torch.allclose(each, together[number, channel], atol=1e-6)


def test_a_constant_stays_what_it_is_and_a_mask_ends_at_the_edge_of_its_object() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1
    affinity = PixelAffinity(image, DILATIONS)
    constant = affinity(torch.full((1, 1, 40, 40), 0.3), 10)
    assert (constant - 0.3).abs().max() < 1e-6
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 15:] = 1  # a quarter of the other side, too
    refined = affinity(mask, 10)[0, 0]
    assert refined[:, 20:].min() > 0.999 and refined[:, :20].max() < 0.6


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (50, 2)])
def test_images_smaller_than_the_reach(size: tuple[int, int]) -> None:
    found = PixelAffinity(torch.rand(1, 3, *size), DILATIONS)(torch.ones(1, 1, *size), 2)
    assert torch.allclose(found, torch.ones(1, 1, *size), atol=1e-6)
