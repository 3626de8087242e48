"""Stores of every kind that the lake is written to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lake.store import LakeStore


@pytest.fixture
def memory_store() -> Iterator[LakeStore]:
    """A store in memory of its own, emptied afterwards."""
    store = LakeStore(f"memory://lake-{uuid.uuid4().hex}/run")
    yield store
    for entry in list(store.list()):
        store.delete(entry.path)


@pytest.fixture(params=["local", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> LakeStore:
    """An empty store: on a local disk, in memory, and behind an S3-compatible server."""
    if request.param == "local":
        return LakeStore(str(tmp_path / "a" / "lake"))
    if request.param == "memory":
        return request.getfixturevalue("memory_store")
    bucket = request.getfixturevalue("s3_store")
    return LakeStore(bucket.url("a/lake"), bucket.storage_options)
