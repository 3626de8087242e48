"""Painting over leaves nothing of what was there, and makes no edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.audit.pictures import painted_over, pixels_of


def ramp(size: int = 24) -> torch.Tensor:
    """(3, size, size): linear in both coordinates, each channel differently."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([x, y, x + 2 * y])


def box(size: int, y: slice, x: slice) -> np.ndarray:
    mask = np.zeros((size, size), np.bool_)
    mask[y, x] = True
    return mask


def test_what_is_painted_goes_on_from_its_surroundings() -> None:
    image, mask = ramp(), box(24, slice(8, 16), slice(5, 17))
    marked = image.clone()
    marked[:, torch.from_numpy(mask)] = 40.0
    painted = painted_over(marked, mask, np.random.default_rng(0))
    # A linear ramp is the weighted mean of its neighbours, so it comes back but for the noise of 0.01.
    assert torch.equal(painted[:, ~torch.from_numpy(mask)], image[:, ~torch.from_numpy(mask)])
    error = (painted - image)[:, torch.from_numpy(mask)]
    assert error.abs().max() < 0.06
    assert 0.005 < error.std() < 0.015
    assert marked[0, 10, 10] == 40.0


def test_corners_are_painted_from_two_sides() -> None:
    image, mask = torch.full((3, 24, 24), 0.5), box(24, slice(0, 7), slice(0, 7))
    image[:, :7, :7] = 9.0
    painted = painted_over(image, mask, np.random.default_rng(0))
    assert (painted - 0.5).abs().max() < 0.06


def test_the_solution_is_that_of_the_dense_system() -> None:
    rng = np.random.default_rng(4)
    image = torch.from_numpy(rng.normal(size=(3, 6, 7)).astype(np.float32))
    mask = rng.random((6, 7)) < 0.5
    painted = painted_over(image, mask, np.random.default_rng(1)).numpy()
    noise = np.random.default_rng(1).normal(0, 0.01, (int(mask.sum()), 3))
    for channel in range(3):
        values = painted[channel].astype(np.float64)
        values[mask] -= noise[:, channel]
        for y, x in np.argwhere(mask):
            total = weight = 0.0
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    there = (y + down, x + across)
                    if (down, across) == (0, 0) or not (0 <= there[0] < 6 and 0 <= there[1] < 7):
                        continue
                    part = 1 / 12 if down and across else 1 / 6
                    total, weight = total + part * values[there], weight + part
            assert values[y, x] == pytest.approx(total / weight, abs=1e-5)


def test_nothing_to_paint_and_nothing_to_go_by() -> None:
    image, rng = ramp(), np.random.default_rng(0)
    assert torch.equal(painted_over(image, np.zeros((24, 24), np.bool_), rng), image)
    with pytest.raises(ValueError, match="whole image"):
        painted_over(image, np.ones((24, 24), np.bool_), rng)


def test_cells_become_pixels() -> None:
    cells = np.zeros((14, 14), np.bool_)
    cells[0, 13] = True
    pixels = pixels_of(cells, (28, 42))
    assert np.argwhere(pixels).tolist() == [[y, x] for y in (0, 1) for x in (39, 40, 41)]
    assert pixels_of(cells, (7, 7)).sum() == 0  # smaller pixels than cells: none has its centre in it
    assert pixels_of(np.ones((14, 14), np.bool_), (5, 9)).all()
