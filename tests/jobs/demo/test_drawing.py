"""Places, colours and laying over: the parts of a scene."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.demo.drawing import (
    CONTROL_COLOURS,
    MAX_OVERLAP,
    STICKER_COLOURS,
    backgrounds,
    corner_side,
    corner_spot,
    digit_colours,
    lay,
    place,
    shared,
    sticker_patch,
    tight_box,
    to_bytes,
)

_LUMA = np.array([0.299, 0.587, 0.114])


def test_shared_pixels() -> None:
    assert shared((0, 0, 4, 4), (2, 3, 9, 9)) == 2
    assert shared((0, 0, 4, 4), (4, 0, 8, 4)) == 0
    assert shared((0, 0, 4, 4), (6, 6, 8, 8)) == 0


def test_tight_box() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2, 5] = mask[6, 3] = True
    assert tight_box(mask) == (3, 2, 6, 7)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    extents=st.lists(st.tuples(st.integers(5, 46), st.integers(5, 46)), min_size=1, max_size=3),
    sticker=st.booleans(),
)
def test_places_are_inside_apart_and_clear(seed: int, extents: list[tuple[int, int]], sticker: bool) -> None:
    rng = np.random.default_rng(seed)
    taken = corner_spot(rng, 96, 13) if sticker else None
    boxes = place(rng, extents, taken, 96)
    assert [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes] == extents
    for index, box in enumerate(boxes):
        assert min(box[:2]) >= 1
        assert max(box[2:]) <= 95
        assert taken is None or shared(box, taken) == 0
        for other, extent in zip(boxes[:index], extents, strict=False):
            smaller = min(extent[0] * extent[1], extents[index][0] * extents[index][1])
            assert shared(box, other) <= MAX_OVERLAP * smaller


def test_the_crowded_case_takes_the_corners() -> None:
    class Unlucky(np.random.Generator):
        """Always puts things in the same place, so that the second never finds one."""

        def integers(self, low: int, high: int, **_more: object) -> int:  # type: ignore[override]
            return low

    unlucky = Unlucky(np.random.PCG64(0))
    taken = (80, 2, 93, 15)
    boxes = place(unlucky, [(46, 46)] * 3, taken, 96)
    assert len(boxes) == 3
    for index, box in enumerate(boxes):
        assert shared(box, taken) == 0
        assert all(shared(box, other) == 0 for other in boxes[:index])
        assert min(box[:2]) >= 1
        assert max(box[2:]) <= 95
    # One large thing beside a sticker in a small scene: only the far corner is left.
    assert place(unlucky, [(40, 40)], (1, 1, 14, 14), 56) == [(15, 15, 55, 55)]


@pytest.mark.parametrize(("size", "side"), [(96, 13), (56, 13), (96, 24)])
def test_stickers_lie_in_the_corners(size: int, side: int) -> None:
    rng = np.random.default_rng(0)
    spots = [corner_spot(rng, size, side) for _ in range(400)]
    corner = corner_side(size, side)
    seen = set()
    for x0, y0, x1, y1 in spots:
        assert (x1 - x0, y1 - y0) == (side, side)
        assert (x0 >= 0 and x1 <= corner) or (x0 >= size - corner and x1 <= size)
        assert (y0 >= 0 and y1 <= corner) or (y0 >= size - corner and y1 <= size)
        seen.add((x0 > size // 2, y0 > size // 2))
    assert len(seen) == 4
    assert len({spot[0] for spot in spots}) == 2 * (corner - side + 1)


def test_digits_stand_out_from_both_colours_of_their_background() -> None:
    rng = np.random.default_rng(1)
    pixels, luma, kinds = backgrounds(rng, 400, 32)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    colours = digit_colours(rng, luma)
    away = np.maximum(luma[:, 0] - colours @ _LUMA, colours @ _LUMA - luma[:, 1])
    # A hue that leaves [0, 1] is clipped, which moves the luma a little.
    assert np.quantile(away, 0.02) > 0.15
    assert away.min() > 0.05
    lighter = (colours @ _LUMA) > luma[:, 1]
    assert 0.3 < lighter.mean() < 0.7
    assert set(kinds) == {"noise", "stripes", "checks", "gradient"}


def test_lay_mixes_by_coverage_and_leaves_the_rest() -> None:
    pixels = np.zeros((4, 5, 3), dtype=np.float32)
    colour = np.array([1.0, 0.5, 0.0], dtype=np.float32)
    lay(pixels, 1, 2, colour, np.array([[1.0, 0.5]], dtype=np.float32))
    assert pixels[2, 1].tolist() == [1.0, 0.5, 0.0]
    assert pixels[2, 2].tolist() == [0.5, 0.25, 0.0]
    assert np.count_nonzero(pixels.any(axis=2)) == 2


@pytest.mark.parametrize("side", [12, 13])
def test_the_sticker_fills_its_box_and_has_both_colours(side: int) -> None:
    colour, cover = sticker_patch(side, STICKER_COLOURS)
    assert tight_box(cover > 0.5) == (0, 0, side, side)
    assert np.allclose(colour[0, side // 2], STICKER_COLOURS[0])
    assert np.allclose(colour[side // 2, side // 2], STICKER_COLOURS[1])
    control, same = sticker_patch(side, CONTROL_COLOURS)
    assert np.array_equal(cover, same)
    assert np.ptp(control) < 1e-6


def test_to_bytes_rounds() -> None:
    assert to_bytes(np.array([0.0, 0.4999 / 255, 0.5001 / 255, 1.0], np.float32)).tolist() == [0, 0, 1, 255]
