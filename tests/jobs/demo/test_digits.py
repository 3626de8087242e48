"""The digits: two splits without a common image, enlarged and turned as asked."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jobs.demo.digits import CLASS_NAMES, digit_images, enlarge
from jobs.demo.drawing import tight_box
from schemas.errors import InputError


def test_the_splits_share_no_image_and_leave_none_out() -> None:
    train, train_classes = digit_images("train")
    test, test_classes = digit_images("test")
    assert len(train) == 1200
    assert len(train) + len(test) == 1797
    assert train.dtype == np.float32
    assert train.min() == 0
    assert train.max() == 1
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    for classes in (train_classes, test_classes):
        assert set(classes.tolist()) == set(range(len(CLASS_NAMES)))
        assert np.bincount(classes).min() > 0.08 * len(classes)


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch, fresh_cache: None) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'camlake\[demo\]'"):
        digit_images("train")


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    importlib.import_module("jobs.demo.digits")
    digit_images.cache_clear()
    yield
    digit_images.cache_clear()


def _bar() -> Any:
    """An upright bar, two cells wide and eight high."""
    image = np.zeros((1, 8, 8), dtype=np.float32)
    image[0, :, 3:5] = 1
    return image


@pytest.mark.parametrize("side", [24.0, 32.0, 40.0])
def test_enlarged_to_the_side(side: float) -> None:
    cover = enlarge(_bar(), np.array([side], np.float32), np.zeros(1, np.float32), 48)[0]
    x0, y0, x1, y1 = tight_box(cover > 0.5)
    assert y1 - y0 == pytest.approx(side, abs=2)
    assert x1 - x0 == pytest.approx(side / 4, abs=2)
    assert (x0 + x1) / 2 == pytest.approx(24, abs=0.5)
    assert (y0 + y1) / 2 == pytest.approx(24, abs=0.5)
    assert cover.min() == 0
    assert cover.max() == 1


def test_turned_clockwise_by_the_angle() -> None:
    cover = enlarge(_bar(), np.array([40.0], np.float32), np.array([15.0], np.float32), 48)[0]
    y, x = np.indices(cover.shape) - 23.5
    axis = np.linalg.eigh(np.cov(np.stack([x.ravel(), y.ravel()]), aweights=cover.ravel()))[1][:, 1]
    # y points down: the upper end of an upright bar moves to the right when it turns clockwise.
    assert np.degrees(np.arctan2(axis[0], -axis[1]) % np.pi) == pytest.approx(15, abs=0.5)


def test_the_digit_looks_like_itself() -> None:
    images, _ = digit_images("test")
    cover = enlarge(images[:50], np.full(50, 40, np.float32), np.zeros(50, np.float32), 40)
    small = cover.reshape(50, 8, 5, 8, 5).mean(axis=(2, 4))
    for one, other in zip(small, images[:50], strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
