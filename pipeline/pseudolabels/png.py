"""Index and confidence images as PNG, and back.

An index image holds an id per pixel: mode ``L`` for ids of 8 bits (or ``P`` with Pascal VOC's colours, which change
nothing but what a viewer shows), ``I;16`` for more. Trainers read them as they are; ``.convert("L")`` of mode ``P``
gives the brightness of the colours instead of the ids.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.audit.regions.masks import decoded
from schemas.errors import InputError
from schemas.pseudolabels import IGNORE_8, IGNORE_16

Index = npt.NDArray[np.unsignedinteger[Any]]
Palette = Literal["none", "voc"]


def index_dtype(highest_id: int, palette: Palette = "none") -> npt.DTypeLike:
    """Return the type of index images whose highest id is given: uint8 (ignore 255), else uint16 (ignore 65535).

    Raises:
        InputError: a palette is asked for, and there are more ids than it has colours; or ids of more than 16 bits.
    """
    if highest_id < IGNORE_8:
        return np.uint8
    if palette != "none":
        raise InputError(
            f"pseudo_labels.files.palette is '{palette}', and the highest class id is {highest_id}: a palette has 256 "
            "colours; use palette 'none', or name fewer classes in pseudo_labels.classes"
        )
    if highest_id >= IGNORE_16:
        raise InputError(f"the highest class id is {highest_id}; index images hold ids up to {IGNORE_16 - 1}")
    return np.uint16


def ignore_value(dtype: npt.DTypeLike) -> int:
    """Return the value of pixels that no class is claimed for, in index images of a type."""
    return IGNORE_8 if np.dtype(dtype) == np.uint8 else IGNORE_16


@cache
def voc_palette() -> bytes:
    """Return Pascal VOC's 256 colours (768 bytes): bits 0, 3 and 6 of an id make its red, and so on, highest first."""
    ids = np.arange(256, dtype=np.uint8)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> channel) & 1) << (7 - bit)
        ids >>= 3
    return colours.tobytes()


def encode_index(index: Index, palette: Palette = "none") -> bytes:
    """Return an index image (H, W) uint8 or uint16 as PNG: mode L, P with ``palette='voc'``, or I;16.

    Raises:
        ValueError: another type or shape, or a palette for 16 bits.
    """
    if index.ndim != 2 or index.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an index image is (H, W) of uint8 or uint16, not {index.shape} of {index.dtype}")
    if index.dtype == np.uint16 and palette != "none":
        raise ValueError("an image of 16 bits has no palette")
    image = Image.fromarray(np.ascontiguousarray(index))
    if palette == "voc":
        image.putpalette(voc_palette())
    return _png(image)


def encode_confidence(confidence: npt.NDArray[np.float32]) -> bytes:
    """Return scores (H, W) in [0, 1] as PNG of mode L in steps of 1/255; what is not finite becomes 0."""
    shares = np.nan_to_num(confidence, nan=0.0, posinf=0.0, neginf=0.0)
    return _png(Image.fromarray(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)))


def decode_index(data: bytes) -> Index:
    """Return the ids (H, W) of a PNG of mode 1, L, P or I;16; of a palette image its ids, not its colours.

    Raises:
        OSError, ValueError, SyntaxError: it is no PNG that can be decoded, or its pixels are no ids.
    """
    values = decoded(data, coloured=False)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype in (np.uint8, np.uint16):
        return np.asarray(values)
    if values.size and (values.min() < 0 or values.max() > IGNORE_16):
        raise ValueError("it has values of more than 16 bits")
    return values.astype(np.uint16)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
