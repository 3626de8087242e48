"""Tables of records that are read as a stream: CSV (TSV), JSON Lines and Parquet.

Each record has an extent, so that a slice is read again without parsing what is before it: byte offsets in CSV and
JSON Lines, row numbers in Parquet.
"""

from __future__ import annotations

import contextlib
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipeline.sources.arrow import reading
from pipeline.sources.sniff import HEAD_BYTES, check_kind
from pipeline.sources.storage import open_fs, open_random, open_sequential, read_head, storage_errors
from schemas.errors import InputError

_FIELD = "source.uri"
_PEEK_RECORDS = 32
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Record:
    """A record with its extent [start, stop) in the manifest's own count, and its place in words."""

    values: dict[str, Any]
    start: int
    stop: int
    place: str


class Manifest(ABC):
    """A table in one file.

    Raises (all methods):
        InputError: the file is not readable as what it seems to be; the message names the line.
        CamlakeError: the store fails.
    """

    def __init__(self, fs: Any, path: str, uri: str) -> None:
        self.fs = fs
        self.path = path
        self.uri = uri

    @abstractmethod
    def columns(self) -> list[str]:
        """Return the names of the columns; for JSON Lines those of the first 32 records."""

    @abstractmethod
    def records(
        self, start: int | None = None, stop: int | None = None, columns: Collection[str] | None = None
    ) -> Iterator[Record]:
        """Stream the records of an extent; ``columns`` may leave out others where that saves reading."""

    def _wrong(self, where: str, reason: object) -> InputError:
        return InputError(f"{_FIELD}: {where} of '{self.uri}' is not readable ({' '.join(str(reason).split())})")


def open_manifest(uri: str, storage_options: dict[str, Any], source_format: str = "list") -> Manifest:
    """Open a manifest: Parquet by its first bytes, TSV and JSON Lines by their suffix or first character, else CSV.

    Raises:
        InputError: it is none of these.
    """
    fs, path = open_fs(uri, storage_options)
    with storage_errors(uri, _FIELD):
        head = read_head(fs, path, HEAD_BYTES)
    if check_kind(head, uri, source_format, ("text", "Parquet")) == "Parquet":
        return ParquetManifest(fs, path, uri)
    suffix = path.rpartition(".")[2].lower()
    if suffix in ("jsonl", "ndjson") or head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return JsonLinesManifest(fs, path, uri)
    return CsvManifest(fs, path, uri, "\t" if suffix == "tsv" else ",")


class _Lines:
    """Decoded lines of a file with the offset behind the last one; a byte order mark at the start is dropped."""

    def __init__(self, manifest: Manifest, file: BinaryIO, offset: int) -> None:
        self._manifest = manifest
        self._file = file
        self.offset = offset
        self.count = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        with storage_errors(self._manifest.uri, _FIELD):
            line = self._file.readline()
        if not line:
            raise StopIteration
        begin, self.offset = self.offset, self.offset + len(line)
        self.count += 1
        try:
            return line.decode("utf-8-sig" if begin == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise self._manifest._wrong(f"byte {begin + error.start}", f"{error.reason}; write it as UTF-8") from error


class CsvManifest(Manifest):
    """A CSV file in UTF-8 whose first record names the columns; quoted fields may hold line ends."""

    def __init__(self, fs: Any, path: str, uri: str, delimiter: str = ",") -> None:
        super().__init__(fs, path, uri)
        self._delimiter = delimiter

    def columns(self) -> list[str]:
        with self._open() as file:
            return self._header(_Lines(self, file, 0))

    def records(
        self, start: int | None = None, stop: int | None = None, columns: Collection[str] | None = None
    ) -> Iterator[Record]:
        with self._open() as file:
            lines = _Lines(self, file, 0)
            names = self._header(lines)
            if start is not None:
                file.seek(start)
                lines = _Lines(self, file, start)
            yield from self._rows(lines, names, stop, numbered=start is None)

    def _rows(self, lines: _Lines, names: Sequence[str], stop: int | None, *, numbered: bool) -> Iterator[Record]:
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        begin = lines.offset
        while stop is None or begin < stop:
            place = f"line {lines.count + 1}" if numbered else f"byte {begin}"
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise self._wrong(place, error) from error
            if row is None:
                return
            if row:
                if len(row) != len(names):
                    raise self._wrong(place, f"it has {len(row)} fields and the header {len(names)}")
                # CSV cannot tell an empty text from no value
                values = {name: value or None for name, value in zip(names, row, strict=True)}
                yield Record(values, begin, lines.offset, place)
            begin = lines.offset

    def _header(self, lines: _Lines) -> list[str]:
        try:
            names = next(csv.reader(lines, delimiter=self._delimiter, strict=True), [])
        except csv.Error as error:
            raise self._wrong("line 1", error) from error
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise self._wrong("line 1", f"the column '{repeated[0]}' is named twice")
        return names

    def _open(self) -> BinaryIO:
        with storage_errors(self.uri, _FIELD):
            return open_sequential(self.fs, self.path)


class JsonLinesManifest(Manifest):
    """One JSON object per line, UTF-8; blank lines are skipped."""

    def columns(self) -> list[str]:
        names: dict[str, None] = {}
        for record in islice(self.records(), _PEEK_RECORDS):
            names |= dict.fromkeys(record.values)
        return list(names)

    def records(
        self, start: int | None = None, stop: int | None = None, columns: Collection[str] | None = None
    ) -> Iterator[Record]:
        with storage_errors(self.uri, _FIELD):
            file = open_sequential(self.fs, self.path)
        with file:
            file.seek(start or 0)
            lines = _Lines(self, file, start or 0)
            begin = lines.offset
            for number, line in enumerate(lines, 1):
                if stop is not None and begin >= stop:
                    return
                place = f"line {number}" if start is None else f"byte {begin}"
                if line.strip():
                    yield Record(self._parse(line, place), begin, lines.offset, place)
                begin = lines.offset

    def _parse(self, line: str, place: str) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._wrong(place, error) from error
        if not isinstance(values, dict):
            raise self._wrong(place, "it is no JSON object")
        return values


class ParquetManifest(Manifest):
    """A Parquet table."""

    def columns(self) -> list[str]:
        with self._open() as file, self._readable():
            return list(pq.ParquetFile(file).schema_arrow.names)

    def records(
        self, start: int | None = None, stop: int | None = None, columns: Collection[str] | None = None
    ) -> Iterator[Record]:
        with self._open() as file:
            with self._readable():
                table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            first, last = start or 0, table.metadata.num_rows if stop is None else stop
            groups, row = self._groups(table.metadata, first, last)
            names = None if columns is None else [name for name in table.schema_arrow.names if name in columns]
            batches = table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=names, use_threads=False)
            while True:
                with self._readable():
                    batch = next(batches, None)
                    rows = [] if batch is None or row >= last else batch.slice(max(0, first - row)).to_pylist()
                if batch is None or row >= last:
                    return
                for number, values in enumerate(rows, max(row, first)):
                    if number >= last:
                        return
                    yield Record(values, number, number + 1, f"row {number}")
                row += batch.num_rows

    @staticmethod
    def _groups(metadata: pq.FileMetaData, first: int, last: int) -> tuple[list[int], int]:
        """Return the row groups that hold rows [first, last) and the number of the first row in them."""
        groups: list[int] = []
        begin = row = 0
        for group in range(metadata.num_row_groups):
            end = row + metadata.row_group(group).num_rows
            if end > first and row < last:
                begin = begin if groups else row
                groups.append(group)
            row = end
        return groups, begin

    def _open(self) -> BinaryIO:
        with storage_errors(self.uri, _FIELD):
            return open_random(self.fs, self.path)

    def _readable(self) -> contextlib.AbstractContextManager[None]:
        return reading(self.uri, lambda reason: self._wrong("the table", reason))
