"""A folder of PNG masks, one per image: plain ones, or ids of classes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.audit.regions.base import Region, RegionSource, read_if_there, scaled_mask, stems
from pipeline.lake.parallel import Once
from pipeline.sources.storage import open_fs
from schemas.errors import InputError

_CLASSES = "classes.json"
_CLASSES_BYTES = 16 << 20
_MOST_BYTES = 64 << 20
#: Larger pictures are not decoded.
_MOST_PIXELS = 80_000_000
#: Decoded masks that are kept: an image is asked for once per explained class.
_CACHE = 2
#: Id of pixels that are no class and no background, in Pascal VOC and its like.
_VOID = 255
_MODES = ("1", "L", "LA", "P", "I", "I;16", "I;16B", "RGB", "RGBA")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Masks(RegionSource):
    """``FOLDER/STEM.png``, else ``FOLDER/IMAGE_ID.png``; what is not 0 is the object. Others are unknown.

    With ``classes.json`` (``{"1": "cat", ...}``, in the folder or the one above) pixels are ids, and those of the
    explained class are its region. 255 is void and belongs to no region, except in a mask of 0 and 255 alone.
    """

    field = "--masks"

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._uri = uri.rstrip("/")
        self._options = storage_options
        self._fs, self._path = open_fs(self._uri, storage_options, field=self.field)
        self._classes = self._read_classes()
        self._read = Once(self._read_mask, _CACHE)

    def region(self, image: Mapping[str, Any], target_class: int, target_name: str | None) -> Region | None:
        """See :meth:`RegionSource.region`; None also where no pixel is of the class."""
        found = self._read(str(image["image_id"]))
        if found is None:
            return None
        name, ids = found
        if self._classes is None:
            mask = ids != 0
            void = ids == _VOID
            if bool((mask & ~void).any()):
                mask &= ~void
        else:
            meant = [
                each
                for each, called in self._classes.items()
                if each not in (0, _VOID) and self._is_meant(called, target_class, target_name)
            ]
            mask = np.isin(ids, meant)
        if not mask.any():
            return None
        return Region(mask=scaled_mask(mask, image, self.field, f"'{self._uri}/{name}'"))

    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        """See :meth:`RegionSource.names`."""
        if self._read(str(image["image_id"])) is None:
            return None
        return frozenset() if self._classes is None else frozenset(self._classes.values())

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to workers as what it was made of: caches and connections are each process's own."""
        return type(self), (self._uri, self._options), {"any_class": self.any_class}

    def about(self) -> str:
        """See :meth:`RegionSource.about`."""
        return f"masks in {self._uri}"

    def _read_classes(self) -> dict[int, str] | None:
        above = self._path.rpartition("/")[0]
        for path, where in ((self._path, self._uri), (above, self._uri.rpartition("/")[0])):
            where = f"{where}/{_CLASSES}"
            data = read_if_there(self._fs, f"{path}/{_CLASSES}", where, self.field, _CLASSES_BYTES) if path else None
            if data is None:
                continue
            try:
                return {int(each): str(name) for each, name in json.loads(data).items()}
            except (ValueError, AttributeError, RecursionError) as error:
                raise InputError(
                    f'{self.field}: \'{where}\' does not name ids ({error}); write {{"1": "cat", "2": "dog"}}'
                ) from error
        return None

    def _read_mask(self, image_id: str) -> tuple[str, npt.NDArray[Any]] | None:
        for stem in stems(image_id):
            name = f"{stem}.png"
            where = f"{self._uri}/{name}"
            data = read_if_there(self._fs, f"{self._path}/{name}", where, self.field, _MOST_BYTES)
            if data is None:
                continue
            try:
                return name, decoded(data, coloured=self._classes is None)
            except (OSError, ValueError, SyntaxError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{self.field}: '{where}', the mask of image '{image_id}', cannot be used ({reason}); write it as "
                    "a grey or palette PNG"
                ) from error
        return None


def decoded(data: bytes, *, coloured: bool) -> npt.NDArray[Any]:
    """Return the ids (H, W) of a PNG: grey values, or numbers of the palette; of colours, whether any is not 0.

    Raises:
        OSError, ValueError, SyntaxError: it cannot be decoded, is too large, or has colours where ids are wanted.
    """
    if data[:8] != _SIGNATURE or len(data) < 24:
        raise ValueError("it is no PNG")
    width, height = struct.unpack(">II", data[16:24])
    # Before the decoder sees it, which would warn of large ones.
    if width * height > _MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels")
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode not in _MODES:
            raise ValueError(f"its mode is {image.mode}")
        if image.mode in ("RGB", "RGBA") and not coloured:
            raise ValueError("it has colours, which are no ids")
        values: npt.NDArray[Any] = np.asarray(image)
    if values.ndim == 2:
        return values
    return np.asarray(values[..., 0] if values.shape[2] == 2 else values[..., :3].any(2))


SOURCE = Masks
