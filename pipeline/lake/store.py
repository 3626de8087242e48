"""A store of whole objects over fsspec: what a lake needs of a file system, and nothing else.

Objects are written whole from memory and never appended to, because every stream writer we measured (s3fs, pyarrow,
fsspec on a local disk) publishes half a file when its process fails. The one primitive that file systems do not
agree on is create-only writing; :meth:`LakeStore.put_if_absent` has a recipe per file system and
:meth:`LakeStore.probe` finds servers that do not keep to it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from pipeline.lake import local
from schemas.errors import InputError, LakeError

PROBE_PREFIX = ".camlake-probe-"
_CONFLICT_RETRIES = 6

# fsspec's memory:// has no atomic create; all stores of a process share its dictionary, so they share this lock.
_MEMORY_LOCK = threading.Lock()


class StoreError(LakeError):
    """A request to the store failed; the same request may succeed later."""


class MissingObjectError(StoreError):
    """The object is not there."""


class Entry(NamedTuple):
    """An object of a listing: path relative to the lake, size in bytes."""

    path: str
    size: int


class LakeStore:
    """The objects under one URI.

    Paths are relative to the URI, with '/' between the parts. Instances are safe to share between threads, and pickle
    as (uri, storage options).

    Args:
        uri: fsspec URI of the lake's folder; a local path too.
        storage_options: options of the fsspec file system.

    Raises:
        InputError: the URI names no file system that is installed.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.uri = uri.rstrip("/") or uri
        self.storage_options = dict(storage_options or {})
        # A stale listing would make resume do work twice and verify report holes, so fsspec's cache is off.
        options = {"use_listings_cache": False, **self.storage_options}
        try:
            self.fs, root = url_to_fs(uri, **options)
        except ImportError as error:
            raise InputError(
                f"'{uri}' needs a package that is not installed ({error}); install 'camlake[s3]' or 'camlake[gcs]'"
            ) from error
        except ValueError as error:
            raise InputError(f"'{uri}' is no URI that fsspec opens ({error}); use a folder, s3:// or gs://") from error
        self.root = root.rstrip("/")
        protocols = [self.fs.protocol] if isinstance(self.fs.protocol, str) else list(self.fs.protocol)
        kinds = {"file": "local", "local": "local", "memory": "memory", "s3": "s3", "s3a": "s3", "gs": "gcs"}
        self.kind = next((kinds[protocol] for protocol in protocols if protocol in kinds), "other")
        if not self.root and self.kind != "other":
            raise InputError(f"'{uri}' names no folder; give one, such as {uri.rstrip('/')}/lakes/run-1")

    def __reduce__(self) -> tuple[type[LakeStore], tuple[str, dict[str, Any]]]:
        return type(self), (self.uri, self.storage_options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def where(self, path: str) -> str:
        """Return the full URI of an object, for messages."""
        return f"{self.uri}/{path}" if path else self.uri

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    # Writing -----------------------------------------------------------------------------------------------------

    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, over one that may be there; readers see all of it or none.

        Raises:
            StoreError: the store refused or did not answer.
        """
        with self._explained("write", path):
            if self.kind == "local":
                local.replace(self._full(path), data)
            else:
                self.fs.pipe_file(self._full(path), data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object whole unless there is one: atomic, and True for exactly one of many callers.

        False may also mean that this very call wrote the object and lost the reply (clients repeat a request whose
        connection broke), so callers read the object back and compare a mark of their own.

        Raises:
            InputError: the file system cannot create an object only if it is absent.
            StoreError: the store refused or did not answer; whether the object was written is not known.
        """
        self._require_create()
        full = self._full(path)
        with self._explained("write", path):
            if self.kind == "local":
                return local.create(full, data)
            if self.kind == "memory":
                with _MEMORY_LOCK:
                    if self.fs.exists(full):
                        return False
                    self.fs.pipe_file(full, data)
                    return True
            for attempt in range(_CONFLICT_RETRIES):
                try:
                    self.fs.pipe_file(full, data, mode="create")
                except FileExistsError:
                    return False
                except OSError as error:
                    status = _http_status(error)
                    if status == 412:
                        return False
                    # 409: another conditional write of this key is under way; S3 asks to repeat.
                    if status != 409 or attempt == _CONFLICT_RETRIES - 1:
                        raise
                    time.sleep(0.05 * 2**attempt)
                else:
                    return True
        raise AssertionError("unreachable: the loop returns or raises")

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is no error."""
        with self._explained("delete", path):
            if self.kind == "local":
                local.delete(self._full(path), self.root)
                return
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm_file(self._full(path))

    # Reading -----------------------------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        """Return an object's bytes.

        Raises:
            MissingObjectError: it is not there.
            StoreError: the store refused or did not answer.
        """
        with self._explained("read", path):
            return bytes(self.fs.cat_file(self._full(path)))

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes ``start:stop`` of an object in one request.

        Raises:
            MissingObjectError: it is not there.
            StoreError: it ends before ``stop``, or the store refused or did not answer.
        """
        if stop <= start:
            return b""
        with self._explained("read", path):
            data = bytes(self.fs.cat_file(self._full(path), start=start, end=stop))
        if len(data) != stop - start:
            raise StoreError(f"{self.where(path)} ends before byte {stop}: it is cut short; run 'camlake verify'")
        return data

    def exists(self, path: str) -> bool:
        """Say whether an object is there."""
        try:
            self.size(path)
        except MissingObjectError:
            return False
        return True

    def size(self, path: str) -> int:
        """Return an object's size in bytes.

        Raises:
            MissingObjectError: it is not there.
        """
        with self._explained("look up", path):
            info = self.fs.info(self._full(path))
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return int(info["size"])

    def list(self, folder: str = "") -> Iterator[Entry]:
        """Yield the objects under a folder, at any depth, in no fixed order; nothing where there is none.

        One request per 1,000 objects on S3, and no listing is held whole there or on a local disk.
        """
        with self._explained("list", folder):
            for name, size in self._names(self._full(folder)):
                yield Entry(name[len(self.root) :].lstrip("/"), size)

    def _names(self, full: str) -> Iterator[tuple[str, int]]:
        if self.kind == "local":
            yield from local.walk(full)
        elif self.kind == "s3":
            bucket, key, _ = self.fs.split_path(full)
            more: dict[str, str] = {}
            while True:
                page = self.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/" if key else "", **more)
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):
                        yield f"{bucket}/{item['Key']}", int(item["Size"])
                if not page.get("IsTruncated"):
                    return
                more = {"ContinuationToken": page["NextContinuationToken"]}
        else:
            found = self.fs.find(full, detail=True)
            for name, info in found.items():
                # find() of an object's own name gives the object; a folder was asked for.
                if name != full:
                    yield name, int(info["size"])

    # Start -------------------------------------------------------------------------------------------------------

    def _require_create(self) -> None:
        if self.kind == "other":
            protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
            raise InputError(
                f"output.uri '{self.uri}': the file system '{protocol}' cannot create an object only if it is absent, "
                "which the lake's commits need; write to a local folder, s3:// or gs://"
            )

    def probe(self) -> None:
        """Check that objects can be written, created only if absent, read back and deleted here.

        Raises:
            InputError: one of these does not hold; the message says which and what to do.
        """
        self._require_create()
        path = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            first = self.put_if_absent(path, b"first")
            second = self.put_if_absent(path, b"second")
            kept = self.get(path)
            self.delete(path)
        except StoreError as error:
            raise InputError(f"output.uri '{self.uri}' cannot be written: {error}") from error
        if not first or second or kept != b"first":
            raise InputError(
                f"output.uri '{self.uri}': the store ignores conditional writes (a second create-only write was "
                "accepted), so two workers could both commit a unit; use a store that honours If-None-Match "
                "(AWS S3, MinIO, Ceph, GCS) or a local folder"
            )

    # Errors ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        """Turn what file systems and their clients raise into one sentence with the path and the remedy."""
        name = self.where(path)
        try:
            yield
        except FileNotFoundError as error:
            if self.kind in ("s3", "gcs") and "bucket" in str(error).lower():
                raise MissingObjectError(f"cannot {verb} {name}: there is no such bucket; create it first") from error
            raise MissingObjectError(f"cannot {verb} {name}: it is not there; check the URI") from error
        except PermissionError as error:
            raise StoreError(
                f"cannot {verb} {name}: access is denied ({_reason(error)}); check the credentials and the rights"
            ) from error
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise StoreError(
                f"cannot {verb} {name}: a file stands where a folder is needed, or the other way round; "
                "give another output.uri"
            ) from error
        except _client_errors() as error:
            raise StoreError(
                f"cannot {verb} {name}: {_reason(error)}; check the network, the endpoint and the free space"
            ) from error


def filesystem_of(uri: str, storage_options: Mapping[str, Any] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return (file system, path) of any URI, read without a listing cache.

    Raises:
        InputError: the URI names no file system that is installed.
    """
    try:
        fs, path = url_to_fs(uri, **{"use_listings_cache": False, **(storage_options or {})})
    except (ImportError, ValueError) as error:
        raise InputError(f"'{uri}' cannot be opened ({error}); check the URI, or install its package") from error
    return fs, path


def client_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that mean "the store failed", of whichever clients are loaded."""
    return _client_errors()


def _client_errors() -> tuple[type[BaseException], ...]:
    # The clients are optional and raise their own roots for lost connections and missing credentials; one that is
    # not loaded cannot have raised.
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    found = [getattr(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (OSError, *found)


def _http_status(error: BaseException) -> int | None:
    """HTTP status of the S3 answer behind an exception, or None."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status is not None else None
        cause = cause.__cause__
    return None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
