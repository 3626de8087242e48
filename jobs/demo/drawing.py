"""Drawing of scenes: where things stand, their colours, and how they are laid over the background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.demo import textures

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
#: (x0, y0, x1, y1) in pixels: edges, so that ``pixels[y0:y1, x0:x1]`` is the content.
Box = tuple[int, int, int, int]

#: Most that two digits' boxes may share, as a part of the smaller box.
MAX_OVERLAP = 0.15
#: Colours (edge, centre) of the sticker, and of a control patch of the same shape; RGB in [0, 1].
STICKER_COLOURS = ((0.86, 0.05, 0.55), (1.0, 0.85, 0.1))
CONTROL_COLOURS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_LEAST_CONTRAST = 0.2  # of a digit's luma to all of the background's
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def shared(first: Box, second: Box) -> int:
    """Return how many pixels two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def tight_box(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds every True of ``mask`` (H, W), of which there must be one."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def corner_side(size: int, side: int) -> int:
    """Return the side of a scene's corner squares: a fifth of the scene's, one pixel more than a sticker at least."""
    return max(size // 5, side + 1)


def corner_spot(rng: np.random.Generator, size: int, side: int) -> Box:
    """Draw a box of ``side`` pixels in one of the four corner squares (:func:`corner_side`) of a scene of ``size``."""
    x, y = (int(value) for value in rng.integers(0, corner_side(size, side) - side + 1, size=2))
    right, low = rng.random(2) < 0.5
    x = size - side - x if right else x
    y = size - side - y if low else y
    return x, y, x + side, y + side


def place(rng: np.random.Generator, extents: Sequence[tuple[int, int]], taken: Box | None, size: int) -> list[Box]:
    """Draw boxes for objects: inside the scene by a pixel, apart from each other, and clear of ``taken``.

    Args:
        rng: source of chance.
        extents: (width, height) of at most three objects, each below half the scene; a single one may be larger, if
            it fits beside ``taken``.
        taken: a box in a corner that stays free, or None.
        size: side of the scene in pixels.

    Returns:
        One box per object; no two share more than :data:`MAX_OVERLAP` of the smaller one.
    """
    for _ in range(20):
        boxes: list[Box] = []
        for width, height in extents:
            for _ in range(10):
                x = int(rng.integers(1, size - width))
                y = int(rng.integers(1, size - height))
                box = (x, y, x + width, y + height)
                if taken is not None and shared(box, taken):
                    continue
                area = width * height
                if all(
                    shared(box, other) <= MAX_OVERLAP * min(area, (other[2] - other[0]) * (other[3] - other[1]))
                    for other in boxes
                ):
                    boxes.append(box)
                    break
            else:
                break
        if len(boxes) == len(extents):
            return boxes
    # Very crowded: a corner each, which always fits.
    corners = [(right, low) for right in (False, True) for low in (False, True)]
    if taken is not None:
        mine = (taken[0] > size // 2, taken[1] > size // 2)
        corners = sorted(
            (corner for corner in corners if corner != mine),
            key=lambda corner: corner == (not mine[0], not mine[1]),
            reverse=True,
        )
    boxes = []
    for (width, height), (right, low) in zip(extents, corners, strict=False):
        x = size - 1 - width if right else 1
        y = size - 1 - height if low else 1
        boxes.append((x, y, x + width, y + height))
    return boxes


def _tinted(rng: np.random.Generator, luma: Floats, strength: tuple[float, float]) -> Floats:
    """Return colours (n, 3) of the given luma (n,) with a hue drawn at random, clipped to [0, 1]."""
    hue = rng.random((len(luma), 3)).astype(np.float32)
    hue -= (hue @ _LUMA)[:, None]
    hue /= np.abs(hue).max(axis=1, keepdims=True)
    amount = rng.uniform(*strength, (len(luma), 1)).astype(np.float32)
    colours: Floats = np.clip(luma[:, None] + amount * hue, 0, 1)
    return colours


def backgrounds(rng: np.random.Generator, count: int, size: int) -> tuple[Floats, Floats, list[str]]:
    """Draw textured backgrounds.

    Returns:
        ``pixels`` (n, size, size, 3) float32 in [0, 1]; ``luma`` (n, 2) float32, the darkest and the lightest luma
        that their two colours span; the kinds of their textures.
    """
    field, kinds = textures.fields(rng, count, size)
    middle = rng.uniform(0.22, 0.78, (count, 1))
    spread = rng.uniform(0.06, 0.24, (count, 1))
    luma = np.concatenate([middle - spread / 2, middle + spread / 2], axis=1).astype(np.float32)
    dark = _tinted(rng, luma[:, 0], (0.03, 0.25))
    light = _tinted(rng, luma[:, 1], (0.03, 0.25))
    pixels = dark[:, None, None] + field[..., None] * (light - dark)[:, None, None]
    grain = rng.standard_normal(field.shape, dtype=np.float32)
    grain *= rng.uniform(0.0, 0.03, (count, 1, 1)).astype(np.float32)
    pixels += grain[..., None]
    return np.clip(pixels, 0, 1, out=pixels), luma, kinds


def digit_colours(rng: np.random.Generator, luma: Floats) -> Floats:
    """Draw a colour (n, 3) for each digit that stands out from its background's ``luma`` (n, 2), lighter or darker."""
    room = np.stack([luma[:, 0] - 0.02, 0.98 - luma[:, 1]], axis=1)
    lighter = rng.random(len(luma)) < 0.5
    lighter = np.where(room.min(axis=1) < _LEAST_CONTRAST, room[:, 1] > room[:, 0], lighter)
    contrast = rng.uniform(_LEAST_CONTRAST, np.where(lighter, room[:, 1], room[:, 0]))
    wanted = np.where(lighter, luma[:, 1] + contrast, luma[:, 0] - contrast)
    return _tinted(rng, wanted.astype(np.float32), (0.03, 0.3))


def _disc(side: int, radius: float) -> Floats:
    """Coverage (side, side) of a disc in the middle of a square, with an edge one pixel soft."""
    place = np.arange(side) + 0.5 - side / 2
    return np.asarray(np.clip(radius - np.hypot(place[:, None], place) + 0.5, 0, 1), dtype=np.float32)


def sticker_patch(side: int, colours: tuple[tuple[float, float, float], ...]) -> tuple[Floats, Floats]:
    """Return the sticker's colours (side, side, 3) and coverage (side, side), float32 in [0, 1]: a disc in a disc."""
    edge, centre = (np.array(colour, dtype=np.float32) for colour in colours)
    inner = _disc(side, side / 4)[..., None]
    colour: Floats = edge + inner * (centre - edge)
    return colour, _disc(side, side / 2)


def lay(pixels: Floats, x: int, y: int, colour: Floats, cover: Floats) -> None:
    """Lay ``colour`` ((3,) or (h, w, 3)) over ``pixels`` (H, W, 3) at (x, y), in place; ``cover`` (h, w) in [0, 1]."""
    height, width = cover.shape
    part = pixels[y : y + height, x : x + width]
    part += cover[..., None] * (colour - part)


def to_bytes(pixels: Floats) -> Bytes:
    """Return pixels in [0, 1] as uint8, rounded to the nearest."""
    return (pixels * 255 + 0.5).astype(np.uint8)
