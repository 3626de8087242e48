"""What a source of regions is, and what a region looks like in the view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.sources.fields import IMAGE_SUFFIXES
from pipeline.sources.storage import read_head, storage_errors
from schemas.errors import InputError
from schemas.view import View

#: Side of the square of pixels, over the view, in which regions and enlarged maps are compared.
PIXELS = 224

Mask = npt.NDArray[np.bool_]
#: (x0, y0, x1, y1), edges in pixels of the decoded original.
Box = tuple[float, float, float, float]
#: (n, 2) corners x, y in pixels of the decoded original; the last is joined to the first.
Polygon = npt.NDArray[np.float32]

#: Sizes of an image that its annotations were made for may differ by this share in shape, which is what rounding does.
_SHAPE = 0.02
#: No picture reaches there; NaN does not lie below it either.
_FAR = 1e9


@dataclass(frozen=True, eq=False)
class Region:
    """Where an image's objects are: the union of boxes, polygons and a mask (H, W) of the decoded original.

    ``outlines`` are the boxes around single objects where the region itself is finer than boxes.
    """

    boxes: tuple[Box, ...] = ()
    mask: Mask | None = None
    polygons: tuple[Polygon, ...] = ()
    outlines: tuple[Box, ...] = ()

    def in_view(self, view: View, pixels: int = PIXELS) -> Mask:
        """Return which of (pixels, pixels) equal parts of the view have their centre inside the region."""
        y = view.y0 + (np.arange(pixels) + 0.5) * (view.y1 - view.y0) / pixels
        x = view.x0 + (np.arange(pixels) + 0.5) * (view.x1 - view.x0) / pixels
        found = np.zeros((pixels, pixels), np.bool_)
        for x0, y0, x1, y1 in self.boxes:
            found |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]
        for polygon in self.polygons:
            found |= filled(in_parts(polygon, view, pixels), pixels)
        if self.mask is not None:
            rows, columns = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
            height, width = self.mask.shape
            inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
            picked = self.mask[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)]
            found |= picked & inside
        return found


def in_parts(points: npt.NDArray[Any], view: View, pixels: int) -> npt.NDArray[np.float64]:
    """Return points (n, 2) x, y, in pixels of the original, in units of one of (pixels, pixels) parts of the view."""
    size = np.array([view.x1 - view.x0, view.y1 - view.y0], np.float64)
    return (points.astype(np.float64) - [view.x0, view.y0]) * (pixels / size)


def filled(points: npt.NDArray[np.float64], pixels: int) -> Mask:
    """Return which of (pixels, pixels) have their centre inside a polygon (n, 2) x, y, by the even-odd rule."""
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    centres = np.arange(pixels) + 0.5
    edge, row = np.nonzero((y0[:, None] <= centres) != (y1[:, None] <= centres))
    crossing = x0[edge] + (centres[row] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    first = np.clip(np.ceil(crossing - 0.5), 0, pixels).astype(np.int64)
    crossed = np.bincount(row * (pixels + 1) + first, minlength=pixels * (pixels + 1)).reshape(pixels, pixels + 1)
    return (np.cumsum(crossed, axis=1)[:, :pixels] % 2).astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Instance:
    """One object of an image: its box, or what is finer than it; ``name`` is None where no class is told."""

    name: str | None
    box: Box | None = None
    polygons: tuple[Polygon, ...] = ()
    mask: Mask | None = None


class RegionSource(ABC):
    """Knows the regions of images. Opened once and pickled for the workers.

    ``any_class`` is set where the objects' names are of another vocabulary than the model's classes: then all objects
    count for every class.
    """

    #: The command's option, for messages.
    field: ClassVar[str] = "--boxes"
    #: What to do where none of the images is known.
    remedy: ClassVar[str] = "the last part of an image's id must be the name of its file there (source.id)"
    any_class: bool = False

    @abstractmethod
    def region(self, image: Mapping[str, Any], target_class: int, target_name: str | None) -> Region | None:
        """Return the region of the explained class's objects in an image; None where nothing is known of it.

        Args:
            image: the row of the images table.
            target_class: the explained class's index.
            target_name: and its name, where the lake has names.

        Raises:
            InputError: what is said about this image makes no sense; the message names file, image and remedy.
        """

    @abstractmethod
    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        """Return names of objects that may be in an image, for comparing them with the model's classes.

        None where nothing is known of the image.
        """

    @abstractmethod
    def about(self) -> str:
        """Return what the regions are and where they came from, for the audit's manifest."""

    def _is_meant(self, name: str | None, target_class: int, target_name: str | None) -> bool:
        """Tell whether an object called ``name`` is one of the explained class."""
        if name is None or target_name is None or self.any_class:
            return True
        return plain_name(name) in class_keys(target_class, target_name)


class InstanceSource(RegionSource):
    """Knows single objects."""

    @abstractmethod
    def instances(self, image: Mapping[str, Any]) -> Sequence[Instance] | None:
        """Return the objects of an image; None where nothing is known of it.

        Raises:
            InputError: as :meth:`region`.
        """

    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        """See :meth:`RegionSource.names`."""
        found = self.instances(image)
        return None if found is None else frozenset(each.name for each in found if each.name is not None)

    def region(self, image: Mapping[str, Any], target_class: int, target_name: str | None) -> Region | None:
        """See :meth:`RegionSource.region`; None also where no object is of the class."""
        found = [each for each in self.instances(image) or () if self._is_meant(each.name, target_class, target_name)]
        if not found:
            return None
        finer = [bool(each.polygons) or each.mask is not None for each in found]
        masks = [each.mask for each in found if each.mask is not None]
        return Region(
            boxes=tuple(each.box for each, other in zip(found, finer, strict=True) if each.box and not other),
            mask=np.logical_or.reduce(masks) if masks else None,
            polygons=tuple(polygon for each in found for polygon in each.polygons),
            outlines=tuple(each.box for each in found if each.box),
        )


# Names -----------------------------------------------------------------------------------------------------------


def class_keys(number: int, name: str) -> frozenset[str]:
    """Return what annotations may call a class: its name, its first synonym, or its index."""
    plain = plain_name(name)
    return frozenset({plain, plain.partition(",")[0].strip(), str(number)})


def plain_name(name: str) -> str:
    """Return a name without what spellings differ in: case, underscores and runs of spaces."""
    return " ".join(name.casefold().replace("_", " ").split())


def stems(image_id: str) -> list[str]:
    """Return the names under which an image's annotations are looked for: the id's last part, then the whole id.

    Both without the suffix of an image file.
    """
    head, dot, suffix = image_id.rpartition(".")
    path = head if dot and suffix.lower() in IMAGE_SUFFIXES else image_id
    last = path.rpartition("/")[2]
    safe = ".." not in path.split("/") and not path.startswith("/")
    return [last, path] if safe and last != path else [last]


# Files -----------------------------------------------------------------------------------------------------------


def read_if_there(fs: Any, path: str, uri: str, field: str, most: int) -> bytes | None:
    """Return a file's bytes; None where there is no such file.

    Raises:
        InputError: it has more than ``most`` bytes, or may not be read.
    """
    with storage_errors(uri, field):
        try:
            data = read_head(fs, path, most + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if len(data) > most:
        raise InputError(f"{field}: '{uri}' has more than {most >> 20} MiB, too much for one image; write it smaller")
    return data


def factors(size: tuple[int, int] | None, image: Mapping[str, Any], field: str, where: str) -> tuple[float, float]:
    """Return by what x and y of annotations made for an image of ``size`` (width, height) are multiplied.

    They may have been made for another size of the same picture, which is how data sets are shrunk.

    Raises:
        InputError: that picture has another shape.
    """
    width, height = image["width"], image["height"]
    if size is None or width is None or height is None or size == (width, height):
        return 1.0, 1.0
    if min(size) < 1 or abs(size[0] * height - size[1] * width) > _SHAPE * size[0] * height:
        raise InputError(
            f"{field}: {where} is about a picture of {size[0]} x {size[1]} pixels, and image '{image['image_id']}' has "
            f"{width} x {height}, which is no scaled copy; give the annotations of this very picture, turned as it is"
        )
    return width / size[0], height / size[1]


def scaled_box(box: Sequence[float], by: tuple[float, float]) -> Box:
    """Return a box with x and y multiplied."""
    return box[0] * by[0], box[1] * by[1], box[2] * by[0], box[3] * by[1]


def scaled_mask(mask: Mask, image: Mapping[str, Any], field: str, where: str) -> Mask:
    """Return a mask in the size of the image, by nearest pixels.

    Raises:
        InputError: see :func:`factors`.
    """
    height, width = mask.shape
    if factors((width, height), image, field, where) == (1.0, 1.0):
        return mask
    rows = (np.arange(image["height"]) + 0.5) * height / image["height"]
    columns = (np.arange(image["width"]) + 0.5) * width / image["width"]
    return np.asarray(mask[rows.astype(np.int64)][:, columns.astype(np.int64)], np.bool_)


def as_box(values: Any) -> Box:
    """Return (x0, y0, x1, y1) of four numbers.

    Raises:
        ValueError: they are no box; the message says why.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 4:
        raise ValueError(f"{str(values)[:60]!r} is not four numbers")
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        raise ValueError(f"{str(values)[:60]!r} holds what is no number")
    if not all(abs(each) < _FAR for each in values):
        raise ValueError(f"{str(values)[:60]!r} holds what is no place in a picture")
    x0, y0, x1, y1 = (float(each) for each in values)
    if x1 < x0 or y1 < y0:
        raise ValueError(f"{str(values)[:60]!r} ends before it begins; it may be x, y, width, height")
    return x0, y0, x1, y1
