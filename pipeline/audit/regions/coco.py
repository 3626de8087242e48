"""One COCO JSON file: boxes, and segmentations where it has them, as polygons or run lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.regions.base import (
    Box,
    Instance,
    InstanceSource,
    Mask,
    Polygon,
    as_box,
    factors,
    scaled_box,
    scaled_mask,
    stems,
)
from pipeline.sources.storage import open_fs, storage_errors
from schemas.errors import InputError

#: Larger files are not read: parsed, they take ten times their size. COCO's own largest has 450 MB.
_MOST_BYTES = 1 << 30
_MOST_PIXELS = 80_000_000

Counts = npt.NDArray[np.int64]
_REMEDY = "write it as COCO's instances files are"


class _Annotation(NamedTuple):
    name: str | None
    box: Box | None
    polygons: tuple[Polygon, ...]
    runs: Counts | None
    run_size: tuple[int, int]


class _Picture(NamedTuple):
    file_name: str
    size: tuple[int, int] | None
    annotations: list[_Annotation]


class Coco(InstanceSource):
    """Objects by image. A picture's file name, without suffix, is the last part of the image's id, or the whole id.

    An object's region is its segmentation, else its box.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._uri = uri
        pictures = self._pictures(self._document(storage_options))
        self._vocabulary = frozenset(
            each.name for picture in pictures for each in picture.annotations if each.name is not None
        )
        self._by_name: dict[str, _Picture | None] = {}
        for picture in pictures:
            for stem in stems(picture.file_name):
                # None: several pictures have the name.
                self._by_name[stem] = None if stem in self._by_name else picture

    def instances(self, image: Mapping[str, Any]) -> Sequence[Instance] | None:
        """See :meth:`InstanceSource.instances`."""
        picture = self._picture(str(image["image_id"]))
        if picture is None:
            return None
        where = f"picture '{picture.file_name}' of '{self._uri}'"
        by = factors(picture.size, image, self.field, where)
        return [
            Instance(
                each.name,
                None if each.box is None else scaled_box(each.box, by),
                tuple((polygon * by).astype(np.float32) for polygon in each.polygons),
                None if each.runs is None else scaled_mask(unrun(each.runs, each.run_size), image, self.field, where),
            )
            for each in picture.annotations
        ]

    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        """See :meth:`RegionSource.names`: of the whole file, since it is known."""
        return None if self._picture(str(image["image_id"])) is None else self._vocabulary

    def about(self) -> str:
        """See :meth:`RegionSource.about`."""
        return f"objects of the COCO file {self._uri}"

    def _picture(self, image_id: str) -> _Picture | None:
        for stem in reversed(stems(image_id)):
            if stem in self._by_name:
                found = self._by_name[stem]
                if found is None:
                    raise InputError(
                        f"{self.field}: '{self._uri}' has several pictures called '{stem}', so that image '{image_id}' "
                        "could be any; make the image's id the file_name"
                    )
                return found
        return None

    def _document(self, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
        fs, path = open_fs(self._uri, storage_options, field=self.field)
        with storage_errors(self._uri, self.field):
            size = fs.info(path).get("size")
            if size is not None and size > _MOST_BYTES:
                raise InputError(
                    f"{self.field}: '{self._uri}' has {size >> 20} MiB, more than {_MOST_BYTES >> 20}; leave out what "
                    "the lake's images do not need, or give masks"
                )
            data = bytes(fs.cat_file(path))
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.field}: '{self._uri}' is no readable JSON ({error}); {_REMEDY}") from error
        lists = ("images", "annotations")
        if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in lists):
            raise InputError(f"{self.field}: '{self._uri}' has no lists 'images' and 'annotations'; {_REMEDY}")
        return document

    def _pictures(self, document: dict[str, Any]) -> list[_Picture]:
        where = "the categories"
        try:
            names = {entry["id"]: str(entry["name"]) for entry in document.get("categories") or ()}
            pictures: dict[Any, _Picture] = {}
            for number, entry in enumerate(document["images"]):
                where = f"image {number}"
                pictures[entry["id"]] = _Picture(str(entry["file_name"]), _size(entry), [])
            for number, entry in enumerate(document["annotations"]):
                where = f"annotation {number}"
                if entry["image_id"] not in pictures:
                    raise ValueError(f"'image_id' {entry['image_id']!r} is in no image")
                picture = pictures[entry["image_id"]]
                where = f"annotation {number}, of '{picture.file_name}',"
                picture.annotations.append(_annotation(entry, names))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise InputError(f"{self.field}: {where} in '{self._uri}' is wrong ({reason}); {_REMEDY}") from error
        return list(pictures.values())


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    return (int(width), int(height)) if width and height else None


def _annotation(entry: Mapping[str, Any], names: Mapping[Any, str]) -> _Annotation:
    box = None
    if entry.get("bbox"):
        x, y, width, height = entry["bbox"]
        box = as_box([x, y, x + width, y + height])
    polygons: tuple[Polygon, ...] = ()
    runs, size = None, (0, 0)
    drawn = entry.get("segmentation")
    if isinstance(drawn, dict):
        height, width = (int(each) for each in drawn["size"])
        runs, size = _runs(drawn["counts"], height, width), (height, width)
    elif drawn:
        polygons = tuple(_polygon(each) for each in drawn)
    if box is None and runs is None and not polygons:
        raise ValueError("it has neither 'bbox' nor 'segmentation'")
    return _Annotation(names.get(entry.get("category_id")), box, polygons, runs, size)


def _polygon(values: Any) -> Polygon:
    found = np.asarray(values, np.float32)
    if found.ndim != 1 or found.size < 6 or found.size % 2 or not np.isfinite(found).all():
        raise ValueError("a polygon is no list of x, y of three corners at least")
    return found.reshape(-1, 2)


def _runs(counts: Any, height: int, width: int) -> Counts:
    if height < 1 or width < 1 or height * width > _MOST_PIXELS:
        raise ValueError(f"its run lengths are of {width} x {height} pixels")
    found = np.asarray(uncompressed(counts) if isinstance(counts, str) else counts, np.int64)
    if found.ndim != 1 or (found < 0).any() or int(found.sum()) != height * width:
        raise ValueError(f"its run lengths do not fill {width} x {height} pixels")
    return found


def uncompressed(text: str) -> list[int]:
    """Return the run lengths of COCO's text form.

    Five bits per character from the lowest on, the sixth says that more follow, and the last one's fifth is the sign;
    from the fourth number on it is the difference to the one before the last.

    Raises:
        ValueError: the text ends within a number, or has other characters.
    """
    found: list[int] = []
    value = shift = 0
    for code in text.encode():
        part = code - 48
        if not 0 <= part < 64 or shift > 60:
            raise ValueError("its run lengths have a character that is none of COCO's")
        value |= (part & 31) << shift
        shift += 5
        if not part & 32:
            if part & 16:
                value -= 1 << shift
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return found


def unrun(runs: Counts, size: tuple[int, int]) -> Mask:
    """Return the mask (height, width) of run lengths, column by column, the first run outside."""
    height, width = size
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


SOURCE = Coco
