"""Labels that look at no network: what any method has to be better than."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def whole(pixels: Bytes, label: int) -> Bytes:
    """Return a mask (H, W) of the image's main class throughout; ``pixels`` (H, W, 3)."""
    return np.full(pixels.shape[:2], label, np.uint8)


def centre(pixels: Bytes, label: int) -> Bytes:
    """Return a box in the middle, of half the image's sides."""
    height, width = pixels.shape[:2]
    found = np.zeros((height, width), np.uint8)
    found[height // 4 : height - height // 4, width // 4 : width - width // 4] = label
    return found


def brightness(pixels: Bytes, label: int) -> Bytes:
    """Return what differs in brightness from the image's median, by Otsu's threshold (1979) on the difference."""
    luma = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    salient = np.abs(luma - np.median(luma))
    return np.where(salient > otsu(salient), np.uint8(label), np.uint8(0))


def otsu(values: npt.NDArray[np.float64]) -> float:
    """Return the threshold that parts values into two classes of the largest variance between them."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nanargmax(np.where(above > 0, between, np.nan)))])


BASELINES = {"whole image": whole, "centre box": centre, "brightness": brightness}
