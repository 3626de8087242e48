"""Contact sheets: a row per image, its picture and an overlay per method side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from pipeline.lake.overlay import overlay
from pipeline.lake.reader import Lake, view_of
from schemas.errors import InputError, LakeError
from schemas.view import View

#: Returns the encoded bytes of an image, given its row of the images table.
Fetch = Callable[[Mapping[str, Any]], bytes]

_MARGIN = 8
_FONT = 14
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)
_RULE = (200, 200, 200)


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet: a caption, and pictures with captions of their own; None leaves a cell empty."""

    caption: str
    cells: Sequence[tuple[str, Image.Image] | None]


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow], cell: int = 224) -> Image.Image:
    """Arrange pictures in a grid, with column heads, a caption over each row and one under each picture.

    Args:
        columns: heads.
        rows: each with as many cells as there are columns.
        cell: most pixels of a picture's longer side; pictures keep their shape.

    Returns:
        RGB image, readable at its own size.

    Raises:
        ValueError: there is no row, or a row has another number of cells.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    for row in rows:
        if len(row.cells) != len(columns):
            raise ValueError(f"row '{row.caption}' has {len(row.cells)} cells, not {len(columns)}")
    font = ImageFont.load_default(_FONT)
    line = _FONT + 6
    step = cell + _MARGIN
    fitted = [[_contained(entry, cell) for entry in row.cells] for row in rows]
    heights = [max((picture.height for picture in row if picture is not None), default=0) for row in fitted]
    sheet = Image.new(
        "RGB",
        (_MARGIN + len(columns) * step, 2 * _MARGIN + line + sum(heights) + len(rows) * (2 * line + _MARGIN)),
        _PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for number, head in enumerate(columns):
        draw.text((_MARGIN + number * step, _MARGIN), _fit(draw, head, cell, font), _INK, font)
    top = 2 * _MARGIN + line
    for row, pictures, height in zip(rows, fitted, heights, strict=True):
        draw.line((_MARGIN, top - _MARGIN // 2, sheet.width - _MARGIN, top - _MARGIN // 2), _RULE)
        draw.text((_MARGIN, top), _fit(draw, row.caption, sheet.width - 2 * _MARGIN, font), _INK, font)
        for number, (entry, picture) in enumerate(zip(row.cells, pictures, strict=True)):
            if entry is None or picture is None:
                continue
            left = _MARGIN + number * step
            sheet.paste(picture, (left + (cell - picture.width) // 2, top + line))
            draw.text((left, top + line + height), _fit(draw, entry[0], cell, font), _INK, font)
        top += height + 2 * line + _MARGIN
    return sheet


def _contained(entry: tuple[str, Image.Image] | None, cell: int) -> Image.Image | None:
    if entry is None:
        return None
    return ImageOps.contain(entry[1].convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int, font: Any) -> str:
    """Shorten a text until it fits into ``width`` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."


def lake_sheet(
    lake: Lake,
    image_ids: Sequence[str],
    *,
    target_class: int | None = None,
    methods: Sequence[str] | None = None,
    alpha: float = 0.5,
    cell: int = 224,
    fetch: Fetch | None = None,
) -> Image.Image:
    """Make the contact sheet of images of a lake: the original, then an overlay per method and layer.

    Args:
        lake: the lake.
        image_ids: one row each.
        target_class: the class whose maps are shown. Default: for each image the class of the largest logit among
            those explained.
        methods: keys of the methods, in order. Default: all of the lake.
        alpha: opacity of the colours.
        cell: most pixels of a picture's longer side.
        fetch: returns the encoded bytes of an image, given its row. Default: one ranged read of ``lake.image_bytes``,
            which cannot serve images that a source packs or compresses.

    Raises:
        InputError: no such image, method, or map of that class.
        LakeError: the image failed, or its picture cannot be fetched any more.
    """
    known = {info.key: info for info in lake.manifest.methods}
    chosen = list(methods) if methods is not None else list(known)
    for method in chosen:
        if method not in known:
            raise InputError(f"{lake.store.uri} holds no method '{method}'; it holds: {', '.join(known)}")
    pairs = [(method, layer) for method in chosen for layer in known[method].layers]
    single = all(len(known[method].layers) == 1 for method in chosen)
    heads = ["image", *(method if single else f"{method} {layer}" for method, layer in pairs)]
    rows = []
    for image_id in image_ids:
        info = lake.image(image_id)
        view = view_of(info)
        data = fetch(info) if fetch else lake.image_bytes(image_id, unit_id=info["unit_id"])
        picture, view = _enlarged(_picture(lake, info, data), view, cell)
        maps = _maps_of(lake, image_id, info["unit_id"], target_class)
        cells: list[tuple[str, Image.Image] | None] = [(_label(info), picture)]
        for method, layer in pairs:
            row = maps.get((method, layer))
            if row is None:
                cells.append(None)
                continue
            values = lake.heatmap(row, scaled=True)
            laid = overlay(picture, values, view, alpha=alpha, signed=known[method].signed)
            cells.append((_target(row), laid))
        rows.append(SheetRow(image_id, cells))
    return contact_sheet(heads, rows, cell)


def _maps_of(
    lake: Lake, image_id: str, unit_id: str, target_class: int | None
) -> dict[tuple[str, str], dict[str, Any]]:
    condition = (pc.field("unit_id") == unit_id) & (pc.field("image_id") == image_id)
    found: list[dict[str, Any]] = lake.maps.to_table(filter=condition).to_pylist()
    if not found:
        raise InputError(f"{lake.store.uri} holds no map of image '{image_id}'; its status is in the images table")
    wanted = min(found, key=lambda row: row["target_rank"])["target_class"] if target_class is None else target_class
    maps = {(row["method"], row["layer"]): row for row in found if row["target_class"] == wanted}
    if not maps:
        classes = sorted({row["target_class"] for row in found})
        raise InputError(
            f"image '{image_id}' has no map of class {wanted}; it has maps of: {', '.join(map(str, classes))}"
        )
    return maps


def _picture(lake: Lake, info: Mapping[str, Any], data: bytes) -> Image.Image:
    try:
        picture: Image.Image = Image.open(io.BytesIO(data))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise LakeError(f"image '{info['image_id']}' does not decode with Pillow ({error})") from error
    exif = lake.manifest.job.get("model", {}).get("preprocess", {}).get("exif", "ignore")
    if exif == "apply":
        picture = ImageOps.exif_transpose(picture)
    if picture.size != (info["width"], info["height"]):
        raise LakeError(
            f"image '{info['image_id']}' is {picture.size} pixels, and was {(info['width'], info['height'])} in the "
            "run; has its file changed?"
        )
    return picture.convert("RGB")


def _enlarged(picture: Image.Image, view: View, cell: int) -> tuple[Image.Image, View]:
    """Enlarge a small picture to the cell before the map is laid over it, so that the map is drawn finely."""
    factor = cell / max(picture.size)
    if factor <= 1:
        return picture, view
    width, height = round(picture.width * factor), round(picture.height * factor)
    x, y = width / picture.width, height / picture.height
    return (
        picture.resize((width, height), Image.Resampling.LANCZOS),
        View(view.x0 * x, view.y0 * y, view.x1 * x, view.y1 * y),
    )


def _label(info: Mapping[str, Any]) -> str:
    name = info["label_name"] if info["label_name"] is not None else info["label"]
    return "no label" if name is None else f"label: {name}"


def _target(row: Mapping[str, Any]) -> str:
    name = row["target_name"] if row["target_name"] is not None else f"class {row['target_class']}"
    return f"{name} ({row['probability']:.0%})"
