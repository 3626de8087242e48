"""Decoding of one image to uint8 RGB.

torchvision decodes JPEG (about twice as fast as Pillow, the same pixels: both are libjpeg-turbo), Pillow everything
else and whatever torchvision refuses. torchvision is given no PNG: one damaged byte ends the whole process there
(segmentation fault, torchvision 0.29). The pixels are those of Pillow's ``convert("RGB")``: grey is repeated, palettes
are looked up, an alpha channel is dropped (not composited), CMYK is converted, and of an animation the first frame is
taken. The one exception is 16-bit grey, which Pillow would clip: it is scaled to 8 bits by its high byte, as Pillow
itself does for 16-bit colour. Grey of 32 bits has no scale that could be known, and is refused.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from schemas.errors import CamlakeError

#: Images of more pixels are refused by their header, before anything is allocated. It is the number above which
#: Pillow refuses too.
MAX_PIXELS = 178_956_970

_ORIENTATION_TAG = 0x0112
_RGB_MODE = 3  # torchvision.io.ImageReadMode.RGB
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_BOMB = f"the image has more pixels than the limit of {MAX_PIXELS}; shrink it before the job"
_HIGH_BYTE_MODES = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
# In these formats Pillow's 32-bit mode "I" holds 16-bit grey.
_16_BIT_FORMATS = ("PNG", "PPM")

# Pillow warns at half of the number above which it refuses. We refuse at that number, and the warning would only fill
# the logs of a worker. Set once at import, because warnings.catch_warnings is not safe in threads that decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class DecodeError(CamlakeError):
    """The bytes are no image that can be decoded; the message is one sentence without the file's name."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    ``pixels`` (3, H, W) uint8 RGB on the CPU, its memory interleaved (H, W, 3) as resizing wants it; ``decoder``
    'torchvision' or 'pillow'; ``exif_orientation`` the EXIF tag, 1 to 8, or None where the file has none (or one of no
    meaning).
    """

    pixels: Tensor
    decoder: str
    exif_orientation: int | None


def decode(data: bytes, *, exif: Literal["ignore", "apply"] = "ignore") -> Decoded:
    """Decode an encoded image.

    Args:
        data: the file's bytes.
        exif: 'apply' turns and flips the pixels as the EXIF orientation says, 'ignore' leaves them as they are stored.
            (Pillow applies the orientation of TIFF files in any case; their tag then reads None.)

    Raises:
        DecodeError: empty, truncated, not an image, of 32-bit numbers, or larger than :data:`MAX_PIXELS`.
    """
    header = _open(data)
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise DecodeError(
            f"the image has {width} x {height} pixels, more than the limit of {MAX_PIXELS}; shrink it before the job"
        )
    pixels = _with_torchvision(data) if data.startswith(_JPEG) else None
    decoder = "torchvision"
    if pixels is None:
        pixels = _with_pillow(header)
        decoder = "pillow"
    orientation = _orientation(header)
    if exif == "apply" and orientation is not None:
        pixels = oriented(pixels, orientation)
    return Decoded(pixels, decoder, orientation)


def oriented(pixels: Tensor, orientation: int) -> Tensor:
    """Return (3, H, W) pixels turned and flipped as EXIF orientation 1 to 8 says (5 to 8 swap height and width)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation, [])
    return pixels.flip(flips) if flips else pixels


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    if not data:
        raise DecodeError("the image is empty (0 bytes)")
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise DecodeError(_not_an_image(data)) from None
    except Image.DecompressionBombError:
        raise DecodeError(_BOMB) from None
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes; one image, one row
        raise DecodeError(f"the image's header cannot be read, it is damaged or cut off ({_words(error)})") from error


def _not_an_image(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, not an image; perhaps a server's error page was saved under an image's name"
    if data.startswith((_JPEG, _PNG, b"GIF8", b"RIFF")):
        return f"the image is cut off or damaged in its header ({len(data)} bytes)"
    return f"it is not an image of a known format ({len(data)} bytes, beginning {data[:8].hex(' ')})"


@functools.cache
def _torchvision_op() -> Callable[[Tensor, int, bool], Tensor] | None:
    """Return torchvision's compiled decoder, or None where this installation has none.

    The compiled operator, not ``torchvision.io.decode_image`` around it: since 0.29 that function warns at every call
    that it will move to another package. When it goes, Pillow decodes.
    """
    try:
        # Inside, because a torchvision that does not fit its torch fails on import (with RuntimeError: "operator
        # torchvision::nms does not exist"), and images can be decoded without it.
        import torchvision.io  # noqa: F401  (registers the operator)

        operator: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_image
    except (ImportError, AttributeError, RuntimeError):
        return None
    return operator


def _with_torchvision(data: bytes) -> Tensor | None:
    """Decode with torchvision; None where it cannot, and Pillow then decides what is wrong."""
    operator = _torchvision_op()
    if operator is None:
        return None
    try:
        return operator(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB_MODE, False)
    except (RuntimeError, ValueError):
        return None


def _with_pillow(image: Image.Image) -> Tensor:
    if image.format == "EPS":  # Pillow would run Ghostscript, and the file is the program
        raise DecodeError("it is a PostScript program, not an image of pixels; convert it before the job")
    try:
        if image.mode in _HIGH_BYTE_MODES or (image.mode == "I" and image.format in _16_BIT_FORMATS):
            return _grey(_words_of_16_bits(image))
        if image.mode in ("I", "F"):
            raise DecodeError(f"the image has 32-bit numbers (mode {image.mode}); convert it to 8 or 16 bits")
        array = np.array(image.convert("RGB"))
    except DecodeError:
        raise
    except Image.DecompressionBombError:  # an icon may hold an image of another size than its header says
        raise DecodeError(_BOMB) from None
    except MemoryError as error:
        size = f"{image.width} x {image.height}"
        raise DecodeError(f"the memory does not suffice to decode {size} pixels; shrink it before the job") from error
    except Exception as error:  # Pillow's plugins raise anything on damaged bytes; one image, one row
        raise DecodeError(f"the image is truncated or damaged ({_words(error)})") from error
    return torch.from_numpy(array).permute(2, 0, 1)


def _words_of_16_bits(image: Image.Image) -> np.ndarray:
    if image.mode == "I":
        return np.array(image).clip(0, 0xFFFF).astype(np.uint16)
    image.load()
    return np.frombuffer(image.tobytes(), dtype=_HIGH_BYTE_MODES[image.mode]).reshape(image.height, image.width)


def _grey(words: np.ndarray) -> Tensor:
    grey = (words >> 8).astype(np.uint8)
    return torch.from_numpy(np.repeat(grey[:, :, None], 3, axis=2)).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int | None:
    if image.format == "GIF":  # has no EXIF, and asking would read on
        return None
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - as above
        return None  # damaged metadata of a good image: it has no orientation that can be read
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
