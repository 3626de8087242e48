"""The pictures behind maps: fetched, decoded and preprocessed as the job did, and painted over in part."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cam.imputation import NOISE, linear_imputation
from pipeline.lake.originals import Originals, Row
from pipeline.models.preprocess import Preprocessor
from pipeline.sources.decode import decode

Bools = npt.NDArray[np.bool_]


def picture(
    originals: Originals, row: Row, preprocess: Preprocessor, exif: Literal["ignore", "apply"] = "ignore"
) -> Tensor:
    """Return an image of a lake as its model saw it: (3, H, W) float32, normalised.

    Args:
        originals: the lake's encoded images.
        row: the image's row of the images table.
        preprocess: as the model had it.
        exif: as the job had it.

    Raises:
        LakeError: the image's bytes cannot be had, or have changed.
        DecodeError: they are no image any more that can be decoded.
    """
    return preprocess(decode(originals.get(row), exif=exif).pixels)[0]


def pixels_of(cells: Bools, size: tuple[int, int]) -> Bools:
    """Return which pixels (H, W) have their centre in the cells (h, w) of a grid over the same view."""
    rows, columns = (
        ((np.arange(pixels) + 0.5) * parts / pixels).astype(np.int64)
        for pixels, parts in zip(size, cells.shape, strict=True)
    )
    found: Bools = cells[rows][:, columns]
    return found


def painted_over(image: Tensor, mask: Bools, rng: np.random.Generator) -> Tensor:
    """Return an image in which some pixels go over smoothly from what is around them, so that nothing is left of them.

    Noisy linear imputation (Rong et al., ICML 2022): each pixel is the weighted mean of its eight neighbours, for all
    at once, and gets normal noise of 0.01.

    Args:
        image: (3, H, W) float32, normalised.
        mask: (H, W), the pixels to paint; not all of them.
        rng: of the noise.

    Raises:
        InputError: scipy is not installed.
        ValueError: nothing is left to go by.
    """
    if not mask.any():
        return image.clone()
    values = image.cpu().numpy().astype(np.float64)
    filled = linear_imputation(values, mask)
    values[:, mask] = (filled + rng.normal(0, NOISE, filled.shape)).T
    return torch.from_numpy(values.astype(np.float32))
