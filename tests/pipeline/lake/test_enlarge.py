"""Enlargement, against torch and against hand-made values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lake.enlarge import lay_over, resize
from schemas.view import View


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 40)] * 2))
def test_resize_is_torchs(shape: tuple[int, int], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(resize(values, *size), expected, atol=1e-6)


def test_a_whole_view_is_a_resize() -> None:
    values = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    np.testing.assert_allclose(lay_over(values, View(0, 0, 40, 30), 30, 40), resize(values, 30, 40), atol=1e-6)


def test_an_inner_view_leaves_the_rest() -> None:
    values = np.array([[1.0, 2.0]], np.float32)
    laid = lay_over(values, View(2, 1, 6, 3), 4, 8)
    assert np.isnan(laid[0]).all()
    assert np.isnan(laid[3]).all()
    assert np.isnan(laid[:, :2]).all()
    assert np.isnan(laid[:, 6:]).all()
    # Four pixels over two cells: centres at 0.25, 0.75, 1.25 and 1.75 cells.
    np.testing.assert_allclose(laid[1, 2:6], [1.0, 1.25, 1.75, 2.0])
    np.testing.assert_allclose(laid[2], laid[1])


def test_a_view_beyond_the_image_is_cut() -> None:
    """A centre crop larger than the image: only the inner part of the map is on the picture."""
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    laid = lay_over(values, View(-2, -2, 6, 6), 4, 4)
    np.testing.assert_allclose(laid, resize(values, 8, 8)[2:6, 2:6])


def test_fractional_edges_go_by_pixel_centres() -> None:
    laid = lay_over(np.ones((2, 2), np.float32), View(0.6, 0.4, 2.6, 2.4), 3, 3, outside=0.0)
    np.testing.assert_array_equal(laid, [[0, 1, 1], [0, 1, 1], [0, 0, 0]])


def test_an_empty_view_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        lay_over(np.ones((2, 2), np.float32), View(3, 0, 3, 4), 5, 5)
