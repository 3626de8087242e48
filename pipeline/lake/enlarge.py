"""Heatmaps at other sizes: bilinear enlargement, and laying over the original through the view.

The stored map is small (7x7, 14x14, ...); enlarging it adds no information, so it is the reader's work.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.view import View

Map = npt.NDArray[np.float32]


def _taps(centres: npt.NDArray[np.float64], cells: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Lower cell and weight of the upper one for positions in cells, where cell i has its centre at i + 0.5."""
    position = np.clip(centres - 0.5, 0, cells - 1)
    lower = np.minimum(np.floor(position).astype(np.int64), max(cells - 2, 0))
    return lower, position - lower


def _sample(values: Map, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Map:
    """Bilinear samples (len(rows), len(columns)) of (h, w) at positions in cells; edges are held."""
    height, width = values.shape
    y, v = _taps(rows, height)
    x, u = _taps(columns, width)
    y1, x1 = np.minimum(y + 1, height - 1), np.minimum(x + 1, width - 1)
    wide = values.astype(np.float64)
    above = wide[y][:, x] * (1 - u) + wide[y][:, x1] * u
    below = wide[y1][:, x] * (1 - u) + wide[y1][:, x1] * u
    return np.asarray(above * (1 - v)[:, None] + below * v[:, None], np.float32)


def resize(values: Map, height: int, width: int) -> Map:
    """Resize (h, w) float32 to (height, width), bilinear with half-pixel centres.

    The same as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """
    rows = (np.arange(height) + 0.5) * values.shape[0] / height
    columns = (np.arange(width) + 0.5) * values.shape[1] / width
    return _sample(values, rows, columns)


def lay_over(values: Map, view: View, height: int, width: int, outside: float = float("nan")) -> Map:
    """Lay a map (h, w) float32 over the original (height, width): bilinear within the view.

    Args:
        values: the map; it covers exactly the view.
        view: rectangle in pixels of the original; it may reach beyond it.
        height: of the original, pixels.
        width: of the original, pixels.
        outside: value of the pixels whose centre lies outside the view.

    Raises:
        ValueError: the view is empty.
    """
    if not (view.x1 > view.x0 and view.y1 > view.y0):
        raise ValueError(f"the view {view} is empty")
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    rows = np.flatnonzero((y >= view.y0) & (y < view.y1))
    columns = np.flatnonzero((x >= view.x0) & (x < view.x1))
    result = np.full((height, width), outside, np.float32)
    if rows.size and columns.size:
        inside = _sample(
            values,
            (y[rows] - view.y0) / (view.y1 - view.y0) * values.shape[0],
            (x[columns] - view.x0) / (view.x1 - view.x0) * values.shape[1],
        )
        result[np.ix_(rows, columns)] = inside
    return result
