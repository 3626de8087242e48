"""Images that are files of their own, read ahead on threads: each file of an object store costs a round trip."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.ahead import map_ahead
from pipeline.sources.base import Sample
from pipeline.sources.storage import is_final, is_storage_error, open_fs, protocol_of, translate
from schemas.errors import InputError

_THREADS = 8
_LOCAL = ("file", "local")


class ImageReader:
    """Reads whole image files that a home file (a manifest, a table, a folder) refers to.

    Args:
        home: URI of the home file; relative URIs are relative to its folder.
        storage_options: options of the home's file system. They are used for images of the same protocol, and for all
            where the home is local, since a local home needs none itself.
    """

    def __init__(self, home: str, storage_options: Mapping[str, Any]) -> None:
        self._folder = home[: home.rfind("/") + 1]
        self._protocol = protocol_of(home)
        self._options = dict(storage_options)

    def resolve(self, uri: str) -> str:
        """Return the absolute URI of ``uri`` as written in the home file."""
        if "://" in uri or uri.startswith("/"):
            return uri
        if not any(part in (".", "..") for part in uri.split("/")):
            return self._folder + uri
        head, separator, folder = self._folder.rpartition("://")
        return head + separator + posixpath.normpath(folder + uri)

    def fill(self, sample: Sample) -> Sample:
        """Read the file at ``sample.uri`` into ``sample``, or set its error where the file can never be read.

        Raises:
            CamlakeError: the store fails in a way that may pass.
        """
        if sample.data is not None or sample.error is not None:
            return sample
        same = protocol_of(sample.uri) == self._protocol or self._protocol in _LOCAL
        try:
            fs, path = open_fs(sample.uri, self._options if same else None, field="image")
            if isinstance(fs, LocalFileSystem) and Path(path).exists() and not Path(path).is_file():
                # A pipe would never end, and some devices neither.
                sample.error = f"image: '{sample.uri}' is a folder, a pipe or a device, not a file; give a file"
                return sample
            data = fs.cat_file(path)
        except InputError as error:
            sample.error = str(error)
            return sample
        except Exception as error:
            if not is_storage_error(error):
                raise
            told = translate(error, sample.uri, "image")
            if not is_final(error):
                raise told from error
            sample.error = str(told)
            return sample
        sample.data, sample.byte_offset, sample.byte_size = data, 0, len(data)
        return sample

    def fill_all(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples filled, in order, at most 16 files ahead."""
        return map_ahead(self.fill, samples, threads=_THREADS)
