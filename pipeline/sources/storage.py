"""Opening files of any store through fsspec, with the store's errors told in one sentence.

Nothing here knows of images: other rooms may open their files through it too.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO

import fsspec
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from schemas.errors import CamlakeError, InputError, did_you_mean

#: Bytes asked for at once from an object store when a file is read from front to back.
BLOCK_BYTES = 8 << 20

_BUFFER_BYTES = 1 << 20
_EXTRAS = {"s3": "camlake[s3]", "s3a": "camlake[s3]", "gs": "camlake[gcs]", "gcs": "camlake[gcs]"}
# Store clients raise errors of their own that are no OSError; they are known by the package that defines them.
_CLIENTS = {"aiobotocore", "aiohttp", "adlfs", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "TokenRetrievalError"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed", "TokenRefreshRequired"}


class StorageError(CamlakeError):
    """A store did not answer as it should; the same request may succeed later."""


def open_fs(
    uri: str, storage_options: Mapping[str, Any] | None = None, *, field: str = "source.uri"
) -> tuple[Any, str]:
    """Return the fsspec file system of ``uri`` and the path in it.

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
            fs, path = url_to_fs(uri, **options)
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
    return fs, path


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
    if isinstance(error, OSError | ImportError) or any(_package(link) in _CLIENTS for link in chain if link):
        return True
    # clients are made at the first request, so that is where an option they do not know is refused
    return isinstance(error, TypeError) and _raised_in(error) in _CLIENTS


def is_final(error: BaseException) -> bool:
    """Tell whether asking again is useless: the file is not there, is no file, or may not be read."""
    if isinstance(error, PermissionError):
        return _code(error) not in _EXPIRED
    return isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)


def translate(error: BaseException, uri: str, field: str) -> CamlakeError:
    """Return the error of one sentence for what a store raised about ``uri``.

    An :class:`InputError` where the user can put it right (no such file or bucket, no access, no credentials, a
    package that is missing), a :class:`StorageError` where trying again may help.
    """
    name = type(error).__name__
    where = f"{field}: '{uri}'"
    if isinstance(error, CamlakeError):
        return error
    if isinstance(error, ImportError):
        extra = _EXTRAS.get(protocol_of(uri))
        remedy = f"install {extra}" if extra else "install it"
        return InputError(f"{where} needs a package that is not installed ({_one_line(error)}); {remedy}")
    if name in _NO_CREDENTIALS:
        return InputError(
            f"{where} needs credentials and none were found; set them in the environment or in storage_options "
            "(anon: true for public buckets)"
        )
    if isinstance(error, TypeError):
        return InputError(f"{where} is refused with its storage_options ({_one_line(error)}); correct or remove them")
    if isinstance(error, FileNotFoundError):
        if _code(error) == "NoSuchBucket":
            return InputError(f"{where} is in a bucket that does not exist; check the bucket's name and the endpoint")
        return InputError(f"{where} does not exist; check the path")
    if isinstance(error, PermissionError):
        if _code(error) in _EXPIRED:
            return InputError(f"{where} was refused because the credentials have expired; renew them")
        return InputError(
            f"{where} may not be read (access denied{_detail(error)}); check the credentials and their permissions"
        )
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


def open_sequential(fs: Any, path: str, *, block_bytes: int = BLOCK_BYTES) -> BinaryIO:
    """Open a file that is read from front to back: few large requests, cheap small reads and short seeks.

    At most about ``block_bytes`` are held.
    """
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb", buffering=_BUFFER_BYTES)  # noqa: PTH123 - the caller closes it
    if isinstance(fs, MemoryFileSystem):
        # fsspec hands the same file object, with one position, to everybody who opens the path
        return io.BytesIO(fs.cat_file(path))
    raw = fs.open(path, "rb", block_size=block_bytes, cache_type="readahead")
    return io.BufferedReader(raw, _BUFFER_BYTES)


def open_random(fs: Any, path: str) -> BinaryIO:
    """Open a file that is read in ranges the reader chooses: each read is one request of just its bytes."""
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return open_sequential(fs, path)
    file: BinaryIO = fs.open(path, "rb", cache_type="none")
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


def _code(error: BaseException | None) -> str | None:
    """Return the error code of an S3 answer, from the error or its causes."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__ or error.__context__
    return None


def _detail(error: BaseException) -> str:
    code = _code(error)
    return f": {code}" if code and not code.isdigit() else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
