"""A list: a CSV, JSON Lines or Parquet manifest whose rows name one image each (format name ``list``).

The image's URI stands in the column that ``source.image`` names, else in the first of :data:`URI_COLUMNS` that exists;
it is absolute or relative to the manifest's folder. Image ids are ``source.id``'s column, else the URI as
written without credentials, behind the manifest's folder where the manifests lie in several folders.

A unit is a run of rows. ``Unit.start`` and ``stop`` are byte offsets in CSV and JSON Lines and row numbers in Parquet,
so that reading a unit parses no other rows.
"""

from __future__ import annotations

import hashlib
import posixpath
from array import array
from collections.abc import Iterator

import numpy as np

from pipeline.sources.base import Sample, Source
from pipeline.sources.fetch import ImageReader
from pipeline.sources.fields import (
    LabelError,
    as_attribute,
    as_id,
    as_label,
    lookup,
    name_fault,
    printable,
    require_fields,
    unique,
)
from pipeline.sources.manifest import Manifest, Record, open_manifest
from pipeline.sources.patterns import Found, Naming, check_unchanged, find
from pipeline.sources.storage import storage_errors
from schemas.errors import InputError
from schemas.layout import unit_id
from schemas.redact import redact
from schemas.unit import Unit

#: Columns that hold the URI where the job file names none, the preferred first.
URI_COLUMNS = ("uri", "path", "file_name", "image")

#: Ids repeated within this many rows are found by ``plan``, at 8 bytes a row; ``read`` finds those of its unit.
CHECKED_ROWS = 1 << 24

_FIELD = "source.uri"


class UriList(Source):
    """Manifests of image URIs, labels and attributes."""

    def plan(self) -> Iterator[Unit]:
        """Yield units of at most ``unit_images`` rows, reading each manifest once.

        Raises:
            InputError: nothing matches; a manifest is not readable, has no row, or lacks a column; a row has no URI or
                no id; an id appears twice (the message names both rows).
        """
        index = 0
        digests = array("Q")
        for found in self._manifests():
            first: Record | None = None
            last: Record | None = None
            count = 0
            stem = posixpath.splitext(found.name)[0]
            for record, image_id in self._rows(found):
                if len(digests) < CHECKED_ROWS:
                    digests.append(_digest(image_id))
                first = first or record
                last = record
                count += 1
                if count == self.config.unit_images:
                    yield self._unit(index, stem, found, first, last, count)
                    first, count, index = None, 0, index + 1
            if first is not None and last is not None:
                yield self._unit(index, stem, found, first, last, count)
                index += 1
            if last is None:
                raise InputError(f"{_FIELD}: '{found.uri}' holds no row; list at least one image in it")
        values, counts = np.unique(np.frombuffer(digests, dtype=np.uint64), return_counts=True)
        self._refuse_repeated({int(value) for value in values[counts > 1]})

    def read(self, unit: Unit) -> Iterator[Sample]:
        """Stream the images of a unit's rows, read ahead on threads; see :meth:`Source.read`."""
        manifest = self._open(unit.uri)
        with storage_errors(unit.uri, _FIELD):
            check_unchanged(manifest.fs, manifest.path, unit.uri, unit.etag)
        reader = ImageReader(unit.uri, self.config.storage_options)
        yield from reader.fill_all(self._samples(unit, manifest, reader))

    def _samples(self, unit: Unit, manifest: Manifest, reader: ImageReader) -> Iterator[Sample]:
        columns = manifest.columns()
        uri_column = self._uri_column(columns, unit.uri)
        folder = posixpath.dirname(Naming(self.config.uris).name(unit.uri))
        seen: set[str] = set()
        for record in manifest.records(unit.start, unit.stop, self._needed(columns, uri_column)):
            wanted = self._id(record, uri_column, folder, unit.uri)
            written = str(lookup(record.values, uri_column))
            sample = Sample(unique(wanted, seen), reader.resolve(printable(written)), None, error=name_fault(written))
            if sample.image_id != wanted:
                sample.error = f"the image id '{wanted}' appears again in {unit.uri}; give each row an id (source.id)"
            for attribute in self.config.attributes:
                value = lookup(record.values, attribute.path)
                sample.attributes[attribute.name] = as_attribute(value)
            if self.config.label:
                try:
                    sample.label = as_label(lookup(record.values, self.config.label), self.config.label)
                except LabelError as error:
                    sample.error, sample.status = str(error), "label_error"
            yield sample

    def _manifests(self) -> Iterator[Found]:
        return find(self.config.uris, self.config.storage_options, example="images.csv")

    def _rows(self, found: Found) -> Iterator[tuple[Record, str]]:
        """Yield all rows of a manifest with their ids, after a check of its columns."""
        manifest = self._open(found.uri)
        columns = manifest.columns()
        uri_column = self._uri_column(columns, found.uri)
        wanted = {"source.image": uri_column, "source.label": self.config.label, "source.id": self.config.id}
        wanted |= {f"source.attributes.{attribute.name}": attribute.path for attribute in self.config.attributes}
        require_fields({key: name for key, name in wanted.items() if name}, columns, f"'{found.uri}'", "column")
        folder = posixpath.dirname(found.name)
        for record in manifest.records(columns=self._needed(columns, uri_column)):
            yield record, self._id(record, uri_column, folder, found.uri)

    def _open(self, uri: str) -> Manifest:
        return open_manifest(uri, self.config.storage_options)

    def _uri_column(self, columns: list[str], uri: str) -> str:
        if self.config.image:
            return self.config.image
        for name in URI_COLUMNS:
            if name in columns:
                return name
        raise InputError(
            f"source.image: '{uri}' has none of the columns {', '.join(URI_COLUMNS)}; name the one that holds the "
            f"images' URIs (it has: {', '.join(columns)})"
        )

    def _needed(self, columns: list[str], uri_column: str) -> set[str]:
        paths = [uri_column, self.config.label, self.config.id, *(item.path for item in self.config.attributes)]
        return {name for path in paths if path for name in columns if path == name or path.startswith(f"{name}.")}

    def _id(self, record: Record, uri_column: str, folder: str, uri: str) -> str:
        written = as_id(lookup(record.values, uri_column))
        written = written and redact(written)
        if written is None:
            raise InputError(f"{_FIELD}: {record.place} of '{uri}' has no '{uri_column}'; give it one or remove it")
        if self.config.id:
            chosen = as_id(lookup(record.values, self.config.id))
            if chosen is None:
                raise InputError(f"source.id: {record.place} of '{uri}' has no '{self.config.id}'; give it one")
            return chosen
        absolute = "://" in written or written.startswith("/")
        return written if absolute or not folder else f"{folder}/{written}"

    def _unit(self, index: int, stem: str, found: Found, first: Record, last: Record, count: int) -> Unit:
        return Unit(
            unit_id(index, f"{stem}-{first.start}"),
            index,
            found.uri,
            start=first.start,
            stop=last.stop,
            etag=found.etag,
            images=count,
        )

    def _refuse_repeated(self, digests: set[int]) -> None:
        """Name the first two rows with the same id; a second pass, since the first kept digests only."""
        places: dict[str, str] = {}
        for found in self._manifests() if digests else ():
            for record, image_id in self._rows(found):
                if _digest(image_id) not in digests:
                    continue
                place = f"{record.place} of '{found.uri}'"
                if image_id in places:
                    raise InputError(
                        f"{_FIELD}: {place} has the image id '{image_id}' that {places[image_id]} has; "
                        "remove one, or name a column of unique ids in source.id"
                    )
                places[image_id] = place


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


SOURCE = UriList
