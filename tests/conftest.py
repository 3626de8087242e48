"""Fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3_server import S3Server, S3Store


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3-compatible server for the session, on a free local port."""
    from tests.s3_server import S3Server  # seconds to import, and most runs of a single file need no S3

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_store(s3_server: S3Server) -> S3Store:
    """A new bucket: ``.url(path)``, ``.put(path, data)`` and ``.storage_options``."""
    return s3_server.store()
