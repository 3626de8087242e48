"""A store of whole objects over fsspec: what a lake needs of a file system, and nothing else.

Objects are written whole from memory and never appended to, because every stream writer we measured (s3fs, pyarrow,
fsspec on a local disk) publishes half a file when its process fails. The one primitive that file systems do not
agree on is create-only writing; :meth:`LakeStore.put_if_absent` has a recipe per file system and
:meth:`LakeStore.probe` finds servers that do not keep to it.

Every request is repeated where that may help (:mod:`pipeline.sources.retry`), and only there: a store that cannot be
used at all raises :class:`~schemas.errors.AccessError` at once, whatever the method says besides.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from pipeline.lake import local
from pipeline.sources.faults import ShortBodyError, denied, http_status, refusal
from pipeline.sources.remote import READ_SECONDS, is_object, look_up, read_whole, with_limits, without_repeats
from pipeline.sources.retry import repeat
from pipeline.sources.storage import is_storage_error
from schemas.errors import AccessError, InputError, LakeError
from schemas.redact import holds_credentials

PROBE_PREFIX = ".camlake-probe-"

# The S3 client limits the wait for an answer, but neither that for the leave to send nor the time in which a server
# takes no bytes: one try of a write may take a half more than the wait for an answer, and this many bytes a second.
_WRITE_FACTOR = 1.5
_SLOWEST_LINK = 128 * 1024

# fsspec's memory:// has no atomic create; all stores of a process share its dictionary, so they share this lock.
_MEMORY_LOCK = threading.Lock()


class StoreError(LakeError):
    """A request to the store failed, also when it was repeated; the same request may succeed later."""


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
        InputError: the URI names no file system that is installed, or holds credentials.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        if holds_credentials(uri):
            raise InputError(
                f"the lake's URI '{uri}' is written with credentials in it; "
                "give them in storage_options (--storage KEY=VALUE) or in the environment"
            )
        self.uri = uri.rstrip("/") or uri
        self.storage_options = dict(storage_options or {})
        # A stale listing would make resume do work twice and verify report holes, so fsspec's cache is off.
        options = {"use_listings_cache": False, **self.storage_options}
        try:
            options = with_limits(uri, options)
            fs, root = url_to_fs(uri, **options)
        except ImportError as error:
            raise InputError(
                f"'{uri}' needs a package that is not installed ({error}); install 'camlake[s3]' or 'camlake[gcs]'"
            ) from error
        except ValueError as error:
            raise InputError(f"'{uri}' is no URI that fsspec opens ({error}); use a folder, s3:// or gs://") from error
        self.fs = without_repeats(fs)
        self.root = root.rstrip("/")
        self._answer_seconds = float((options.get("config_kwargs") or {}).get("read_timeout") or READ_SECONDS)
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
            full = self._full(path)
            if self.kind == "local":
                repeat(lambda: local.replace(full, data), f"write {self.where(path)}")
            else:
                repeat(lambda: self.fs.pipe_file(full, data, **self._limit(data)), f"write {self.where(path)}")

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object whole unless there is one: atomic, and True for exactly one of many callers.

        False may also mean that this very call wrote the object and lost the reply (a request whose connection broke
        is repeated), so callers read the object back and compare a mark of their own.

        Raises:
            InputError: the file system cannot create an object only if it is absent.
            StoreError: the store refused or did not answer; whether the object was written is not known.
        """
        self._require_create()
        full = self._full(path)

        def create() -> bool:
            if self.kind == "local":
                return local.create(full, data)
            if self.kind == "memory":
                with _MEMORY_LOCK:
                    if self.fs.exists(full):
                        return False
                    self.fs.pipe_file(full, data)
                    return True
            try:
                self.fs.pipe_file(full, data, mode="create", **self._limit(data))
            except FileExistsError:
                return False
            except OSError as error:
                if http_status(error) == 412:
                    return False
                raise
            return True

        with self._explained("write", path):
            return repeat(create, f"create {self.where(path)}")

    def _limit(self, data: bytes) -> dict[str, float]:
        """Return the argument with which fsspec's asynchronous clients abandon a request."""
        if self.kind not in ("s3", "gcs"):
            return {}
        return {"timeout": _WRITE_FACTOR * self._answer_seconds + len(data) / _SLOWEST_LINK}

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is no error."""
        with self._explained("delete", path):
            if self.kind == "local":
                local.delete(self._full(path), self.root)
                return
            try:
                repeat(lambda: self.fs.rm_file(self._full(path)), f"delete {self.where(path)}")
            except FileNotFoundError as error:
                if refusal(error) is not None:
                    raise

    # Reading -----------------------------------------------------------------------------------------------------

    def get(self, path: str, size: int | None = None) -> bytes:
        """Return an object's bytes.

        Args:
            path: of the object.
            size: bytes that it should have, where they are known: that spares a request, and decides nothing.

        Raises:
            MissingObjectError: it is not there.
            StoreError: the store refused or did not answer.
        """
        with self._explained("read", path):
            return repeat(lambda: read_whole(self.fs, self._full(path), size), f"read {self.where(path)}")

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes ``start:stop`` of an object in one request.

        Raises:
            MissingObjectError: it is not there.
            StoreError: it ends before ``stop``, or the store refused or did not answer.
        """
        if stop <= start:
            return b""

        def read() -> bytes | None:
            data = bytes(self.fs.cat_file(self._full(path), start=start, end=stop))
            if len(data) == stop - start:
                return data
            if int(look_up(self.fs, self._full(path))["size"]) < stop:
                return None
            raise ShortBodyError(len(data), stop - start)

        with self._explained("read", path):
            found = repeat(read, f"read {self.where(path)}")
        if found is None:
            raise StoreError(f"{self.where(path)} ends before byte {stop}: it is cut short; run 'camlake verify'")
        return found

    def exists(self, path: str) -> bool:
        """Say whether an object is there; of S3 that takes one request."""
        if self.kind == "s3":
            with self._explained("look up", path):
                return repeat(lambda: is_object(self.fs, self._full(path)), f"look up {self.where(path)}")
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
            info = repeat(lambda: look_up(self.fs, self._full(path)), f"look up {self.where(path)}")
            if info["type"] != "file":
                raise FileNotFoundError(path)
            return int(info["size"])

    def list(self, folder: str = "", after: str = "") -> Iterator[Entry]:
        """Yield the objects under a folder, at any depth, in no fixed order; nothing where there is none.

        One request per 1,000 objects on S3, and no listing is held whole there or on a local disk. With ``after`` only
        those whose path sorts behind it: on S3 the others are not asked for.
        """
        with self._explained("list", folder):
            for name, size in self._names(self._full(folder), self._full(after) if after else ""):
                path = name[len(self.root) :].lstrip("/")
                if path > after:
                    yield Entry(path, size)

    def _names(self, full: str, after: str) -> Iterator[tuple[str, int]]:
        if self.kind == "local":
            yield from local.walk(full)
        elif self.kind == "s3":
            bucket, key, _ = self.fs.split_path(full)
            wanted = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
            if after:
                wanted["StartAfter"] = self.fs.split_path(after)[1]
            while True:
                page = repeat(lambda: self.fs.call_s3("list_objects_v2", **wanted), f"list {self.uri}")
                for item in page.get("Contents", ()):
                    if not item["Key"].endswith("/"):
                        yield f"{bucket}/{item['Key']}", int(item["Size"])
                if not page.get("IsTruncated"):
                    return
                wanted["ContinuationToken"] = page["NextContinuationToken"]
        else:
            found = repeat(lambda: self.fs.find(full, detail=True), f"list {self.uri}")
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
            self.put_if_absent(path, b"first")  # False where the reply was lost: what is kept tells
            second = self.put_if_absent(path, b"second")
            kept = self.get(path)
            self.delete(path)
        except (StoreError, AccessError) as error:
            # At the start, before any work, rights and buckets are input like the rest of the job file.
            raise InputError(f"output.uri '{self.uri}' cannot be written: {error}") from error
        if second or kept != b"first":
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
        except TypeError as error:
            # Clients are made at the first request, so that is where an option they do not know is refused.
            if not is_storage_error(error):
                raise
            raise InputError(
                f"'{self.uri}' is refused with its storage_options ({_reason(error)}); correct or remove them"
            ) from error
        except client_errors() as error:
            refused = refusal(error) or denied(error)
            if refused is not None:
                raise AccessError(f"cannot {verb} {name}: {refused.reason}; {refused.remedy}") from error
            if isinstance(error, FileNotFoundError):
                raise MissingObjectError(f"cannot {verb} {name}: it is not there; check the URI") from error
            if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
                raise StoreError(
                    f"cannot {verb} {name}: a file stands where a folder is needed, or the other way round; "
                    "give another output.uri"
                ) from error
            raise StoreError(
                f"cannot {verb} {name}: {_reason(error)}; check the network, the endpoint and the free space"
            ) from error


def client_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that mean "the store failed", of whichever clients are loaded."""
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


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
