"""The view: the rectangle of the original image that the model saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """A rectangle in pixels of the decoded original (after EXIF, where it is applied), edges not centres.

    ``(x0, y0)`` is the upper left and ``(x1, y1)`` the lower right corner; a crop larger than the image reaches
    beyond it (negative ``x0``, ``x1`` above the width). A heatmap covers exactly this rectangle.
    """

    x0: float
    y0: float
    x1: float
    y1: float
