"""Images that a dataset may hold and nobody wants: what each is, and what has to become of it.

``python -m tests.hostile FOLDER`` writes them as files, and the containers of ``tests.hostile_containers`` beside them.
"""

from __future__ import annotations

import functools
import io
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, features

#: (width, height) of the pictures that the hostile images are made of.
SIZE = (40, 30)

_CUT = "cut off|truncated|damaged"
_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_NO_FORM = "not an image of a known format"


@dataclass(frozen=True)
class Hostile:
    """An image's bytes and size; ``reason`` is a pattern of the words why it fails (None: it is explained)."""

    data: bytes
    reason: str | None = None
    size: tuple[int, int] = SIZE


def pixels(seed: int, size: tuple[int, int] = SIZE) -> npt.NDArray[np.uint8]:
    """A picture (height, width, 3) of its own for every seed: a slope of colours, and noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0 : 1 : size[1] * 1j, 0 : 1 : size[0] * 1j]
    slope = np.stack([down, across, (down + across) / 2], 2) * rng.uniform(60, 180, 3)
    return (slope + rng.uniform(0, 70, slope.shape)).astype(np.uint8)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as a file of a format that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    """:func:`pixels` in a mode of Pillow."""
    return Image.fromarray(pixels(seed)).convert(mode)


def png(
    width: int, height: int, rows: bytes, *, bits: int = 8, kind: int = 2, interlaced: bool = False, more: bytes = b""
) -> bytes:
    """A PNG of filtered ``rows``, with ``more`` chunks before them; what it says of itself need not be true."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    return _PNG + header + more + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def interlaced(seed: int) -> bytes:
    """A PNG in Adam7 order, which Pillow cannot write."""
    values = pixels(seed)
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [values[top::down, left::across] for top, left, down, across in passes]
    return png(*SIZE, b"".join(b"\0" + row.tobytes() for part in parts for row in part), interlaced=True)


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """A baseline JPEG whose header says another size than its scan has."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def as_ycck(data: bytes) -> bytes:
    """A CMYK JPEG whose Adobe marker says that its channels are YCCK."""
    place = data.index(b"Adobe") + 11
    return data[:place] + b"\2" + data[place + 1 :]


def oriented(seed: int, orientation: int, form: str = "JPEG") -> bytes:
    """A picture with an EXIF orientation."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return encode(picture(seed), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))


def damaged_exif(seed: int) -> bytes:
    """A JPEG whose EXIF directory says that it has 65535 entries, and has none."""
    body = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    marker = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = encode(picture(seed), "JPEG")
    return data[:2] + marker + data[2:]


def icon_of(image: bytes) -> bytes:
    """A Windows icon that says it is 16 x 16 and holds a PNG."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(image), 22) + image


@functools.cache
def images() -> dict[str, Hostile]:
    """All hostile images by file name; the bytes of no two are the same."""
    return {**_no_images(), **_cut(), **_kinds(), **_rare(), **_metadata(), **_sizes(), **_damaged()}


def _no_images() -> dict[str, Hostile]:
    page = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    return {
        "empty.jpg": Hostile(b"", "empty"),
        "page.jpg": Hostile(page, "HTML page"),
        "page behind blanks.png": Hostile(b"\r\n  \t" + page, "HTML page"),
        "text.jpg": Hostile(b"this is no image\n" * 9, _NO_FORM),
        "reply.jpg": Hostile(b'{"error": "rate limited"}', _NO_FORM),
        "zeros.jpg": Hostile(bytes(4096), _NO_FORM),
        "noise.jpg": Hostile(b"\x17" + np.random.default_rng(1).bytes(4000), _NO_FORM),
        "drawing.svg": Hostile(b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>', _NO_FORM),
        # Pillow would hand it to Ghostscript.
        "program.jpg": Hostile(encode(picture(2), "EPS"), "PostScript"),
    }


def _cut() -> dict[str, Hostile]:
    found = {}
    for seed, form in enumerate(("JPEG", "PNG", "WEBP", "GIF"), 10):
        data = encode(picture(seed), form)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            found[f"cut at {share:.0%}.{form.lower()}"] = Hostile(data[: int(share * len(data))], _CUT)
        for count in (1, 3, 9, 12, 27):
            found[f"only {count}.{form.lower()}"] = Hostile(data[:count], f"{_CUT}|{_NO_FORM}")
    return found


def _kinds() -> dict[str, Hostile]:
    words = (np.random.default_rng(3).integers(0, 1 << 16, (*SIZE[::-1], 3))).astype(">u2")
    frames = [picture(seed) for seed in (20, 21, 22)]
    opacity = Image.fromarray(pixels(23)[:, :, 0])
    faded = picture(24, "RGBA")
    faded.putalpha(opacity)
    palette = picture(25).quantize(16)
    return {
        "cmyk.jpg": Hostile(encode(picture(26, "CMYK"), "JPEG")),
        "ycck.jpg": Hostile(as_ycck(encode(picture(27, "CMYK"), "JPEG"))),
        "cmyk.tif": Hostile(encode(picture(28, "CMYK"), "TIFF")),
        "grey.jpg": Hostile(encode(picture(29, "L"), "JPEG")),
        "progressive.jpg": Hostile(encode(picture(30), "JPEG", progressive=True)),
        "grey of 16 bits.png": Hostile(encode(Image.fromarray(words[:, :, 0].astype(np.uint16)), "PNG")),
        "colour of 16 bits.png": Hostile(png(*SIZE, b"".join(b"\0" + row.tobytes() for row in words), bits=16)),
        "grey of 16 bits.pgm": Hostile(b"P5\n%d %d\n65535\n" % SIZE + words[:, :, 1].tobytes()),
        "one bit.png": Hostile(encode(picture(31, "1"), "PNG")),
        "palette with transparency.png": Hostile(encode(palette, "PNG", transparency=bytes(range(0, 256, 16)))),
        "palette with transparency.gif": Hostile(encode(palette, "GIF", transparency=3)),
        "grey and alpha.png": Hostile(encode(Image.merge("LA", [picture(32, "L"), opacity]), "PNG")),
        "colour and alpha.png": Hostile(encode(faded, "PNG")),
        "colour and alpha.webp": Hostile(encode(faded, "WEBP", lossless=True)),
        "animated.gif": Hostile(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "animated.webp": Hostile(encode(frames[1], "WEBP", save_all=True, append_images=frames, lossless=True)),
        "animated.png": Hostile(encode(frames[2], "PNG", save_all=True, append_images=frames[:2])),
        "pages.tif": Hostile(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])),
        "interlaced.png": Hostile(interlaced(33)),
        "plain.bmp": Hostile(encode(picture(34), "BMP")),
        "compressed.tif": Hostile(encode(picture(35), "TIFF", compression="tiff_lzw")),
        "fractions.tif": Hostile(encode(Image.fromarray(pixels(36)[:, :, 0] / np.float32(255)), "TIFF"), "32-bit"),
        "counts.tif": Hostile(encode(Image.fromarray(pixels(37)[:, :, 0].astype(np.int32) * 999), "TIFF"), "32-bit"),
    }


def _rare() -> dict[str, Hostile]:
    """Formats that not every Pillow reads."""
    found = {}
    if features.check("jpg_2000"):
        data = encode(picture(38), "JPEG2000")
        found |= {"plain.jp2": Hostile(data), "cut at 60%.jp2": Hostile(data[: int(0.6 * len(data))], _CUT)}
    if features.check("avif"):
        data = encode(picture(39), "AVIF")
        place = data.index(b"mdat") + 4
        damaged = data[:place] + b"\xff" * (len(data) - place)
        found |= {"plain.avif": Hostile(data), "damaged.avif": Hostile(damaged, _CUT)}
    return found


def _metadata() -> dict[str, Hostile]:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {f"orientation {value}.jpg": Hostile(oriented(40 + value, value)) for value in range(1, 9)}
    found |= {f"orientation 6.{form.lower()}": Hostile(oriented(50, 6, form)) for form in ("PNG", "WEBP")}
    return found | {
        "orientation 0.jpg": Hostile(oriented(51, 0)),
        "orientation 99.jpg": Hostile(oriented(52, 99)),
        "damaged exif.jpg": Hostile(damaged_exif(53)),
        "profile.jpg": Hostile(encode(picture(54), "JPEG", icc_profile=profile)),
        "profile.png": Hostile(encode(picture(55), "PNG", icc_profile=profile)),
        "damaged profile.jpg": Hostile(encode(picture(56), "JPEG", icc_profile=profile[:100] + b"\xff" * 900)),
    }


def _sizes() -> dict[str, Hostile]:
    data = encode(picture(60), "JPEG")
    rows = bytes((20_000 // 8 + 1) * 20_000)
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9))
    line = pixels(61, (1, 20_000))
    claim = png(100_000, 100_000, bytes(1000))
    return {
        # What the scan lacks is grey, and what it has too much is left out, as in every reader of JPEG.
        "header too tall.jpg": Hostile(with_jpeg_size(data, 40, 60), None, (40, 60)),
        "header too wide.jpg": Hostile(with_jpeg_size(data, 80, 30), None, (80, 30)),
        "header too short.jpg": Hostile(with_jpeg_size(data, 40, 10), None, (40, 10)),
        "header too narrow.jpg": Hostile(with_jpeg_size(data, 16, 30), None, (16, 30)),
        "no size.jpg": Hostile(with_jpeg_size(data, 0, 0), _CUT),
        "one pixel.png": Hostile(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), None, (1, 1)),
        "one pixel.jpg": Hostile(encode(Image.new("RGB", (1, 1), (7, 8, 9)), "JPEG"), None, (1, 1)),
        "1x20000.png": Hostile(encode(Image.fromarray(line), "PNG"), "after the resize", (1, 20_000)),
        "20000x1.png": Hostile(encode(Image.fromarray(line[::-1, 0][None]), "PNG"), "after the resize", (20_000, 1)),
        "bomb by its header.png": Hostile(claim, "pixels"),
        "bomb by its header.jpg": Hostile(with_jpeg_size(data, 65_500, 65_500), "pixels"),
        "bomb by its header.gif": Hostile(
            b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\0\0\0;", "pixels|damaged"
        ),
        "bomb.png": Hostile(png(20_000, 20_000, rows, bits=1, kind=0), "pixels"),
        "bomb in an icon.ico": Hostile(icon_of(claim), "pixels|damaged"),
        "bomb of text.png": Hostile(png(*SIZE, bytes(30 * 121), more=text), "too large|damaged"),
    }


def _damaged() -> dict[str, Hostile]:
    data, other = encode(picture(70), "JPEG"), encode(picture(71), "PNG")
    flipped = bytearray(other)
    flipped[other.index(b"IDAT") + 40] ^= 0xFF
    wrong_sum = bytearray(encode(picture(72), "PNG"))
    wrong_sum[29] ^= 0xFF
    headless = bytearray(encode(picture(73), "JPEG"))
    place = headless.index(b"\xff\xc4")
    del headless[place : place + 2 + struct.unpack(">H", headless[place + 2 : place + 4])[0]]
    return {
        "garbage behind.jpg": Hostile(data + b"garbage" * 99),
        "garbage before.jpg": Hostile(b"garbage" * 3 + data, _NO_FORM),
        "two in one.jpg": Hostile(encode(picture(74), "JPEG") + data),
        "garbage behind.png": Hostile(other + b"garbage" * 99),
        "wrong checksum.png": Hostile(bytes(wrong_sum), _CUT),
        "flipped byte.png": Hostile(bytes(flipped), _CUT),
        "no rows.png": Hostile(_PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0)), _CUT),
        # Readers tell nothing of these: what lacks is black, grey, and the usual table.
        "too few rows.png": Hostile(png(*SIZE, bytes(5 * 121))),
        "no palette.png": Hostile(png(*SIZE, bytes(30 * 41), kind=3)),
        "no table.jpg": Hostile(bytes(headless)),
    }


def main(folder: Path) -> None:
    """Write all hostile images and containers as files."""
    from tests.hostile_containers import containers  # it needs this module

    for place, found in (("images", images()), ("containers", containers())):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name, item in found.items():
            (folder / place / name).write_bytes(item.data)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.hostile FOLDER")
    main(Path(sys.argv[1]))
