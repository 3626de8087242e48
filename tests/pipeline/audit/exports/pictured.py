"""Lakes whose pictures are there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from pipeline.lake import Lake, open_lake
from tests.pipeline.audit import lakes

#: Changes a row of the images table, and returns the image's bytes.
Draw = Callable[[dict[str, Any]], bytes]


def picture(number: int, kind: str = "PNG", **options: Any) -> bytes:
    """An encoded image of the lakes' size: red grows to the right, green downwards, blue is its number."""
    pixels = np.zeros((lakes.HEIGHT, lakes.WIDTH, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, lakes.WIDTH)
    pixels[..., 1] = np.linspace(0, 255, lakes.HEIGHT)[:, None]
    pixels[..., 2] = number % 256
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def plain(row: dict[str, Any]) -> bytes:
    """A PNG that tells the image's number."""
    return picture(int(row["image_id"][-5:]))


def make_pictured(folder: Path, *, draw: Draw = plain, **options: Any) -> Lake:
    """Write a lake as :func:`tests.pipeline.audit.lakes.make_lake` does, and its pictures beside it."""
    original = lakes._image

    def drawn(unit: str, *given: Any) -> dict[str, Any]:
        row = original(unit, *given)
        data = draw(row)
        shard = folder / f"{unit}.pack"
        shard.parent.mkdir(parents=True, exist_ok=True)
        with shard.open("ab") as file:
            place = {"byte_offset": file.tell(), "byte_size": len(data)}
            file.write(data)
        return {**row, "uri": str(shard), "sha256": hashlib.sha256(data).digest(), **place}

    with mock.patch.object(lakes, "_image", drawn):
        return open_lake(lakes.make_lake(folder / "lake", **options))


def number_of(item: Any) -> int:
    """The number that a picture of :func:`plain` tells."""
    return int(np.asarray(item.picture)[0, 0, 2])
