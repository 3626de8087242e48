"""The part of a picture that a stored map knows something of, maps enlarged over it, and its labels put back."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.lake.enlarge import lay_over
from pipeline.pseudolabels.labels import ImageLabels
from schemas.view import View

Map = npt.NDArray[np.float32]


class Part(NamedTuple):
    """The pixels of a picture whose centre lies in the view: rows y0 to y1, columns x0 to x1."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0


def part_in_view(view: View, height: int, width: int) -> Part:
    """Return which pixels of a picture (height, width) a map knows something of."""

    def span(low: float, high: float, length: int) -> tuple[int, int]:
        first = min(length, max(0, math.ceil(low - 0.5)))
        return first, max(first, min(length, math.ceil(high - 0.5)))

    return Part(*span(view.y0, view.y1, height), *span(view.x0, view.x1, width))


def laid(values: Map, view: View, part: Part, size: tuple[int, int]) -> Map:
    """Return a map (h, w) enlarged over a part of the picture, in ``size`` (height, width), its positive values."""
    height, width = size
    y, x = height / part.size[0], width / part.size[1]
    moved = View((view.x0 - part.x0) * x, (view.y0 - part.y0) * y, (view.x1 - part.x0) * x, (view.y1 - part.y0) * y)
    return np.maximum(lay_over(values, moved, height, width, outside=0.0), 0)


def within(labels: ImageLabels, part: Part, size: tuple[int, int], ignore: int) -> ImageLabels:
    """Return labels of a part as those of the picture (height, width): ignored outside, without scores there (NaN)."""
    if part.size == size:
        return labels
    place = np.s_[part.y0 : part.y1, part.x0 : part.x1]
    index = np.full(size, ignore, labels.index.dtype)
    index[place] = labels.index
    confidence = np.zeros(size, np.float32)
    confidence[place] = labels.confidence
    scores = None
    if labels.scores is not None:
        scores = np.full((len(labels.scores), *size), np.nan, np.float32)
        scores[(slice(None), *place)] = labels.scores
    return replace(labels, index=index, confidence=confidence, scores=scores)
