"""A heatmap as a picture, laid over the original image.

The colour maps are computed here from straight lines in CIELAB: lightness rises evenly with the value, so their order
is seen in grey print and with any colour vision, and hue runs from blue to yellow, the axis that red-green deficiencies
keep.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.lake.enlarge import lay_over
from schemas.view import View

Colours = npt.NDArray[np.uint8]

_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_XYZ_TO_RGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)


def _lch_to_linear(lightness: float, chroma: float, hue: float) -> npt.NDArray[np.float64]:
    """CIE L*C*h (hue in degrees) to linear sRGB, which may lie outside [0, 1]."""
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = _WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return np.asarray(_XYZ_TO_RGB @ xyz)


def _colour(lightness: float, chroma: float, hue: float) -> Colours:
    """The sRGB colour (3,) uint8 of this lightness and hue with as much of the chroma as the screen can show."""
    low, high = 0.0, chroma
    for _ in range(24):
        middle = (low + high) / 2
        rgb = _lch_to_linear(lightness, middle, hue)
        if rgb.min() >= 0 and rgb.max() <= 1:
            low = middle
        else:
            high = middle
    linear = np.clip(_lch_to_linear(lightness, low, hue), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), np.uint8)


@cache
def sequential() -> Colours:
    """Colours (256, 3) uint8 for [0, 1]: dark blue over magenta and orange to light yellow, L* from 8 to 94."""
    t = np.linspace(0, 1, 256)
    # Hue turns from 285 degrees (blue) through 360 (magenta) to 465 = 105 (yellow).
    return np.stack([_colour(8 + 86 * v, 14 + 50 * np.sin(np.pi * v) + 42 * v, 285 + 180 * v) for v in t])


@cache
def diverging() -> Colours:
    """Colours (255, 3) uint8 for [-1, 1]: blue, near-white at 0, orange; L* falls evenly to both ends."""
    t = np.linspace(-1, 1, 255)
    return np.stack([_colour(95 - 55 * abs(v), 60 * abs(v), 275 if v < 0 else 50) for v in t])


def colourise(values: npt.NDArray[np.floating[Any]], signed: bool = False) -> Colours:
    """Return the colours (h, w, 3) uint8 of scaled values (h, w).

    Args:
        values: in [0, 1], or [-1, 1] where ``signed``; clipped. NaN becomes mid grey.
        signed: use the diverging colours, with near-white at 0.
    """
    table = diverging() if signed else sequential()
    low = -1.0 if signed else 0.0
    holes = ~np.isfinite(values)
    share = (np.clip(np.where(holes, low, values), low, 1.0) - low) / (1.0 - low)
    colours = table[np.rint(share * (len(table) - 1)).astype(np.intp)]
    colours[holes] = 128
    return colours


def overlay(
    image: Image.Image,
    heatmap: npt.NDArray[np.float32],
    view: View,
    *,
    alpha: float = 0.5,
    signed: bool = False,
    outline: bool = True,
    fade: bool = False,
) -> Image.Image:
    """Lay a heatmap over the original, through the view that the model saw.

    Args:
        image: the original, in the orientation of the images table.
        heatmap: (h, w) float32, scaled (``Lake.heatmap(row, scaled=True)``).
        view: what the heatmap covers, in pixels of ``image``.
        alpha: opacity of the colours, [0, 1].
        signed: the map may be negative.
        outline: draw the view's edge, where it lies inside the image.
        fade: the colours are the fainter the less evidence there is: full from half of the largest value on, none at 0,
            so that the picture is seen where nothing else is to be.

    Returns:
        RGB image of the same size. What the model did not see is left as it is.

    Raises:
        ValueError: ``alpha`` is outside [0, 1], or the view is empty.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be in [0, 1]")
    original = np.asarray(image.convert("RGB"), np.float32)
    height, width = original.shape[:2]
    seen = lay_over(np.ones((1, 1), np.float32), view, height, width, outside=0.0)[..., None]
    laid = lay_over(heatmap, view, height, width, outside=0.0)
    share = alpha * seen
    if fade:
        share = share * np.clip(2 * np.abs(np.nan_to_num(laid, nan=1.0)), 0, 1)[..., None]
    blended = original * (1 - share) + colourise(laid, signed) * share
    result = Image.fromarray(np.rint(blended).astype(np.uint8))
    whole = view.x0 <= 0 and view.y0 <= 0 and view.x1 >= width and view.y1 >= height
    if outline and not whole:
        _outline(result, view)
    return result


def _outline(image: Image.Image, view: View) -> None:
    # White on black, so that the edge is seen on any picture.
    draw = ImageDraw.Draw(image)
    thick = max(1, round(min(image.size) / 250))
    box = (
        max(0, round(view.x0)),
        max(0, round(view.y0)),
        min(image.width, round(view.x1)) - 1,
        min(image.height, round(view.y1)) - 1,
    )
    if box[2] <= box[0] or box[3] <= box[1]:
        return
    draw.rectangle(box, outline=(0, 0, 0), width=2 * thick)
    draw.rectangle(box, outline=(255, 255, 255), width=thick)
