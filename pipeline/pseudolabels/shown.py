"""A picture as a folder for trainers shows it: as it is, as a link, or encoded anew so that the mask lies on it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageOps

from pipeline.pseudolabels.collection import LabelLake
from pipeline.sources.storage import open_fs
from schemas.errors import InputError, LakeError

Layout = Literal["folder", "voc"]
Pictures = Literal["copy", "link", "none"]

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
_UPRIGHT = (None, 1)
_QUALITY = 95


class Shown(NamedTuple):
    """A picture as it is written: its bytes, or the file to link to, or neither; and whether it was encoded anew."""

    suffix: str
    data: bytes | None = None
    target: Path | None = None
    encoded: bool = False


def shown_picture(
    labels: LabelLake, row: Mapping[str, Any], data: bytes, pictures: Pictures, arrangement: Layout
) -> Shown:
    """Return a picture as the folder has it.

    Args:
        labels: the lake.
        row: of the images table.
        data: the encoded picture, where it is copied.
        pictures: ``copy``, ``link`` or ``none``.
        arrangement: with ``voc`` every picture is a JPEG.

    Raises:
        InputError: it cannot be linked to.
        LakeError: it has another size than in the run.
        OSError, ValueError, SyntaxError: it is no picture that Pillow opens.
    """
    if pictures == "none":
        return Shown(".jpg" if arrangement == "voc" else "")
    target = _local_file(row) if pictures == "link" else None
    upright = row["exif_orientation"] in _UPRIGHT
    with Image.open(target if target is not None else io.BytesIO(data)) as opened:
        kind = str(opened.format)
        plain = kind == "JPEG" or arrangement == "folder"
        if upright and plain:
            suffix = _SUFFIXES.get(kind, f".{kind.lower()}")
            return Shown(suffix, None if target is not None else data, target)
        # A mask lies on the pixels that the model saw, and readers do not agree about EXIF: written without it, the
        # picture is the same to all of them.
        job = labels.lake.manifest.job
        turn = job.get("model", {}).get("preprocess", {}).get("exif", "ignore") == "apply"
        picture = (ImageOps.exif_transpose(opened) if turn else opened).convert("RGB")
    if picture.size != (row["width"], row["height"]):
        raise LakeError(
            f"image '{row['image_id']}' is of {picture.size} pixels, and was of {(row['width'], row['height'])} in the "
            "run; has its file changed?"
        )
    picture.info.clear()
    buffer = io.BytesIO()
    kind = "JPEG" if kind == "JPEG" or arrangement == "voc" else "PNG"
    picture.save(buffer, kind, **({"quality": _QUALITY, "subsampling": 0} if kind == "JPEG" else {}))
    return Shown(_SUFFIXES[kind], buffer.getvalue(), encoded=True)


def _local_file(row: Mapping[str, Any]) -> Path:
    fs, path = open_fs(row["uri"], {}, field="--images")
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    file = Path(path)
    if (
        "file" not in protocols
        or row["byte_offset"] != 0
        or not file.is_file()
        or file.stat().st_size != row["byte_size"]
    ):
        raise InputError(
            f"--images link: image '{row['image_id']}' is no whole file on this machine ({row['uri']}); use copy"
        )
    return file.absolute()
