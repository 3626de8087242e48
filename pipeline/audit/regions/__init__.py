"""Where the objects are: boxes and masks, from the lake's columns or from files of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.regions.base import PIXELS, Region, RegionSource, class_keys, plain_name
from pipeline.lake import Lake
from pipeline.sources.storage import open_fs, storage_errors
from schemas.audit import Settings
from schemas.errors import InputError, did_you_mean
from schemas.registries import REGIONS, implementation

#: Units and images of each that are asked for names; and how many known ones are enough.
_UNITS, _IMAGES, _ENOUGH = 32, 32, 64


def open_regions(
    settings: Settings, lake: Lake, storage_options: Mapping[str, Any] | None = None
) -> RegionSource | None:
    """Return where the objects are, as the settings say; None where they say nothing.

    A few images of the lake are looked up, to see whether ids match and whether the objects' names are the model's
    classes: if none is, all objects count for every class.

    Args:
        settings: ``boxes`` is a text column of the images table, else a COCO file (``.json``), else a folder of Pascal
            VOC files; ``masks`` is a folder of PNG files.
        lake: the lake.
        storage_options: of the file system of ``boxes`` or ``masks``.

    Raises:
        InputError: there is no such column, file or folder, it cannot be read, or it knows none of the images.
    """
    if settings.boxes is not None and settings.masks is not None:
        raise InputError("--boxes and --masks both say where the objects are; give one of them")
    if settings.masks is not None:
        _check_folder(settings.masks, "--masks", storage_options)
        return _known(implementation(REGIONS, "regions", "masks").SOURCE(settings.masks, storage_options), lake)
    if settings.boxes is None:
        return None
    boxes, attributes = settings.boxes, lake.manifest.attributes
    if boxes in attributes:
        if attributes[boxes] != "string":
            raise InputError(
                f"--boxes: the column '{boxes}' is of type {attributes[boxes]}, and boxes are text; name a column of "
                'JSON such as "[[x0, y0, x1, y1], ...]"'
            )
        return _known(implementation(REGIONS, "regions", "column").SOURCE(boxes), lake)
    if boxes.lower().endswith(".json"):
        return _known(implementation(REGIONS, "regions", "coco").SOURCE(boxes, storage_options), lake)
    if "/" not in boxes and not _is_folder(boxes, "--boxes", storage_options):
        raise InputError(
            f"--boxes: '{boxes}' is neither a column of the lake{did_you_mean(boxes, attributes)}, which has "
            f"{', '.join(attributes) or 'none'}, nor a COCO file (.json), nor a folder of Pascal VOC files; name one"
        )
    _check_folder(boxes, "--boxes", storage_options)
    return _known(implementation(REGIONS, "regions", "voc").SOURCE(boxes, storage_options), lake)


def _is_folder(uri: str, field: str, storage_options: Mapping[str, Any] | None) -> bool:
    fs, path = open_fs(uri, storage_options, field=field)
    with storage_errors(uri, field):
        return bool(fs.isdir(path))


def _check_folder(uri: str, field: str, storage_options: Mapping[str, Any] | None) -> None:
    if not _is_folder(uri, field, storage_options):
        wanted = "a folder of PNG masks" if field == "--masks" else "a COCO file (.json) or folder of Pascal VOC files"
        raise InputError(f"{field}: '{uri}' is no folder; give {wanted}")


def _known(source: RegionSource, lake: Lake) -> RegionSource:
    """Return the source, told whether its names are the model's classes."""
    classes = lake.manifest.model.class_names
    names: set[str] = set()
    asked = known = 0
    example = ""
    for row in _some_images(lake):
        example = example or str(row["image_id"])
        asked += 1
        found = source.names(row)
        if found is not None:
            known += 1
            names |= found
        if known >= _ENOUGH:
            break
    if asked and not known:
        raise InputError(
            f"{source.field}: none of {asked} images of the lake, such as '{example}', is known to the "
            f"{source.about()}; {source.remedy}"
        )
    keys = {key for number, called in enumerate(classes or ()) for key in class_keys(number, called)}
    source.any_class = bool(names) and not any(plain_name(name) in keys for name in names)
    return source


def _some_images(lake: Lake) -> Iterator[dict[str, Any]]:
    """Yield rows of sound images, spread over the lake: one of each of some units, then the next ones."""
    units = sorted(lake.commits)
    units = units[:: max(1, len(units) // _UNITS)][:_UNITS]
    tables: dict[str, pa.Table] = {}
    for turn in range(_IMAGES):
        for unit in units:
            if unit not in tables:
                table = lake.unit_images(unit)
                table = table.filter(pc.equal(table["status"].cast(pa.string()), "ok"))
                step = max(1, len(table) // _IMAGES)
                tables[unit] = table.take(pa.array(range(0, len(table), step)[:_IMAGES], pa.int64()))
            if turn < len(tables[unit]):
                yield tables[unit].slice(turn, 1).to_pylist()[0]


__all__ = ["PIXELS", "Region", "RegionSource", "open_regions"]
