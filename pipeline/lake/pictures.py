"""The encoded pictures of a unit: by ranged reads where a lake gives ranges, else by reading its source again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.lake.parallel import ahead
from pipeline.lake.plan import read_plan
from pipeline.lake.reader import Lake
from pipeline.sources import UnitError, open_source
from schemas.errors import CamlakeError, LakeError
from schemas.job import Source

#: What can go wrong with one picture.
FAULTS = (CamlakeError, UnitError, OSError, ValueError, SyntaxError)


def unit_pictures(
    lake: Lake, unit_id: str, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, bytes | BaseException]]:
    """Yield (image id, its encoded bytes, or why there are none) for rows of a unit's images table.

    First those that are byte ranges of a file, in their order, then the others, in the order of their source.

    Args:
        lake: the lake.
        unit_id: the unit.
        rows: of its images table.
        options: of the pictures' file system; none: the lake's own, where both are of one kind.
    """

    def fetch(row: Mapping[str, Any]) -> bytes | BaseException:
        try:
            return lake.image_bytes(row["image_id"], unit_id=unit_id, storage_options=options or None)
        except FAULTS as error:
            return error

    placed = [row for row in rows if row["byte_offset"] is not None]
    yield from zip((row["image_id"] for row in placed), ahead(fetch, placed), strict=True)
    packed = [row["image_id"] for row in rows if row["byte_offset"] is None]
    if packed:
        yield from _packed(lake, unit_id, packed, options or {})


def _packed(
    lake: Lake, unit_id: str, images: Sequence[str], options: Mapping[str, Any]
) -> Iterator[tuple[str, bytes | BaseException]]:
    """The same for images that are no byte range of a file: their unit is read again, once."""
    left = dict.fromkeys(images)
    fault: BaseException = LakeError(f"unit '{unit_id}' does not hold it any more; has the source changed?")
    try:
        source = open_source(Source.model_validate({**lake.manifest.job["source"], "storage_options": dict(options)}))
        unit = next(unit for unit in read_plan(lake.store) if unit.unit_id == unit_id)
        for sample in source.read(unit):
            if sample.image_id in left and sample.data is not None:
                del left[sample.image_id]
                yield sample.image_id, sample.data
            if not left:
                return
    except FAULTS as error:
        fault = error
    for image_id in left:
        yield image_id, fault
