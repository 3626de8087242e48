"""The encoded images behind a lake, also those that their source packs or compresses.

Where the images table gives a byte range, an image is one request. Inside a Parquet file or a compressed tar it is not:
there the image's unit is read again through its source, once for all images that are wanted of it, and of a Parquet
file only the row groups that hold them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.lake.parallel import ahead
from pipeline.lake.plan import read_plan
from pipeline.lake.reader import Lake
from pipeline.sources import Source, UnitError, open_source
from schemas.errors import CamlakeError, LakeError
from schemas.job import Source as SourceConfig
from schemas.unit import Unit

#: Most bytes of units that are read again for the sake of single images, unless told otherwise.
MOST_READ = 4 << 30
#: Where so many of the first packed images cannot be had, no other is asked for.
PROBE = 12
#: Most bytes of packed images that are kept by :meth:`Originals.hold`.
MOST_HELD = 256 << 20

#: An image's row of the images table.
Row = Mapping[str, Any]


class Originals:
    """Encoded images of a lake; :meth:`get` and :meth:`stream` may be called by several threads.

    Args:
        lake: the lake; its images table says where they lie.
        storage_options: of the source's file system. Default: the lake's own, where both are of one kind.
        most_read: bytes of units that may be read again for packed images, altogether; None: as many as it takes.
    """

    def __init__(
        self, lake: Lake, storage_options: Mapping[str, Any] | None = None, *, most_read: int | None = MOST_READ
    ) -> None:
        self._lake = lake
        self._options = dict(storage_options) if storage_options else None
        self._most_read = self._left = most_read
        self._held: dict[tuple[str, str], bytes | CamlakeError] = {}
        self._room = MOST_HELD

    def get(self, row: Row) -> bytes:
        """Return the encoded bytes of one image, checked against their digest.

        Raises:
            LakeError: they cannot be had, or have changed.
            InputError: the store refuses.
        """
        (_, found), *_ = self.stream([row])
        if isinstance(found, CamlakeError):
            raise found
        return found

    def hold(self, images: Iterable[tuple[str, str]]) -> None:
        """Keep the packed ones of these images (image id, unit id), so that :meth:`get` reads no unit twice.

        Units are read in the order in which they are first named, until nothing more may be read or kept; where the
        first units cannot be had, no other is asked for. What is not had is told by :meth:`get`.
        """
        units: dict[str, list[str]] = {}
        for image_id, unit_id in dict.fromkeys(images):
            units.setdefault(unit_id, []).append(image_id)
        had, failed = False, 0
        fault: CamlakeError | None = None
        for unit_id, ids in units.items():
            rows = [row for row in self._rows(unit_id, ids) if row["byte_offset"] is None]
            rows = [row for row in rows if _key(row) not in self._held]
            if fault is not None and not had and failed >= PROBE:
                self._held |= {_key(row): fault for row in rows}
                continue
            for row, found in self._packed(rows):
                self._held[_key(row)] = self._kept(row, found)
                if isinstance(found, CamlakeError):
                    failed, fault = failed + 1, found
                else:
                    had = True

    def _rows(self, unit_id: str, ids: Sequence[str]) -> list[Row]:
        """Rows of images that the lake has; whoever asks for another asks for its row first, and is told."""
        if unit_id not in self._lake.commits:
            return []
        table = self._lake.unit_images(unit_id)
        found: list[Row] = table.filter(pc.is_in(table["image_id"], pa.array(ids, pa.string()))).to_pylist()
        return found

    def _kept(self, row: Row, found: bytes | CamlakeError) -> bytes | CamlakeError:
        if isinstance(found, CamlakeError):
            return found
        if len(found) > self._room:
            return LakeError(f"image '{row['image_id']}' is packed, and {MOST_HELD >> 20} MiB of such images are kept")
        self._room -= len(found)
        return found

    def stream(self, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes | CamlakeError]]:
        """Yield each row of the images table with its image's encoded bytes, or with why they cannot be had.

        Those with a byte range come first, in their order, read ahead by threads; then the packed ones, unit by unit in
        the order in which the units are first named.
        """
        ranged: list[Row] = []
        packed: list[Row] = []
        for row in rows:
            known = row["byte_offset"] is not None or _key(row) in self._held
            (ranged if known else packed).append(row)
        yield from zip(ranged, ahead(self._known, ranged), strict=True)
        yield from self._packed(packed)

    def _known(self, row: Row) -> bytes | CamlakeError:
        held = self._held.get(_key(row))
        if held is not None:
            return held
        try:
            return self._lake.image_bytes(row["image_id"], unit_id=row["unit_id"], storage_options=self._options)
        except CamlakeError as error:
            return error

    def _packed(self, rows: Sequence[Row]) -> Iterator[tuple[Row, bytes | CamlakeError]]:
        units: dict[str, dict[str, Row]] = {}
        for row in rows:
            units.setdefault(row["unit_id"], {})[row["image_id"]] = row
        for unit_id, wanted in units.items():
            yield from self._unit(unit_id, wanted)

    def _unit(self, unit_id: str, wanted: Mapping[str, Row]) -> Iterator[tuple[Row, bytes | CamlakeError]]:
        left = dict(wanted)
        fault: CamlakeError | None = None
        try:
            for part in self._source.around(self._plan[unit_id], self._places(unit_id, wanted)):
                self._charge(part)
                for sample in self._source.read(part):
                    row = left.get(sample.image_id)
                    if row is not None and sample.data is not None:
                        del left[sample.image_id]
                        yield row, _unchanged(row, sample.data)
                    if not left:
                        return
        except CamlakeError as error:
            fault = error
        except UnitError as error:
            fault = LakeError(str(error))
        for image_id, row in left.items():
            yield (
                row,
                fault
                or LakeError(
                    f"image '{image_id}' is not in {row['uri']} any more; has the source changed since the run?"
                ),
            )

    def _charge(self, unit: Unit) -> None:
        """Take a unit's bytes from what may be read."""
        if self._left is None or self._most_read is None:
            return
        size = unit.byte_size or 0
        if size > self._left:
            raise LakeError(
                f"{unit.uri} packs or compresses its images, and more than {self._most_read / 2**30:.3g} GiB of such "
                "files would have to be read again for pictures"
            )
        self._left -= size

    def _places(self, unit_id: str, wanted: Mapping[str, Row]) -> list[int]:
        """Places of images in their unit, in the order in which its source reads them: that of the images table."""
        ids = self._lake.unit_images(unit_id)["image_id"].to_pylist()
        return [place for place, image_id in enumerate(ids) if image_id in wanted]

    @cached_property
    def _plan(self) -> dict[str, Unit]:
        committed = self._lake.commits
        units = read_plan(self._lake.store, self._lake.manifest)
        return {unit.unit_id: unit for unit in units if unit.unit_id in committed}

    @cached_property
    def _source(self) -> Source:
        """The source that the lake's job read from, with our options instead of its own, which no lake keeps."""
        given = self._lake.manifest.job["source"]
        uri = given["uri"] if isinstance(given["uri"], str) else given["uri"][0]
        options = self._options
        if options is None and _scheme(uri) == _scheme(self._lake.store.uri):
            options = dict(self._lake.store.storage_options)
        try:
            config = SourceConfig.model_validate({**given, "storage_options": options or {}})
        except ValidationError as error:
            raise LakeError(f"{self._lake.store.uri}: the manifest's source cannot be read ({error})") from error
        return open_source(config)


def _key(row: Row) -> tuple[str, str]:
    return row["unit_id"], row["image_id"]


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else "file"


def _unchanged(row: Row, data: bytes) -> bytes | CamlakeError:
    if row["sha256"] is not None and hashlib.sha256(data).digest() != row["sha256"]:
        return LakeError(f"image '{row['image_id']}': {row['uri']} has changed since the run (SHA-256 differs)")
    return data
