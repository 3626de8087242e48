"""Parquet files with images: bytes in a column (Hugging Face's ``{bytes, path}`` too) or URIs of image files.

A unit is a run of row groups of one file (``Unit.start`` and ``stop`` count row groups). Image ids are ``source.id``'s
column, else ``<file>/<row>``: the file's name as :class:`~pipeline.sources.patterns.Naming` gives it, without
``.parquet``, and the row's number in the file. Labels that are integers stay integers (a Hugging Face ClassLabel too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.ahead import map_ahead
from pipeline.sources.arrow import reading
from pipeline.sources.base import Sample, Source, UnitError
from pipeline.sources.fetch import ImageReader
from pipeline.sources.fields import (
    LabelError,
    as_attribute,
    as_id,
    as_label,
    lookup,
    name_fault,
    require_fields,
    unique,
)
from pipeline.sources.patterns import Found, Naming, check_unchanged, find
from pipeline.sources.sniff import HEAD_BYTES, check_kind
from pipeline.sources.storage import open_fs, open_random, read_head, storage_errors
from schemas.errors import InputError
from schemas.layout import unit_id
from schemas.unit import Unit

#: String columns that are taken for image URIs where no column holds bytes, the preferred first.
URI_COLUMNS = ("image", "image_uri", "image_path", "uri", "path", "file_name", "url")

_FIELD = "source.uri"
_FOOTER_THREADS = 8
_BUFFER_BYTES = 4 << 20
_BATCH_BYTES = 8 << 20
_MAX_BATCH_ROWS = 1024

Kind = Literal["struct", "bytes", "uri"]


@dataclass(frozen=True, slots=True)
class _Footer:
    """What the plan needs of a file: rows and bytes of each row group."""

    found: Found
    rows: list[int]
    sizes: list[int]


class Parquet(Source):
    """Tables of images, read by row groups in batches of about 8 MiB."""

    def plan(self) -> Iterator[Unit]:
        """Yield runs of row groups with at most ``unit_images`` rows (one row group at least); reads footers only.

        Raises:
            InputError: nothing matches; a file is no Parquet, lacks a column, or has no clear image column; no file
                holds a row.
        """
        index = 0
        files = find(self.config.uris, self.config.storage_options, example="*.parquet")
        for footer in map_ahead(self._footer, files, threads=_FOOTER_THREADS):
            for start, stop in _runs(footer.rows, self.config.unit_images):
                name = f"{_stem(footer.found.name)}-{start}"
                yield Unit(
                    unit_id(index, name),
                    index,
                    footer.found.uri,
                    start=start,
                    stop=stop,
                    byte_size=sum(footer.sizes[start:stop]),
                    etag=footer.found.etag,
                    images=sum(footer.rows[start:stop]),
                )
                index += 1
        if index == 0:
            raise InputError(
                f"{_FIELD}: the files of {', '.join(self.config.uris[:3])} hold no row; give tables of images"
            )

    def read(self, unit: Unit) -> Iterator[Sample]:
        """Stream the rows of a unit; see :meth:`Source.read`.

        Raises:
            UnitError: the file is damaged.
            InputError: the file changed since the plan.
        """
        reader = ImageReader(unit.uri, self.config.storage_options)
        fs, path = open_fs(unit.uri, self.config.storage_options)
        with storage_errors(unit.uri, _FIELD):
            check_unchanged(fs, path, unit.uri, unit.etag)
            file = open_random(fs, path)
        with file:
            with reading(unit.uri, partial(_damaged, unit.uri, "its footer")):
                table = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            name, kind = image_column(table.schema_arrow, self.config.image, unit.uri)
            samples = self._samples(unit, table, name, kind, reader)
            if kind == "uri":
                yield from reader.fill_all(samples)
            else:
                # a Hugging Face struct without bytes names a file; such rows are few, so they are read in turn
                yield from map(reader.fill, samples)

    def around(self, unit: Unit, places: Sequence[int]) -> Iterator[Unit]:
        """Yield the row groups of a unit that hold the rows at some places; see :meth:`Source.around`.

        Raises:
            InputError: the file changed since the plan.
        """
        fs, path = open_fs(unit.uri, self.config.storage_options)
        with storage_errors(unit.uri, _FIELD):
            check_unchanged(fs, path, unit.uri, unit.etag)
            file = open_random(fs, path)
        with file, reading(unit.uri, partial(_damaged, unit.uri, "its footer")):
            metadata = pq.ParquetFile(file).metadata
            groups = {number: metadata.row_group(number) for number in _groups(unit, metadata)}
        row = 0
        for number, group in groups.items():
            if any(row <= place < row + group.num_rows for place in places):
                size = _group_bytes(group)
                yield replace(unit, start=number, stop=number + 1, byte_size=size, images=group.num_rows)
            row += group.num_rows

    def _samples(
        self, unit: Unit, table: pq.ParquetFile, image: str, kind: Kind, reader: ImageReader
    ) -> Iterator[Sample]:
        stem = _stem(Naming(self.config.uris).name(unit.uri))
        metadata = table.metadata
        groups = _groups(unit, metadata)
        row = sum(metadata.row_group(group).num_rows for group in range(groups.start))
        seen: set[str] = set()
        for group in groups:
            batches = self._batches(unit.uri, table, group, image)
            for batch in batches:
                with reading(unit.uri, partial(_damaged, unit.uri, f"row group {group}")):
                    images = batch.column(image)
                    others = batch.drop_columns([image]) if image not in self._fields else batch
                    records = others.to_pylist() if others.num_columns else [{}] * batch.num_rows
                for number, record in enumerate(records):
                    with reading(unit.uri, partial(_damaged, unit.uri, f"row {row}")):
                        value = images[number].as_py()
                    sample = Sample(f"{stem}/{row}", unit.uri, None)
                    self._describe(sample, record, seen)
                    if sample.error is None:
                        _set_image(sample, value, kind, image, reader)
                    row += 1
                    yield sample

    def _batches(self, uri: str, table: pq.ParquetFile, group: int, image: str) -> Iterator[pa.RecordBatch]:
        rows = _batch_rows(table.metadata.row_group(group))
        columns = [name for name in table.schema_arrow.names if name == image or name in self._fields]
        with reading(uri, partial(_damaged, uri, f"row group {group}")):
            batches = table.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
        while True:
            with reading(uri, partial(_damaged, uri, f"row group {group}")):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _describe(self, sample: Sample, record: dict[str, Any], seen: set[str]) -> None:
        if self.config.id:
            chosen = as_id(lookup(record, self.config.id))
            if chosen is None:
                sample.error = f"the row has no '{self.config.id}', which source.id names"
            else:
                sample.image_id = unique(chosen, seen)
                if sample.image_id != chosen:
                    sample.error = f"the id '{chosen}' appears again in {sample.uri}; source.id must be unique"
        if self.config.label:
            try:
                sample.label = as_label(lookup(record, self.config.label), self.config.label)
            except LabelError as error:
                sample.error, sample.status = str(error), "label_error"
        for attribute in self.config.attributes:
            value = lookup(record, attribute.path)
            sample.attributes[attribute.name] = as_attribute(value)

    @property
    def _wanted(self) -> dict[str, str]:
        """Fields of the job file that name columns -> the names."""
        wanted = {"source.label": self.config.label, "source.id": self.config.id}
        wanted |= {f"source.attributes.{attribute.name}": attribute.path for attribute in self.config.attributes}
        return {field: name for field, name in wanted.items() if name}

    @property
    def _fields(self) -> set[str]:
        """Top-level columns that are read besides the image; a path may enter a struct or be a name with dots."""
        names = set()
        for path in self._wanted.values():
            parts = path.split(".")
            names |= {".".join(parts[: count + 1]) for count in range(len(parts))}
        return names

    def _footer(self, found: Found) -> _Footer:
        fs, path = open_fs(found.uri, self.config.storage_options)
        with storage_errors(found.uri, _FIELD):
            file = open_random(fs, path)

        def broken(reason: str) -> Exception:
            with storage_errors(found.uri, _FIELD):
                check_kind(read_head(fs, path, HEAD_BYTES), found.uri, "parquet", ("Parquet",))
            return InputError(f"{_FIELD}: '{found.uri}' is cut or damaged ({reason}); write or copy the file again")

        with file, reading(found.uri, broken):
            table = pq.ParquetFile(file)
            image_column(table.schema_arrow, self.config.image, found.uri)
            require_fields(self._wanted, table.schema_arrow.names, f"'{found.uri}'", "column")
            groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
            sizes = [_group_bytes(group) for group in groups]
        return _Footer(found, [group.num_rows for group in groups], sizes)


def image_column(schema: pa.Schema, wanted: str | None, uri: str) -> tuple[str, Kind]:
    """Return the column that holds the images and what is in it.

    Args:
        schema: the file's Arrow schema.
        wanted: the job file's ``source.image``; None looks for the one struct with ``bytes``, else the one binary
            column, else the first of :data:`URI_COLUMNS` of strings.
        uri: the file, for messages.

    Raises:
        InputError: there is no such column, its type holds no images, or the choice is not clear.
    """
    kinds = {field.name: kind for field in schema if (kind := _kind(field.type)) is not None}
    if wanted is not None:
        require_fields({"source.image": wanted}, schema.names, f"'{uri}'", "column")
        if wanted not in kinds:
            raise InputError(
                f"source.image: the column '{wanted}' of '{uri}' is of type {schema.field(wanted).type}; images are "
                "binary, a struct with bytes, or strings that are URIs"
            )
        return wanted, kinds[wanted]
    for kind in ("struct", "bytes"):
        names = [name for name, other in kinds.items() if other == kind]
        if len(names) == 1:
            return names[0], kinds[names[0]]
        if names:
            raise InputError(
                f"source.image: '{uri}' has several columns that may hold images; name one of {', '.join(names)}"
            )
    for name in URI_COLUMNS:
        if kinds.get(name) == "uri":
            return name, "uri"
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise InputError(f"source.image: no column of '{uri}' seems to hold images; name one of: {listed}")


def _kind(kind: pa.DataType) -> Kind | None:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        inner = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "struct" if "bytes" in inner and _kind(inner["bytes"]) == "bytes" else None
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "uri"
    return None


def _set_image(sample: Sample, value: Any, kind: Kind, column: str, reader: ImageReader) -> None:
    """Set the image's bytes, or the URI of the file that holds them."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if kind == "uri":
        data, path = None, value
    if data is not None:
        sample.data, sample.byte_size = data, len(data)
    elif path:
        # In a struct the path may be of any type.
        sample.uri, sample.error = reader.resolve(str(path)), name_fault(str(path))
    else:
        sample.error = f"the column '{column}' is null in this row"


def _runs(rows: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of consecutive row groups with at most ``limit`` rows, one row group at least."""
    start = count = 0
    for group, size in enumerate(rows):
        if count and count + size > limit:
            yield start, group
            start, count = group, 0
        count += size
    if count:
        yield start, len(rows)


def _groups(unit: Unit, metadata: pq.FileMetaData) -> range:
    """Return the row groups of a unit."""
    return range(unit.start or 0, metadata.num_row_groups if unit.stop is None else unit.stop)


def _batch_rows(group: Any) -> int:
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * int(group.num_rows) // max(1, int(group.total_byte_size))))


def _group_bytes(group: Any) -> int:
    return sum(int(group.column(number).total_compressed_size) for number in range(group.num_columns))


def _damaged(uri: str, where: str, reason: str) -> UnitError:
    return UnitError(f"{uri} is damaged in {where} ({reason}); write or copy the file again")


def _stem(name: str) -> str:
    return name.removesuffix(".parquet")


SOURCE = Parquet
