"""From ``source.uri`` to files: braces and globs over any store, and the stable name of each file.

Order: patterns as listed, brace alternatives as written, glob matches sorted by path component. Names do not depend
on which files exist: they are relative to the folder before the first wildcard (see :class:`Naming`).
"""

from __future__ import annotations

import fnmatch
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.sources.ahead import map_ahead
from pipeline.sources.braces import expand_braces
from pipeline.sources.digests import Digests
from pipeline.sources.faults import refusal
from pipeline.sources.fields import printable
from pipeline.sources.listing import files_in, list_folder
from pipeline.sources.storage import etag, open_fs, protocol_of, storage_errors, strip_protocol
from schemas.errors import InputError, near

_MAGIC = re.compile(r"[*?\[]")
_ANY_MAGIC = re.compile(r"[*?\[{\\]")
_FIELD = "source.uri"
_HEAD_THREADS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder that a pattern matches; ``uri`` is absolute, ``name`` as :class:`Naming` gives it."""

    uri: str
    name: str
    size: int | None
    etag: str | None


class Naming:
    """Names of files relative to the deepest folder that all patterns share before their first wildcard.

    ``s3://b/train-{000..099}.tar`` names ``train-007.tar``; ``s3://b/{train,val}/*.tar`` names ``train/0.tar``; the two
    patterns ``s3://a/x/*.tar`` and ``s3://a/y/*.tar`` share ``a`` and name ``x/0.tar``. With ``folders`` a pattern
    without wildcard is itself the folder.
    """

    def __init__(self, patterns: Sequence[str], *, folders: bool = False) -> None:
        bases = [_parts(strip_protocol(_literal_folder(pattern, folders))) for pattern in patterns]
        self._base = list(bases[0])
        for base in bases[1:]:
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(self._base, base, strict=False))
            self._base = [part for part, _ in same]

    def name(self, uri: str) -> str:
        """Return the name of ``uri``, with '/' between its parts; empty for the shared folder itself."""
        return "/".join(_parts(strip_protocol(uri))[len(self._base) :])


def find(
    patterns: Sequence[str], storage_options: Mapping[str, Any], *, folders: bool = False, example: str = "*"
) -> Iterator[Found]:
    """Yield the files (or the folders) that ``patterns`` match.

    A pattern without glob characters is never listed: each of its files is asked for by name, 16 at a time. Memory: the
    listing of one folder (not where only files in it can match), and some 25 bytes per file to find those named twice.

    Args:
        patterns: fsspec URIs with braces and globs.
        storage_options: options of the file system.
        folders: match folders instead of files.
        example: what to append to a folder that is given instead of files, for messages.

    Raises:
        InputError: a pattern or one of its brace alternatives matches nothing, a file is matched twice, or the store
            refuses.
    """
    naming = Naming(patterns, folders=folders)
    seen = Digests()
    for pattern in patterns:
        expanded = expand_braces(pattern)

        def resolve(uri: str, pattern: str = pattern) -> Iterable[tuple[str, dict[str, Any]]]:
            if _MAGIC.search(_head(uri)):
                return _matches(uri, pattern, storage_options, folders)
            return [_stat(uri, pattern, storage_options, folders, example)]

        for matches in map_ahead(resolve, expanded, threads=_HEAD_THREADS):
            for uri, info in matches:
                name = naming.name(uri)
                if name != printable(name):
                    raise InputError(f"{_FIELD}: the name of '{printable(uri)}' is not UTF-8; rename it")
                if not seen.add(name):
                    raise InputError(
                        f"{_FIELD}: '{uri}' is matched twice, or another match has the same name '{name}', so image "
                        f"ids would repeat; remove '{pattern}' or write one pattern with braces for both"
                    )
                yield Found(uri, name, None if folders else info.get("size"), None if folders else etag(info))


def glob(
    uri: str, storage_options: Mapping[str, Any], *, folders: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (absolute URI, fsspec info) of the files (or folders) that a glob matches, folder by folder, sorted.

    ``*``, ``?`` and ``[..]`` match within a path component, ``**`` any number of folders (not through links). As in a
    shell, names that begin with a dot match only a component that begins with one. A listing that fails raises, where
    fsspec's own glob leaves out what it could not list.

    Raises:
        InputError: the store refuses.
    """
    head = _head(uri)
    tail = uri[len(head) :]
    prefix = _literal_folder(head, folders=False)
    segments = [segment for segment in head[len(prefix) :].split("/") if segment]
    fs, base = open_fs(prefix + tail or ".", storage_options)
    if protocol_of(uri) in ("file", "local"):
        prefix = f"{base.rstrip('/')}/"
    if segments[-1] == "**":
        segments.append("*")
    rules = [None if segment == "**" else re.compile(fnmatch.translate(segment)) for segment in segments]

    def closure(states: set[int]) -> set[int]:
        for state in sorted(states):
            while state < len(rules) and rules[state] is None:
                state += 1
                states.add(state)
        return states

    def step(states: set[int], name: str, is_link: bool) -> set[int]:
        following = set()
        for state in states:
            rule = rules[state] if state < len(rules) else None
            hidden = name.startswith(".") and not (state < len(rules) and segments[state].startswith("."))
            if state == len(rules) or hidden:
                continue
            if rule is None:
                if not is_link:  # a link to a folder above would be walked for ever
                    following.add(state)
            elif rule.fullmatch(name):
                following.add(state + 1)
        return closure(following)

    def walk(path: str, relative: str, states: set[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        # Of a folder in which only files can match nothing is held, so that a million shards may lie in it.
        listed = list_folder if folders or min(states) < len(rules) - 1 else files_in
        for name, info in listed(fs, path, f"{prefix}{relative}"):
            following = step(states, name, bool(info.get("islink")))
            is_folder = info["type"] == "directory"
            if len(rules) in following and is_folder == folders:
                yield f"{prefix}{relative}{name}{tail}", info
            if is_folder and following - {len(rules)}:
                yield from walk(info["name"].rstrip("/"), f"{relative}{name}/", following - {len(rules)})

    return walk(base.rstrip("/") or base, "", closure({0}))


def check_unchanged(fs: Any, path: str, uri: str, planned: str | None) -> None:
    """Compare a file's version with the plan's; ``planned`` None asks for nothing.

    Raises:
        InputError: the file is another one than was planned.
    """
    if planned is not None and (now := etag(fs.info(path))) != planned:
        raise InputError(
            f"{_FIELD}: '{uri}' changed since the plan (it was {planned}, it is {now}); put it back or plan a new lake"
        )


def _matches(
    uri: str, pattern: str, storage_options: Mapping[str, Any], folders: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    count = 0
    for count, match in enumerate(glob(uri, storage_options, folders=folders), 1):  # noqa: B007 - used after the loop
        yield match
    if count == 0:
        raise InputError(_no_match(uri, pattern, storage_options, "folder" if folders else "file"))


def _stat(
    uri: str, pattern: str, storage_options: Mapping[str, Any], folders: bool, example: str
) -> tuple[str, dict[str, Any]]:
    fs, path = open_fs(uri, storage_options)
    with storage_errors(uri, _FIELD):
        try:
            info = fs.info(path)
        except FileNotFoundError as error:
            if refusal(error) is not None:
                raise
            try:
                reason = _no_match(uri, pattern, storage_options, "folder" if folders else "file")
            except InputError:  # the bucket itself is not there or not readable: the first error says it best
                raise error from None
            raise InputError(reason) from error
    if info["type"] == "directory" and not folders:
        raise InputError(f"{_FIELD}: '{uri}' is a folder; this format reads files, such as {uri.rstrip('/')}/{example}")
    if info["type"] != "directory" and folders:
        raise InputError(f"{_FIELD}: '{uri}' is a file; this format reads folders")
    absolute = path if protocol_of(uri) in ("file", "local") else uri
    return (absolute.rstrip("/") if folders else absolute), info


def _no_match(uri: str, pattern: str, storage_options: Mapping[str, Any], kind: str) -> str:
    """Say that nothing is there, and what is in the nearest folder that is."""
    fs, path = open_fs(uri, storage_options)
    of = "" if uri == pattern else f" (of '{pattern}')"
    missing = f"{_FIELD}: no {kind} matches '{uri}'{of}"
    wanted = posixpath.basename(path)
    parent = posixpath.dirname(path)
    while parent.strip("/"):
        names = [] if _MAGIC.search(parent) else [name for name, _ in list_folder(fs, parent, parent)]
        if names:
            shown = near(wanted, names) or names[:3]
            return f"{missing}; the folder '{parent}' holds {len(names)} entries, such as {', '.join(shown)}"
        wanted, parent = posixpath.basename(parent), posixpath.dirname(parent)
    return f"{missing}, and none of its folders exists; check the path"


def _head(uri: str) -> str:
    """Return ``uri`` up to the chained URIs behind the part that holds the path."""
    parts = uri.split("::")
    count = next((number for number, part in enumerate(parts, 1) if "://" in part), len(parts))
    return "::".join(parts[:count])


def _literal_folder(pattern: str, folders: bool) -> str:
    """Return the URI of the folder before the first wildcard, with its closing '/' (empty for the current one)."""
    head = _head(pattern)
    match = _ANY_MAGIC.search(head)
    if match is None and folders:
        return f"{head.rstrip('/')}/"
    literal = head[: match.start()] if match else head
    return literal[: literal.rfind("/") + 1]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]
