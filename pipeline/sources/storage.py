"""Opening files of any store through fsspec, with the store's errors told in one sentence.

Nothing here knows of images: other rooms may open their files through it too.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO

import fsspec
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.sources.faults import CLIENTS, denied, http_status, refusal
from pipeline.sources.remote import RemoteFiles, with_limits
from schemas.errors import AccessError, CamlakeError, InputError, did_you_mean

#: Bytes asked for at once from an object store when a file is read from front to back.
BLOCK_BYTES = 8 << 20

_BUFFER_BYTES = 1 << 20
# A name that is too long, a ring of links, devices that are not there.
_NO_FILE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV)
_GONE_STATUS = (401, 403, 404, 410)
_EXTRAS = {"s3": "camlake[s3]", "s3a": "camlake[s3]", "gs": "camlake[gcs]", "gcs": "camlake[gcs]"}


class StorageError(CamlakeError):
    """A store did not answer as it should; the same request may succeed later."""


def open_fs(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, field: str = "source.uri"
) -> tuple[Any, str]:
    """Return the file system of ``uri`` and the path in it: fsspec's, or :class:`RemoteFiles` behind a network.

    Listings are never cached: a stale one would hide files that were written since.

    Args:
        uri: fsspec URI or local path, chained ones (``simplecache::s3://...``) too.
        storage_options: options of the file system.
        field: field of the job file that holds the URI, for messages.

    Raises:
        InputError: the protocol is unknown, its package is not installed, or an option is wrong.
    """
    options = dict(storage_options or {})
    if "::" not in uri:
        options.setdefault("use_listings_cache", False)
    try:
        with storage_errors(uri, field):
            fs, path = url_to_fs(uri, **with_limits(uri, options))
    except ValueError as error:
        protocol = protocol_of(uri)
        known = fsspec.available_protocols()
        if protocol in known:
            raise InputError(f"{field}: '{uri}' is no URI that fsspec opens ({_one_line(error)})") from error
        raise InputError(
            f"{field}: '{uri}' has the unknown protocol '{protocol}'{did_you_mean(protocol, known)}; "
            "use a local path, s3://, gs:// or another fsspec protocol"
        ) from error
    except TypeError as error:
        raise translate(error, uri, field) from error
    return (fs if isinstance(fs, LocalFileSystem | MemoryFileSystem) else RemoteFiles(fs)), path


def protocol_of(uri: str) -> str:
    """Return the protocol of the part of ``uri`` that holds its path, ``file`` for local paths."""
    return split_protocol(_path_part(uri))[0] or "file"


def strip_protocol(uri: str, *, field: str = "source.uri") -> str:
    """Return the path of ``uri`` as its file system writes it, without opening the file system.

    Raises:
        InputError: the protocol is unknown or its package is not installed.
    """
    part = _path_part(uri)
    with storage_errors(uri, field):
        try:
            kind = fsspec.get_filesystem_class(protocol_of(uri))
        except ValueError:
            open_fs(uri, field=field)  # raises the sentence
            raise
    return str(kind._strip_protocol(part))


def _path_part(uri: str) -> str:
    """Return the link of a chained URI that holds the path."""
    parts = uri.split("::")
    return next((part for part in parts if "://" in part), parts[-1])


@contextlib.contextmanager
def storage_errors(uri: str, field: str) -> Iterator[None]:
    """Turn what a store raises inside the block into a :class:`CamlakeError`; other errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CamlakeError) or not is_storage_error(error):
            raise
        raise translate(error, uri, field) from error


def is_storage_error(error: BaseException) -> bool:
    """Tell whether ``error`` comes from the file system or a store's client."""
    chain = (error, error.__cause__, error.__context__)
    if isinstance(error, OSError | ImportError) or any(_package(link) in CLIENTS for link in chain if link):
        return True
    # clients are made at the first request, so that is where an option they do not know is refused
    return isinstance(error, TypeError) and _raised_in(error) in CLIENTS


def is_final(error: BaseException) -> bool:
    """Tell whether this file can never be read, and others can: it is not there, is no file, or may not be read."""
    kinds = PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError
    odd = isinstance(error, OSError) and error.errno in _NO_FILE
    # Of a web server: the URL has expired, or is of nothing; each has its own signature.
    gone = _package(error) == "aiohttp" and http_status(error) in _GONE_STATUS
    return (isinstance(error, kinds) or odd or gone) and refusal(error) is None


def translate(error: BaseException, uri: str, field: str) -> CamlakeError:
    """Return the error of one sentence for what a store raised about ``uri``.

    An :class:`AccessError` where the store cannot be used at all (no such bucket, no credentials or wrong ones), an
    :class:`InputError` where the user can put this file right (it is not there or may not be read, a package that is
    missing), a :class:`StorageError` where trying again may help.
    """
    name = type(error).__name__
    where = f"{field}: '{uri}'"
    if isinstance(error, CamlakeError):
        return error
    if isinstance(error, ImportError):
        extra = _EXTRAS.get(protocol_of(uri))
        remedy = f"install {extra}" if extra else "install it"
        return InputError(f"{where} needs a package that is not installed ({_one_line(error)}); {remedy}")
    refused = refusal(error)
    if refused is not None:
        return AccessError(f"{where} cannot be read: {refused.reason}; {refused.remedy}")
    if isinstance(error, TypeError):
        return InputError(f"{where} is refused with its storage_options ({_one_line(error)}); correct or remove them")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{where} does not exist; check the path")
    not_allowed = denied(error)
    if not_allowed is not None:
        return InputError(f"{where} may not be read: {not_allowed.reason}; {not_allowed.remedy}")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{where} is a folder, not a file")
    if isinstance(error, NotADirectoryError):
        return InputError(f"{where} is a file, not a folder")
    if name == "ParamValidationError" or isinstance(error, ValueError):
        return InputError(f"{where} is not a name that the store accepts; check the bucket and the path")
    if name in {"EndpointConnectionError", "ClientConnectorError", "ConnectTimeoutError", "ConnectionRefusedError"}:
        return StorageError(f"{where} cannot be reached; check the network and the endpoint ({_one_line(error)})")
    return StorageError(f"{where} could not be read ({name}: {_one_line(error)}); try again")


def etag(info: Mapping[str, Any]) -> str | None:
    """Return the version of a file from fsspec's ``info``: the store's ETag, else ``size-mtime``, else None."""
    for key in ("ETag", "etag", "e_tag", "md5Hash"):
        if info.get(key):
            return str(info[key]).strip('"')
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        if info.get(key):
            when = info[key]
            # some stores give a date by name and a number in listings
            return f"{info.get('size')}-{when.timestamp() if isinstance(when, datetime) else when}"
    return None


def open_sequential(fs: Any, path: str, *, block_bytes: int = BLOCK_BYTES, size: int | None = None) -> BinaryIO:
    """Open a file that is read from front to back: few large requests, cheap small reads and short seeks.

    At most about ``block_bytes`` are held. A store that announces another ``size`` than the given one is asked again.
    """
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb", buffering=_BUFFER_BYTES)  # noqa: PTH123 - the caller closes it
    if isinstance(fs, MemoryFileSystem):
        # fsspec hands the same file object, with one position, to everybody who opens the path
        return io.BytesIO(fs.cat_file(path))
    raw: Any = fs.open(path, block_bytes, "readahead", size)
    return io.BufferedReader(raw, _BUFFER_BYTES)


def open_random(fs: Any, path: str, *, size: int | None = None) -> BinaryIO:
    """Open a file that is read in ranges the reader chooses: each read is one request of just its bytes."""
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return open_sequential(fs, path)
    file: BinaryIO = fs.open(path, None, "none", size)
    return file


def read_head(fs: Any, path: str, count: int) -> bytes:
    """Return the first ``count`` bytes of a file, fewer where it is shorter."""
    with open_sequential(fs, path, block_bytes=count) as file:
        return file.read(count)


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _raised_in(error: BaseException) -> str:
    """Return the package whose code raised ``error``."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name, trace = str(trace.tb_frame.f_globals.get("__name__")), trace.tb_next
    return name.partition(".")[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
