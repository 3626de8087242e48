"""A place to put shards in: a local folder, fsspec's memory and an S3-compatible server."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

import schemas.job
from pipeline.sources import Sample, Source, open_source


@dataclass
class Place:
    """A store's folder; ``put`` writes an object and returns its URI."""

    root: str
    storage_options: dict[str, Any] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"

    def put(self, path: str, data: bytes) -> str:
        fs, inner = fsspec.core.url_to_fs(self.url(path), use_listings_cache=False, **self.storage_options)
        fs.makedirs(inner.rpartition("/")[0], exist_ok=True)
        fs.pipe_file(inner, data)
        return self.url(path)

    def source(self, uri: str | list[str], kind: str, **more: Any) -> Source:
        config = {"uri": uri, "format": kind, "storage_options": self.storage_options, **more}
        return open_source(schemas.job.Source.model_validate(config))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A local folder."""
    return Place(str(tmp_path))


@pytest.fixture(params=["local", "memory", "s3"])
def any_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The same on three kinds of store."""
    if request.param == "local":
        return Place(str(tmp_path))
    if request.param == "memory":
        return Place(f"memory://{uuid.uuid4().hex}")
    store = request.getfixturevalue("s3_store")
    return Place(store.url("some/folder"), store.storage_options)


def tar_bytes(members: Iterable[tuple[str, bytes]], *, mode: str = "w", kind: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar archive of (name, data)."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def read_all(source: Source) -> list[Sample]:
    """Plan and read everything."""
    return [sample for unit in source.plan() for sample in source.read(unit)]


class Counting(io.FileIO):
    """A local file that counts the bytes read of it."""

    total = 0

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        type(self).total += count or 0
        return count
