"""The dense CRF against a mean field with exact kernels in float64."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipeline.pseudolabels import crf
from schemas.errors import InputError
from schemas.pseudolabels import CrfRefinement
from tests.pipeline.pseudolabels import protocol


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A red disc on blue (H, W, 3), and scores (3, H, W) that find it and some of what is around it."""
    y, x = np.mgrid[:24, :30]
    distance = np.hypot(y - 12, x - 14)
    pixels = np.where((distance < 8)[..., None], [200, 40, 40], [30, 60, 180]).astype(np.uint8)
    pixels += np.random.default_rng(0).integers(0, 12, pixels.shape, dtype=np.uint8)
    inside = np.exp(-((distance / 9) ** 4))
    return pixels, np.stack([np.full(inside.shape, 0.5), inside, np.full(inside.shape, 0.05)])


def test_it_is_its_definition() -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed (it compiles C++)")
    pixels, scores = scene()
    # Weights at which the result is not saturated: then the lattice's approximation shows in full.
    settings = CrfRefinement(
        iterations=5, gaussian_compat=0.5, bilateral_sxy=20, bilateral_srgb=13, bilateral_compat=0.6
    )
    found = crf.dense_crf(pixels, scores.astype(np.float32), settings)
    expected = protocol.dense_crf(pixels, scores, gaussian=(3, 0.5), bilateral=(20, 13, 0.6), iterations=5)
    # The lattice stands for the exact kernels; measured: 0.0094.
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(expected - scores / scores.sum(0)).max() > 0.15, "nothing was refined"


def test_psas_settings_find_the_object() -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed (it compiles C++)")
    pixels, scores = scene()
    found = crf.dense_crf(pixels, scores.astype(np.float32), CrfRefinement())
    assert np.abs(found.sum(0) - 1).max() < 1e-4
    red = pixels[..., 0] > 128
    before, after = scores.argmax(0) == 1, found.argmax(0) == 1
    assert (before & red).sum() / (before | red).sum() < 0.92
    assert (after & red).sum() / (after | red).sum() > 0.99


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    crf._densecrf.cache_clear()
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(InputError, match=r"pip install 'camlake\[crf\]'"):
        crf.CrfRunner(CrfRefinement())
    crf._densecrf.cache_clear()
