"""WebDataset: tar shards whose adjacent members with the same key form one sample.

The key rule is that of the ``webdataset`` package (tariterators.py): the key is the path up to the first dot of the
basename, the suffix is the rest in lower case, and only adjacent members group. Names without extension and dot files
are skipped; so are members under ``__meta__`` names. Unlike there, a member that appears twice spoils one sample and
not the shard, and a damaged shard is never a short one.

Image ids are ``<shard>/<key>``: the shard's name as :class:`~pipeline.sources.patterns.Naming` gives it, without
``.tar``. A key that comes again further on in the shard is a sample of its own with the id ``<shard>/<key>#2``.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import schemas.job
from pipeline.sources.base import Sample, Source, UnitError
from pipeline.sources.fields import (
    IMAGE_SUFFIXES,
    MISSING,
    Label,
    LabelError,
    as_attribute,
    as_id,
    as_label,
    closest,
    lookup,
    unique,
)
from pipeline.sources.patterns import Naming, check_unchanged, find
from pipeline.sources.sniff import HEAD_BYTES, check_kind
from pipeline.sources.storage import open_fs, open_sequential, read_head, storage_errors
from pipeline.sources.tar import TarStream
from schemas.errors import InputError
from schemas.layout import unit_id
from schemas.unit import Unit

_NAME = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_FIELD = "source.uri"
_PEEK_SAMPLES = 32
_PEEK_SHARDS = 8
_PEEK_BYTES = 16 << 20
#: Larger members are not read: no image of as many pixels as are decoded needs more, and a gzip file of a few
#: megabytes can hold them.
MAX_MEMBER_BYTES = 2 << 30


def split_name(name: str) -> tuple[str, str] | None:
    """Return (key, suffix in lower case) of a member's name; None where it belongs to no sample."""
    match = _NAME.fullmatch(name)
    if match is None or _META.match(name):
        return None
    return match[1], match[2].lower()


@dataclass(slots=True)
class _Group:
    """The members of one sample: all headers by suffix, and the bytes of those that are needed."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    repeated: str | None = None
    too_large: tarfile.TarInfo | None = None

    def image(self, suffixes: Sequence[str]) -> str | None:
        """Return the first of ``suffixes`` that the sample has."""
        return next((suffix for suffix in suffixes if suffix in self.members), None)


class WebDataset(Source):
    """Tar shards, plain or gzip; a unit is one shard.

    The image is the member ``source.image`` names, else the first of the known image suffixes in the order of
    :data:`~pipeline.sources.fields.IMAGE_SUFFIXES`. A label, id or attribute is looked up as a member's suffix first
    (its text), then as a path in the sample's ``.json``, with or without the prefix ``json.``. The text of ``cls`` must
    be a class index; the text of any other member is a class name.
    """

    def __init__(self, config: schemas.job.Source) -> None:
        super().__init__(config)
        self._images = (config.image.lower().lstrip("."),) if config.image else IMAGE_SUFFIXES
        self._fields = {"source.label": config.label, "source.id": config.id}
        self._fields |= {f"source.attributes.{attribute.name}": attribute.path for attribute in config.attributes}
        self._texts = {path.lower() for path in self._fields.values() if path}
        if self._texts:
            self._texts.add("json")

    def plan(self) -> Iterator[Unit]:
        """Yield one unit per shard; the head of the first shard is read to check the format and the fields.

        Raises:
            InputError: nothing matches; the first shard is no tar; none of its first 32 samples has an image, or the
                label, id or an attribute that the job file names.
        """
        unchecked: list[str] = []
        checked = False
        for index, shard in enumerate(find(self.config.uris, self.config.storage_options, example="*.tar")):
            # an empty shard tells nothing of the fields, so the next one is asked, but not a million of them
            if not checked and len(unchecked) < _PEEK_SHARDS:
                checked = self._check(shard.uri)
                unchecked.append(shard.uri)
            yield Unit(unit_id(index, _stem(shard.name)), index, shard.uri, byte_size=shard.size, etag=shard.etag)
        if not checked:
            raise InputError(
                f"source.uri: {' and '.join(unchecked[:3])} hold no sample (members must be called key.suffix, such as "
                "0001.jpg and 0001.cls); give shards that hold images"
            )

    def read(self, unit: Unit) -> Iterator[Sample]:
        """Stream the samples of a shard; see :meth:`Source.read`.

        Raises:
            UnitError: the shard is cut or damaged.
            InputError: the shard changed since the plan.
        """
        prefix = _stem(Naming(self.config.uris).name(unit.uri))
        keys: set[str] = set()
        ids: set[str] = set()
        with self._open(unit.uri, unit) as stream:
            for group in self._groups(stream, self._images):
                plain = group.key.removeprefix("./")
                key = unique(plain, keys)
                sample = Sample(f"{prefix}/{key}", unit.uri, None)
                try:
                    self._fill(sample, group, stream, again=key != plain)
                except _SampleError as error:
                    sample.error, sample.status = str(error), error.status
                if self.config.id:
                    wanted = sample.image_id
                    sample.image_id = unique(wanted, ids)
                    if sample.image_id != wanted:
                        sample.error = f"the id '{wanted}' appears again in {unit.uri}; source.id must be unique"
                if sample.error is not None:
                    sample.data = None
                yield sample

    def _open(self, uri: str, planned: Unit | None = None) -> TarStream:
        fs, path = open_fs(uri, self.config.storage_options)
        with storage_errors(uri, _FIELD):
            check_unchanged(fs, path, uri, planned.etag if planned else None)
            # A store that gives a smaller size would make the shard look cut, and what is cut is recorded as damage.
            return TarStream(open_sequential(fs, path, size=planned.byte_size if planned else None), uri)

    def _groups(self, stream: TarStream, images: Sequence[str]) -> Iterator[_Group]:
        """Yield the samples; of the ``images`` suffixes only the bytes of the preferred one are kept.

        On damage inside the archive the sample before it is yielded only if it has the members of the sample before
        that, since more of its members may have followed.
        """
        group: _Group | None = None
        before: set[str] | None = None
        members = stream.members()
        while True:
            try:
                member = self._next_member(stream, members)
            except UnitError:
                if group is not None and (stream.ended or set(group.members) == before):
                    yield group
                raise
            if member is None:
                break
            split = split_name(member.name)
            if split is None or member.isdir():
                continue
            key, suffix = split
            if group is None or key != group.key:
                if group is not None:
                    yield group
                    before = set(group.members)
                group = _Group(key)
            if suffix in group.members:
                group.repeated = suffix
                continue
            best = group.image(images)
            group.members[suffix] = member
            preferred = suffix in images and group.image(images) == suffix
            if member.isreg() and (preferred or suffix in self._texts):
                if member.size > MAX_MEMBER_BYTES:
                    group.too_large = member
                    continue
                with storage_errors(stream.uri, _FIELD):
                    group.data[suffix] = stream.read(member)
                if preferred and best is not None and best not in self._texts:
                    group.data.pop(best, None)
        if group is not None:
            yield group

    def _next_member(self, stream: TarStream, members: Iterator[tarfile.TarInfo]) -> tarfile.TarInfo | None:
        with storage_errors(stream.uri, _FIELD):
            return next(members, None)

    def _fill(self, sample: Sample, group: _Group, stream: TarStream, *, again: bool) -> None:
        record = _Record(group)
        if self.config.id:
            # first of all, so that a sample with another fault still has its own id
            chosen = as_id(record.get(self.config.id))
            if chosen is None:
                raise _SampleError(f"the sample '{group.key}' has no '{self.config.id}', which source.id names")
            sample.image_id = chosen
        suffix = group.image(self._images)
        if suffix is None:
            hint = "; its key came before: the members of a sample must be adjacent, so sort the shard" if again else ""
            raise _SampleError(f"the sample has no image member, only {_listed(group.members)}{hint}")
        member = group.members[suffix]
        sample.byte_size = member.size
        sample.byte_offset = stream.locate(member)
        if group.repeated is not None:
            raise _SampleError(f"the member '{group.key}.{group.repeated}' appears twice in the sample")
        if group.too_large is not None:
            raise _SampleError(
                f"the member '{group.too_large.name}' has {group.too_large.size} bytes, more than the limit of "
                f"{MAX_MEMBER_BYTES}; write it smaller"
            )
        if suffix not in group.data:
            raise _SampleError(_no_file(member))
        for attribute in self.config.attributes:
            value = record.get(attribute.path)
            sample.attributes[attribute.name] = as_attribute(value)
        if self.config.label:
            sample.label = self._label(record)
        sample.data = group.data[suffix]

    def _label(self, record: _Record) -> Label | None:
        path = str(self.config.label)
        value = record.get(path)
        try:
            if path.lower() == "cls" and isinstance(value, str) and not value.startswith("["):
                return int(value) if value else None
            return as_label(value, path)
        except LabelError as error:
            raise _SampleError(str(error), "label_error") from error
        except ValueError as error:
            raise _SampleError(f"the label in 'cls' is '{value[:40]}', not a class index", "label_error") from error

    def _check(self, uri: str) -> bool:
        """Check format and fields on the head of a shard; return False where it holds no sample.

        Raises:
            InputError: no tar, no image, or a field is in none of the samples.
        """
        fs, path = open_fs(uri, self.config.storage_options)
        with storage_errors(uri, _FIELD):
            kind = check_kind(read_head(fs, path, HEAD_BYTES), uri, "webdataset", ("tar", "gzip"))
        groups: list[_Group] = []
        try:
            with self._open(uri) as stream:
                for group in islice(self._groups(stream, ()), _PEEK_SAMPLES):
                    groups.append(group)
                    if max(member.offset_data for member in group.members.values()) > _PEEK_BYTES:
                        break
        except UnitError as error:
            # a damaged shard is no wrong input: its unit fails alone, at its time, and the rest goes on
            if kind == "gzip" and not groups:
                raise InputError(
                    f"source.format: '{uri}' is a gzip file that holds no tar archive ({error})"
                ) from error
            if not groups:
                return True
        if not groups:
            return False
        records = [_Record(group) for group in groups]
        suffixes = sorted({suffix for group in groups for suffix in group.members})
        if not any(group.image(self._images) for group in groups):
            named = self.config.image
            what = f"a member '.{self._images[0]}'" if named else "an image member"
            raise InputError(
                f"source.image: none of the first {len(groups)} samples of '{uri}' has {what}"
                f"{closest(self._images[0], suffixes) if named else ''}; their members are {_listed(suffixes)}"
            )
        for name, wanted in self._fields.items():
            if wanted and not any(record.has(wanted) for record in records):
                known = [*suffixes, *sorted({path for record in records for path in record.paths()})]
                raise InputError(
                    f"{name}: none of the first {len(groups)} samples of '{uri}' has '{wanted}'"
                    f"{closest(wanted, known)}; they have {_listed(known)}"
                )
        return True


class _SampleError(Exception):
    """One sample is of no use; the message is one sentence."""

    def __init__(self, message: str, status: str = "read_error") -> None:
        super().__init__(message)
        self.status = status


class _Record:
    """The fields of a sample: texts of members, and the JSON, which is parsed where it is first needed."""

    def __init__(self, group: _Group) -> None:
        self._group = group
        self._json: Any = MISSING

    def get(self, path: str) -> Any:
        """Return the value of a field, or MISSING; the text of a member is stripped.

        Raises:
            _SampleError: the JSON cannot be read.
        """
        data = self._group.data.get(path.lower())
        if data is not None:
            try:
                return data.decode("utf-8").strip()
            except UnicodeDecodeError:
                return data
        value = lookup(self._document(), path)
        return lookup(self._document(), path[5:]) if value is MISSING and path.startswith("json.") else value

    def has(self, path: str) -> bool:
        """Tell whether the field is there; an unreadable JSON has none."""
        try:
            return self.get(path) is not MISSING
        except _SampleError:
            return False

    def paths(self) -> Iterator[str]:
        """Yield the paths of the JSON's own members."""
        try:
            document = self._document()
        except _SampleError:
            return
        for name in document if isinstance(document, dict) else ():
            yield f"json.{name}"

    def _document(self) -> Any:
        if self._json is MISSING and "json" in self._group.data:
            try:
                self._json = json.loads(self._group.data["json"])
            except (ValueError, RecursionError) as error:
                detail = " ".join(str(error).split())
                raise _SampleError(f"the member '{self._group.key}.json' is no readable JSON ({detail})") from error
        return self._json


def _no_file(member: tarfile.TarInfo) -> str:
    if member.islnk() or member.issym():
        return f"the member '{member.name}' is a link to '{member.linkname}'; write the shard with links followed"
    return f"the member '{member.name}' is a device or pipe, not a file; write the shard without it"


def _stem(name: str) -> str:
    return name.removesuffix(".tar")


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


SOURCE = WebDataset
