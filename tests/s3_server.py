"""A local S3-compatible server over real HTTP, for tests of what touches an object store."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer


@dataclass(frozen=True)
class S3Store:
    """A bucket: ``url(path)`` is its fsspec URI, ``storage_options`` open it."""

    bucket: str
    storage_options: dict[str, Any] = field(repr=False)

    def url(self, path: str = "") -> str:
        """Return the URI of ``path`` in the bucket."""
        return f"s3://{self.bucket}/{path}".rstrip("/")

    @property
    def fs(self) -> s3fs.S3FileSystem:
        """A file system without caches."""
        return s3fs.S3FileSystem(**self.storage_options, use_listings_cache=False)

    def put(self, path: str, data: bytes) -> str:
        """Write an object and return its URI."""
        self.fs.pipe_file(f"{self.bucket}/{path}", data)
        return self.url(path)


class S3Server:
    """moto's server on a free port of the loopback address."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request otherwise
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options that fsspec needs for ``s3://`` URIs of this server."""
        return {
            "key": "testing",
            "secret": "testing",
            "client_kwargs": {"endpoint_url": self.endpoint, "region_name": "us-east-1"},
        }

    def store(self) -> S3Store:
        """Return a new, empty bucket."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        # not mkdir: with a region it sends a location constraint that us-east-1 servers may refuse
        s3fs.S3FileSystem(**self.storage_options, use_listings_cache=False).call_s3("create_bucket", Bucket=bucket)
        return S3Store(bucket, self.storage_options)

    def stop(self) -> None:
        """Shut the server down."""
        self._server.stop()
