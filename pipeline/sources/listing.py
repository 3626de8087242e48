"""The entries of a folder of any store, whole or one by one."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.faults import refusal
from pipeline.sources.remote import RemoteFiles
from pipeline.sources.storage import storage_errors

_FIELD = "source.uri"


def list_folder(fs: Any, path: str, uri: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, fsspec info) of a folder's entries, sorted by name; nothing where there is no such folder.

    The type of a symbolic link is that of what it points to; a dangling one and the empty placeholder objects of
    folders are left out.

    Raises:
        CamlakeError: the store refuses or fails.
    """
    entries: dict[str, dict[str, Any]] = {}
    with storage_errors(uri, _FIELD):
        try:
            listing = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            if refusal(error) is not None:  # not the folder is missing, but its bucket
                raise
            return []
        for info in listing:
            full = info["name"].rstrip("/")
            if full == path.rstrip("/") or (info["type"] == "file" and info["name"].endswith("/")):
                continue
            if (followed := _followed(fs, full, info)) is not None:
                entries[posixpath.basename(full)] = followed
    return sorted(entries.items())


def files_in(fs: Any, path: str, uri: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files among what :func:`list_folder` returns, in the same order.

    Of S3 at most a page of the listing is held, of a local folder its names: fsspec's listing of a million objects
    takes a gigabyte and more.

    Raises:
        CamlakeError: the store refuses or fails.
    """
    with storage_errors(uri, _FIELD):
        if isinstance(fs, LocalFileSystem) and fs.isdir(path):
            for full in sorted(fs.ls(path, detail=False)):
                try:
                    info = _followed(fs, full, fs.info(full))
                except FileNotFoundError:  # it was removed meanwhile
                    continue
                if info is not None and info["type"] == "file":
                    yield posixpath.basename(full), info
            return
        if isinstance(fs, RemoteFiles) and fs.lists_in_order(path):
            for info in fs.files(path):
                yield posixpath.basename(info["name"]), info
            return
    yield from (entry for entry in list_folder(fs, path, uri) if entry[1]["type"] == "file")


def _followed(fs: Any, path: str, info: dict[str, Any]) -> dict[str, Any] | None:
    """What a link points to, under the link's name; None where that is nothing."""
    if info["type"] in ("file", "directory") and not info.get("islink"):
        return info
    if fs.isdir(path):
        return {**info, "type": "directory"}
    return {**info, "type": "file"} if fs.isfile(path) else None
