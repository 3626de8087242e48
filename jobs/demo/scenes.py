"""Scenes of handwritten digits on textured backgrounds, with a planted shortcut.

A scene holds one to three digits of different classes, so it has several labels at once, and the exact mask and box
of each digit are known. The shortcut is a small coloured sticker in a corner that is seen only with one class and
only at one site: a cue that a network can use instead of the digit, as a token on an X-ray plate is one for its ward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jobs.demo.digits import CLASS_NAMES, Split, digit_images, enlarge
from jobs.demo.drawing import (
    STICKER_COLOURS,
    Box,
    Bytes,
    Floats,
    backgrounds,
    corner_side,
    corner_spot,
    digit_colours,
    lay,
    place,
    sticker_patch,
    tight_box,
    to_bytes,
)
from schemas.errors import InputError

#: Value of the sticker's pixels in a scene's ``masks``.
STICKER_ID = 255

_CHUNK = 128  # scenes drawn together; bounds the memory, and is part of what a seed means


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What is drawn; lengths in pixels.

    ``counts`` are the chances of one, two and three digits, ``digit_sides`` the least and largest side of an enlarged
    8 x 8 digit image. ``prevalence`` is the share of all scenes with a digit of ``sticker_class`` that carry the
    sticker. All of them are at ``sticker_site``, which has ``1 / len(sites)`` of such scenes, so it cannot be more.
    The default gives nine in ten eights from the east a sticker.
    """

    size: int = 96
    counts: tuple[float, ...] = (0.3, 0.4, 0.3)
    digit_sides: tuple[float, float] = (28.0, 40.0)
    sites: tuple[str, ...] = ("north", "south", "east")
    sticker_class: int = 8
    sticker_site: str = "east"
    sticker_size: int = 15
    prevalence: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= len(self.counts) <= 3 or min(self.counts) < 0 or abs(sum(self.counts) - 1) > 1e-6:
            raise InputError(f"counts is {self.counts}; give one to three chances that sum to 1")
        if not 8 <= self.digit_sides[0] <= self.digit_sides[1]:
            raise InputError(f"digit_sides is {self.digit_sides}; give (least, largest), 8 pixels or more")
        if not 4 <= self.sticker_size <= self.digit_sides[1]:
            raise InputError(f"sticker_size is {self.sticker_size}; give 4 to {self.digit_sides[1]:g} pixels")
        if not self._fits():
            raise InputError(
                f"size is {self.size}, too small for digits of {self.digit_sides[1]:g} pixels; "
                "raise it or lower digit_sides"
            )
        if not 0 <= self.sticker_class < len(CLASS_NAMES):
            raise InputError(f"sticker_class is {self.sticker_class}; give a digit from 0 to 9")
        if self.sticker_site not in self.sites:
            raise InputError(f"sticker_site '{self.sticker_site}' is no site; use one of: {', '.join(self.sites)}")
        if not 0 <= self.prevalence <= 1 / len(self.sites):
            raise InputError(
                f"prevalence is {self.prevalence:g}, but '{self.sticker_site}' has only one in {len(self.sites)} "
                f"scenes of each class; give 0 to {1 / len(self.sites):.3g}, or fewer sites"
            )

    @property
    def canvas(self) -> int:
        """Side of the square in which a digit is drawn: room for the largest one, turned."""
        return math.ceil(1.2 * self.digit_sides[1])

    def close_up(self) -> SceneSpec:
        """Return the same with one digit a scene, no sticker, and scenes so small that the digit fills them."""
        return replace(self, size=self.canvas + 2, counts=(1.0,), prevalence=0.0)

    def _fits(self) -> bool:
        """Whether digits and a sticker always find their places (see :func:`~jobs.demo.drawing.place`)."""
        if len(self.counts) > 1:
            return self.size >= 2 * self.canvas
        beside = corner_side(self.size, self.sticker_size) + 1 + self.digit_sides[1] if self.prevalence > 0 else 0
        return self.size >= max(self.canvas + 2, beside)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One image with all that is known of it.

    ``pixels`` (H, W, 3) uint8 RGB. ``labels``: the digits' classes by falling visible area; the first is the main
    label. ``boxes``: their tight boxes, same order. ``masks`` (H, W) uint8: 0 background, i + 1 the visible pixels of
    digit i, :data:`STICKER_ID` the sticker. ``sticker``: its box, or None. ``background``: kind of the texture.
    """

    pixels: Bytes
    labels: tuple[int, ...]
    boxes: tuple[Box, ...]
    masks: Bytes
    site: str
    sticker: Box | None
    background: str


def make_scenes(
    count: int,
    *,
    split: Split,
    seed: int = 0,
    spec: SceneSpec | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Scene]:
    """Draw ``count`` scenes; the same arguments give the same scenes.

    ``split`` decides which digit images are used; the splits share none. ``progress`` is told how many scenes each
    finished chunk held.

    Raises:
        InputError: ``count`` is below 1, or scikit-learn is not installed.
    """
    if count < 1:
        raise InputError(f"count is {count}; ask for at least one scene")
    spec = spec or SceneSpec()
    rng = np.random.default_rng([seed, {"train": 0, "test": 1}[split]])
    objects = 1 + rng.choice(len(spec.counts), size=count, p=spec.counts)
    order = np.argsort(rng.random((count, len(CLASS_NAMES))), axis=1)
    classes = [tuple(int(digit) for digit in row[:some]) for row, some in zip(order, objects, strict=True)]
    sites, planted = _plant(rng, classes, spec)
    scenes: list[Scene] = []
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        scenes += _draw(rng, split, classes[part], sites[part], planted[part], spec)
        if progress is not None:
            progress(part.stop - part.start)
    return scenes


def _plant(
    rng: np.random.Generator, classes: Sequence[tuple[int, ...]], spec: SceneSpec
) -> tuple[list[str], list[bool]]:
    """Deal the sites out, and choose exactly ``prevalence`` of the class's scenes, all at the sticker's site.

    The scenes with the class and those without are dealt apart, so that the class tells nothing about the site.
    """
    first = spec.sites.index(spec.sticker_site)
    sites = [""] * len(classes)
    planted = [False] * len(classes)
    for with_class in (True, False):
        group = rng.permutation(
            [index for index, found in enumerate(classes) if (spec.sticker_class in found) is with_class]
        )
        for turn, index in enumerate(group.tolist()):
            sites[index] = spec.sites[(first + turn) % len(spec.sites)]
        if with_class:
            for index in group[:: len(spec.sites)][: round(spec.prevalence * len(group))].tolist():
                planted[index] = True
    return sites, planted


def _draw(
    rng: np.random.Generator,
    split: Split,
    classes: Sequence[tuple[int, ...]],
    sites: Sequence[str],
    planted: Sequence[bool],
    spec: SceneSpec,
) -> list[Scene]:
    """Draw the scenes of one chunk."""
    size = spec.size
    images, labels = digit_images(split)
    pools = [np.flatnonzero(labels == digit) for digit in range(len(CLASS_NAMES))]
    picks = np.array([rng.choice(pools[digit]) for found in classes for digit in found])
    side = rng.uniform(*spec.digit_sides, len(picks)).astype(np.float32)
    degrees = rng.uniform(-15, 15, len(picks)).astype(np.float32)
    covers = enlarge(images[picks], side, degrees, spec.canvas)
    pixels, luma, kinds = backgrounds(rng, len(classes), size)
    colours = digit_colours(rng, np.repeat(luma, [len(found) for found in classes], axis=0))
    sticker = sticker_patch(spec.sticker_size, STICKER_COLOURS)
    scenes: list[Scene] = []
    first = 0
    for index, found in enumerate(classes):
        mine = slice(first, first + len(found))
        first = mine.stop
        spot = corner_spot(rng, size, spec.sticker_size) if planted[index] else None
        masks = _lay_digits(rng, pixels[index], covers[mine], colours[mine], spot)
        order, masks = _by_area(masks, len(found))
        if spot is not None:
            _lay_sticker(pixels[index], masks, spot, sticker)
        scenes.append(
            Scene(
                pixels=to_bytes(pixels[index]),
                labels=tuple(found[position] for position in order),
                boxes=tuple(tight_box(masks == position + 1) for position in range(len(found))),
                masks=masks,
                site=sites[index],
                sticker=spot,
                background=kinds[index],
            )
        )
    return scenes


def _lay_digits(rng: np.random.Generator, pixels: Floats, covers: Floats, colours: Floats, spot: Box | None) -> Bytes:
    """Lay the digits over ``pixels`` in place, the largest first, and return their masks (value: position + 1)."""
    size = len(pixels)
    masks = np.zeros((size, size), dtype=np.uint8)
    inks = [tight_box(cover > 0.5) for cover in covers]
    places = place(rng, [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in inks], spot, size)
    for index in sorted(range(len(covers)), key=lambda index: -int((covers[index] > 0.5).sum())):
        x0, y0, x1, y1 = inks[index]
        x, y = places[index][0], places[index][1]
        # One pixel more on each side: the soft edge.
        left, top = min(x0, 1), min(y0, 1)
        cover = covers[index, y0 - top : y1 + 1, x0 - left : x1 + 1]
        lay(pixels, x - left, y - top, colours[index], cover)
        height, width = cover.shape
        masks[y - top : y - top + height, x - left : x - left + width][cover > 0.5] = index + 1
    return masks


def _by_area(masks: Bytes, count: int) -> tuple[list[int], Bytes]:
    """Return the digits' positions by falling visible area, and the masks renumbered so."""
    areas = np.bincount(masks.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")
    renumbered = np.zeros(count + 1, dtype=np.uint8)
    renumbered[order + 1] = np.arange(1, count + 1)
    return order.tolist(), renumbered[masks]


def _lay_sticker(pixels: Floats, masks: Bytes, spot: Box, sticker: tuple[Floats, Floats]) -> None:
    x0, y0, x1, y1 = spot
    colour, cover = sticker
    lay(pixels, x0, y0, colour, cover)
    masks[y0:y1, x0:x1][cover > 0.5] = STICKER_ID


def with_sticker(
    scene: Scene,
    rng: np.random.Generator,
    *,
    side: int,
    colours: tuple[tuple[float, float, float], ...] = STICKER_COLOURS,
) -> Scene | None:
    """Return the scene with a sticker pasted into a corner where no digit is, or None where no corner is free.

    With ``colours`` = :data:`~jobs.demo.drawing.CONTROL_COLOURS` it is a control: a patch of the same shape that the
    network never saw go with a class.
    """
    for _ in range(40):
        x0, y0, x1, y1 = spot = corner_spot(rng, len(scene.pixels), side)
        if not scene.masks[y0:y1, x0:x1].any():
            pixels = scene.pixels.astype(np.float32) / np.float32(255)
            masks = scene.masks.copy()
            _lay_sticker(pixels, masks, spot, sticker_patch(side, colours))
            return replace(scene, pixels=to_bytes(pixels), masks=masks, sticker=spot)
    return None
