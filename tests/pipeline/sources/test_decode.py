"""Decoding: the pixels of Pillow's convert("RGB"), and one sentence for what is no image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import pipeline.sources.decode as module
from pipeline.sources.decode import DecodeError, decode

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(mode: str) -> Image.Image:
    if mode in ("RGB", "L", "1", "CMYK"):
        return Image.fromarray(COLOUR).convert(mode)
    if mode == "P":
        return Image.fromarray(COLOUR).quantize(16)
    bands = [Image.fromarray(RNG.integers(0, 256, (13, 17), dtype=np.uint8)) for _ in mode]
    return Image.merge(mode, bands)  # LA, RGBA


def pillow(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


CASES = [
    *[("PNG", mode, {}, "pillow") for mode in ("RGB", "L", "1", "P", "LA", "RGBA")],
    ("PNG", "P", {"transparency": 3}, "pillow"),
    *[("JPEG", mode, {}, "torchvision") for mode in ("RGB", "L", "CMYK")],
    ("JPEG", "RGB", {"progressive": True, "subsampling": 2}, "torchvision"),
    ("BMP", "RGB", {}, "pillow"),
    ("GIF", "P", {}, "pillow"),
    ("WEBP", "RGBA", {"lossless": True}, "pillow"),
    ("TIFF", "CMYK", {}, "pillow"),
]


@pytest.mark.parametrize(("form", "mode", "options", "decoder"), CASES, ids=lambda value: str(value))
def test_pixels_are_pillows(form: str, mode: str, options: dict, decoder: str) -> None:
    data = encode(picture(mode), form, **options)
    decoded = decode(data)
    assert decoded.decoder == decoder
    assert decoded.pixels.dtype == torch.uint8
    assert decoded.pixels.shape == (3, 13, 17)
    assert decoded.pixels.permute(1, 2, 0).is_contiguous()
    assert torch.equal(decoded.pixels, pillow(data))
    assert decoded.exif_orientation is None


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF"])
def test_animation_is_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    extra = {"lossless": True} if form == "WEBP" else {}
    decoded = decode(encode(frames[0], form, save_all=True, append_images=frames[1:], **extra))
    assert decoded.pixels[:, 3, 3].tolist() == [200, 0, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    words = np.arange(0, 65536, 257 * 3, dtype=np.uint16).reshape(-1, 2)[:20]
    decoded = decode(encode(Image.fromarray(words), form))
    assert torch.equal(decoded.pixels, torch.from_numpy((words >> 8).astype(np.uint8)).expand(3, -1, -1))
    assert decoded.pixels.float().std() > 10  # a clipped image is white but for its first cell


def test_16_bit_colour_png_is_as_pillow_has_it() -> None:
    words = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in words)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    decoded = decode(data)
    assert torch.equal(decoded.pixels, torch.from_numpy((words >> 8).astype(np.uint8)).permute(2, 0, 1))
    assert torch.equal(decoded.pixels, pillow(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(COLOUR), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    stored, applied = decode(data), decode(data, exif="apply")
    assert stored.exif_orientation == applied.exif_orientation == orientation
    assert torch.equal(stored.pixels, pillow(data))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert torch.equal(applied.pixels, torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1))


def test_orientation_without_meaning_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    decoded = decode(encode(Image.fromarray(COLOUR), "JPEG", exif=exif), exif="apply")
    assert decoded.exif_orientation is None
    assert decoded.pixels.shape == (3, 13, 17)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_is_an_error_not_half_an_image(form: str, share: float) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    data = encode(noise, form)
    with pytest.raises(DecodeError, match=r"truncated|cut off|damaged"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"hello, world", "not an image of a known format .12 bytes"),
        (b"\xff\xd8\xff\xe0", "cut off or damaged in its header"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cut off|damaged"),
    ],
)
def test_no_image(data: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
def test_damage_in_any_byte_of_the_header_is_a_decode_error_or_an_image() -> None:
    """torchvision 0.29 ends the process on most of these PNGs."""
    for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        good = encode(Image.fromarray(COLOUR), form)
        for place in range(min(len(good), 64)):
            bad = bytearray(good)
            bad[place] ^= 0x55
            try:
                assert decode(bytes(bad)).pixels.dim() == 3
            except DecodeError as error:
                assert "\n" not in str(error)


def test_too_many_pixels_are_refused_by_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.fromarray(COLOUR), "PNG")
    monkeypatch.setattr(module, "MAX_PIXELS", 13 * 17)
    decode(data)
    monkeypatch.setattr(module, "MAX_PIXELS", 13 * 17 - 1)
    with pytest.raises(DecodeError, match="17 x 13 pixels, more than the limit of 220"):
        decode(data)


def test_bomb_is_refused_without_being_decoded() -> None:
    good = bytearray(encode(Image.fromarray(COLOUR), "PNG"))
    good[16:24] = struct.pack(">II", 60_000, 60_000)
    good[29:33] = struct.pack(">I", zlib.crc32(bytes(good[12:29])))
    with pytest.raises(DecodeError, match="more pixels than the limit"):
        decode(bytes(good))


def test_works_where_torchvision_does_not_import() -> None:
    """A torchvision that does not fit its torch raises on import: the room imports, and Pillow decodes."""
    program = (
        "import sys, io; sys.modules['torchvision'] = None; sys.modules['torchvision.io'] = None\n"
        "from PIL import Image\n"
        "from pipeline.sources.decode import decode\n"
        "b = io.BytesIO(); Image.new('RGB', (4, 3), (9, 8, 7)).save(b, 'PNG')\n"
        "d = decode(b.getvalue()); assert d.decoder == 'pillow' and d.pixels[:, 0, 0].tolist() == [9, 8, 7]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
