"""A folder tree as in torchvision's and Hugging Face's ImageFolder: the first folder under the root is the label.

The plan freezes the list of files. Image ids are paths relative to the root (behind the root's own name where
``source.uri`` gives several). The label is always a *name*, even where a folder is called ``7``: the model's resolver
looks for a class of that name first and takes digits as an index only where there is none. Files directly in the root
have no label. Hidden files and files that are no images by their suffix are left out.

A file ``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet`` in the root with a column ``file_name`` gives
further columns: attributes, the id, and, where ``source.label`` names one, the label instead of the folder's name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.sources.ahead import map_ahead
from pipeline.sources.base import Sample, Source
from pipeline.sources.fetch import ImageReader
from pipeline.sources.fields import (
    IMAGE_SUFFIXES,
    LabelError,
    as_attribute,
    as_id,
    as_label,
    lookup,
    printable,
    require_fields,
    unique,
)
from pipeline.sources.listing import list_folder
from pipeline.sources.manifest import Manifest, open_manifest
from pipeline.sources.patterns import Found, Naming, find
from pipeline.sources.storage import etag, open_fs, storage_errors
from schemas.errors import InputError
from schemas.layout import unit_id
from schemas.unit import Unit

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
NAME_COLUMN = "file_name"

_LIST_THREADS = 8
# A byte of a name that is no UTF-8, as an escaped half of a surrogate pair.
_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")


@dataclass(frozen=True, slots=True)
class _File:
    """A file under a root; ``name`` is relative to it."""

    name: str
    size: int | None
    version: str | None

    @property
    def suffix(self) -> str:
        """The suffix in lower case, without the dot."""
        return self.name.rpartition("/")[2].rpartition(".")[2].lower() if "." in self.name.rpartition("/")[2] else ""


class Folder(Source):
    """Image files under one or several roots; a unit is a run of files of one root."""

    def plan(self) -> Iterator[Unit]:
        """Yield units of at most ``unit_images`` files; class folders are listed on threads, a few at a time.

        Raises:
            InputError: no such folder, no image in it, a field of the job file that has no column in the metadata, or
                a field without a meaning here.
        """
        if self.config.image:
            raise InputError("source.image has no meaning for format 'folder', where every image is a file; remove it")
        index = 0
        for root in find(self.config.uris, self.config.storage_options, folders=True):
            version = self._metadata_version(root.uri)
            others: Counter[str] = Counter()
            begin = index
            batch: list[_File] = []
            for file in self._files(root):
                if file.suffix not in IMAGE_SUFFIXES:
                    others[file.suffix] += 1
                    continue
                batch.append(file)
                if len(batch) == self.config.unit_images:
                    yield self._unit(index, root, batch, version)
                    index, batch = index + 1, []
            if batch:
                yield self._unit(index, root, batch, version)
                index += 1
            if index == begin:
                held = ", ".join(f"{count} .{printable(suffix)}" for suffix, count in others.most_common(5))
                raise InputError(
                    f"source.uri: no image is under '{root.uri}'; it holds {held or 'no files'} "
                    f"(images end in .{', .'.join(IMAGE_SUFFIXES[:6])}, ...)"
                )

    def read(self, unit: Unit) -> Iterator[Sample]:
        """Stream the files of a unit, read ahead on threads; see :meth:`Source.read`."""
        reader = ImageReader(f"{unit.uri}/", self.config.storage_options)
        for sample in reader.fill_all(self._samples(unit)):
            sample.uri = printable(sample.uri)
            sample.error = None if sample.error is None else printable(sample.error)
            yield sample

    def _samples(self, unit: Unit) -> Iterator[Sample]:
        root = Naming(self.config.uris, folders=True).name(unit.uri)
        prefix = f"{root}/" if root else ""
        members = unit.members or ()
        rows = self._metadata_rows(unit.uri, frozenset(members))
        seen: set[str] = set()
        for member in members:
            sample = Sample(prefix + member, f"{unit.uri}/{_on_disk(member)}", None)
            if "/" in member:
                sample.label = member.partition("/")[0]
            if rows is not None:
                self._describe(sample, member, rows.get(member, {}), seen)
            yield sample

    def _describe(self, sample: Sample, member: str, row: dict[str, Any], seen: set[str]) -> None:
        """Set what the metadata says of a file."""
        if self.config.id:
            chosen = as_id(lookup(row, self.config.id))
            if chosen is None:
                sample.error = f"the metadata gives '{member}' no '{self.config.id}', which source.id names"
            else:
                sample.image_id = unique(chosen, seen)
                if sample.image_id != chosen:
                    sample.error = f"the id '{chosen}' appears again in the metadata; source.id must be unique"
        if self.config.label:
            try:
                sample.label = as_label(lookup(row, self.config.label), self.config.label)
            except LabelError as error:
                sample.label = None
                sample.error, sample.status = str(error), "label_error"
        for attribute in self.config.attributes:
            value = lookup(row, attribute.path)
            sample.attributes[attribute.name] = as_attribute(value)

    def _files(self, root: Found) -> Iterator[_File]:
        """Yield the files under a root: those directly in it, then folder by folder, sorted."""
        fs, path = open_fs(root.uri, self.config.storage_options)
        entries = [entry for entry in list_folder(fs, path, root.uri) if not entry[0].startswith(".")]
        for name, info in entries:
            if info["type"] != "directory" and name not in METADATA:
                yield _File(name, info.get("size"), etag(info))
        folders = [(name, info["name"]) for name, info in entries if info["type"] == "directory"]

        def listed(folder: tuple[str, str]) -> list[_File]:
            return list(self._walk(fs, folder[1], folder[0], root.uri))

        for files in map_ahead(listed, folders, threads=_LIST_THREADS):
            yield from files

    def _walk(self, fs: Any, path: str, relative: str, root: str) -> Iterator[_File]:
        for name, info in list_folder(fs, path, f"{root}/{relative}"):
            if name.startswith("."):
                continue
            if info["type"] != "directory":
                yield _File(f"{relative}/{name}", info.get("size"), etag(info))
            elif not info.get("islink"):  # a link to a folder above would be walked for ever
                yield from self._walk(fs, info["name"], f"{relative}/{name}", root)

    def _unit(self, index: int, root: Found, files: list[_File], metadata: str | None) -> Unit:
        versions = hashlib.sha256((metadata or "").encode())
        for file in files:
            versions.update(f"{printable(file.name)}\t{file.size}\t{file.version}\n".encode())
        sizes = [file.size for file in files]
        return Unit(
            unit_id(index, printable(files[0].name).rpartition(".")[0]),
            index,
            root.uri,
            byte_size=None if None in sizes else sum(size or 0 for size in sizes),
            etag=versions.hexdigest()[:32],
            members=tuple(printable(file.name) for file in files),
            images=len(files),
        )

    @property
    def _columns(self) -> dict[str, str]:
        """The fields of the job file that only a metadata file can give."""
        wanted = {"source.label": self.config.label, "source.id": self.config.id}
        wanted |= {f"source.attributes.{attribute.name}": attribute.path for attribute in self.config.attributes}
        return {field: name for field, name in wanted.items() if name}

    def _metadata(self, root: str) -> Manifest | None:
        """Return the root's metadata file; None where no field needs one."""
        if not self._columns:
            return None
        fs, path = open_fs(root, self.config.storage_options)
        with storage_errors(root, "source.uri"):
            there = [name for name in METADATA if fs.exists(f"{path}/{name}")]
        if len(there) != 1:
            field, column = next(iter(self._columns.items()))
            state = f"holds both {' and '.join(there)}; keep one" if there else f"holds none of {', '.join(METADATA)}"
            raise InputError(f"{field}: '{column}' would be a column of the metadata in '{root}', but it {state}")
        return open_manifest(f"{root}/{there[0]}", self.config.storage_options, "folder")

    def _metadata_version(self, root: str) -> str | None:
        """Check the metadata's columns and return its version; None where it is not needed."""
        manifest = self._metadata(root)
        if manifest is None:
            return None
        wanted = {"source.uri": NAME_COLUMN, **self._columns}
        require_fields(wanted, manifest.columns(), f"'{manifest.uri}'", "column")
        with storage_errors(manifest.uri, "source.uri"):
            return etag(manifest.fs.info(manifest.path))

    def _metadata_rows(self, root: str, members: frozenset[str]) -> dict[str, dict[str, Any]] | None:
        """Return the metadata of a unit's files, picked from one pass over the metadata: memory is that of the unit."""
        manifest = self._metadata(root)
        if manifest is None:
            return None
        rows: dict[str, dict[str, Any]] = {}
        for record in manifest.records():
            name = str(record.values.get(NAME_COLUMN)).removeprefix("./")
            if name in members:
                rows[name] = record.values
        return rows


def _on_disk(member: str) -> str:
    """Return the name that the file system knows: the plan holds bytes that are no UTF-8 as :func:`printable` does."""
    return _BYTE.sub(lambda match: chr(int(match[1], 16)), member)


SOURCE = Folder
