"""Handwritten digits: the images that ship inside scikit-learn, split, enlarged and turned."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from schemas.errors import InputError

Floats = NDArray[np.float32]
Split = Literal["train", "test"]

#: Names of the classes, in index order.
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TRAIN = 1200  # of 1797 images; which ones does not depend on any seed
_INK = (0.35, 0.65)  # share of full ink at which a pixel begins to cover the background, and covers it


@functools.cache
def digit_images(split: Split) -> tuple[Floats, NDArray[np.int64]]:
    """Return the digit images (n, 8, 8) float32 in [0, 1] of a split, and their classes (n,) int64.

    The UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin and Kaynak, 1998), as scikit-learn ships
    it. No image is in both splits, whatever the seed of the scenes.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the demo's digits ship inside scikit-learn; run: pip install 'camlake[demo]'") from error
    bunch = load_digits()
    shuffled = np.random.default_rng(0).permutation(len(bunch.target))
    chosen = shuffled[:_TRAIN] if split == "train" else shuffled[_TRAIN:]
    return (bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen].astype(np.int64)


def enlarge(images: Floats, side: Floats, degrees: Floats, canvas: int) -> Floats:
    """Enlarge and turn digits; bicubic.

    Args:
        images: (n, 8, 8) float32 in [0, 1].
        side: (n,) side of the enlarged image in pixels.
        degrees: (n,) angle of the turn, clockwise.
        canvas: side of the result in pixels; the digit stands in its middle.

    Returns:
        (n, canvas, canvas) float32 in [0, 1]: how much of the pixel the ink covers.
    """
    angle = degrees * (math.pi / 180)
    # affine_grid maps the canvas ([-1, 1] over its width) to the 8 x 8 image ([-1, 1] over its width).
    scale = canvas / side
    zero = np.zeros_like(scale)
    theta = np.stack(
        [
            np.stack([scale * np.cos(angle), scale * np.sin(angle), zero], axis=-1),
            np.stack([-scale * np.sin(angle), scale * np.cos(angle), zero], axis=-1),
        ],
        axis=1,
    ).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta), [len(images), 1, canvas, canvas], align_corners=False)
    ink = F.grid_sample(torch.from_numpy(images)[:, None], grid, mode="bicubic", align_corners=False)[:, 0].numpy()
    low, high = _INK
    part = np.clip((ink - low) / (high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part), dtype=np.float32)
