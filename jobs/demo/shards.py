"""Scenes as WebDataset shards: plain tar files whose bytes depend on the scenes alone."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.demo.digits import CLASS_NAMES
from jobs.demo.drawing import Bytes
from jobs.demo.scenes import Scene
from schemas.errors import InputError


def write_shards(
    scenes: Sequence[Scene],
    folder: Path,
    *,
    shards: int = 4,
    prefix: str = "scenes",
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write ``scenes`` to ``folder/prefix-000000.tar`` and so on, and return the paths in order.

    A sample is called ``scene-000123`` and has four members: ``.png`` (the image), ``.cls`` (class index of the main
    label), ``.json`` (see :func:`describe`) and ``.mask.png`` (8-bit: 0 background, i + 1 digit i of ``labels``, 255
    the sticker). Owners and times are fixed, so the same scenes give the same bytes. The shards' sizes differ by one
    scene at most. ``progress`` is told the number of scenes of each finished shard.

    Raises:
        InputError: there are fewer scenes than shards, or the folder holds shards of an earlier run of another number.
    """
    if not 1 <= shards <= len(scenes):
        raise InputError(f"shards is {shards} for {len(scenes)} scenes; give 1 to {len(scenes)}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}-{number:06d}.tar" for number in range(shards)]
    stale = sorted(set(folder.glob(f"{prefix}-*.tar")) - set(paths))
    if stale:
        raise InputError(
            f"'{folder}' already holds other shards, such as {stale[0].name}; remove them or use a new folder"
        )
    for number, path in enumerate(paths):
        start, stop = (len(scenes) * edge // shards for edge in (number, number + 1))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(start, stop):
                for suffix, data in _members(scenes[index], f"scene-{index:06d}"):
                    header = tarfile.TarInfo(f"scene-{index:06d}.{suffix}")
                    header.size = len(data)
                    header.mode = 0o644
                    tar.addfile(header, io.BytesIO(data))
        if progress is not None:
            progress(stop - start)
    return paths


def describe(scene: Scene, name: str) -> dict[str, Any]:
    """Return what the ``.json`` member says of a scene.

    ``id``; ``label`` and ``label_name`` of the main digit; ``labels``, ``label_names`` and ``boxes`` ([x0, y0, x1, y1]
    in pixels, edges) of all digits by falling visible area; ``site``; ``sticker`` (true or false) and ``sticker_box``
    (null without one); ``background``, the kind of texture.
    """
    return {
        "id": name,
        "label": scene.labels[0],
        "label_name": CLASS_NAMES[scene.labels[0]],
        "labels": list(scene.labels),
        "label_names": [CLASS_NAMES[label] for label in scene.labels],
        "boxes": [list(box) for box in scene.boxes],
        "site": scene.site,
        "sticker": scene.sticker is not None,
        "sticker_box": None if scene.sticker is None else list(scene.sticker),
        "background": scene.background,
    }


def _members(scene: Scene, name: str) -> list[tuple[str, bytes]]:
    return [
        ("png", _png(scene.pixels)),
        ("cls", str(scene.labels[0]).encode()),
        ("json", json.dumps(describe(scene, name), separators=(",", ":")).encode()),
        ("mask.png", _png(scene.masks)),
    ]


def _png(pixels: Bytes) -> bytes:
    """Encode (H, W, 3) as RGB or (H, W) as grey; lossless, so that masks and pixels are those that were drawn."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
