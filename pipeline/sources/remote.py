"""Files of a store behind a network: requests are repeated where that helps, and short replies are never taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from fsspec.core import split_protocol
from fsspec.spec import AbstractBufferedFile

from pipeline.sources.faults import ShortBodyError, clarified, error_code
from pipeline.sources.retry import repeat

#: Seconds without a byte after which a request is given up and repeated.
READ_SECONDS = 20
_CONNECT_SECONDS = 5
_ANNOUNCE = {"s3", "s3a", "gs", "gcs"}


def with_limits(uri: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file system's options with short timeouts and no repeats of the S3 client's own, unless they are set.

    botocore repeats a request five times, and s3fs that five times again, twice over for reads: against a server that
    does not answer this takes half an hour.
    """
    config = options.get("config_kwargs") or {}
    if split_protocol(uri)[0] not in ("s3", "s3a") or "::" in uri or not isinstance(config, Mapping):
        return dict(options)
    limits = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"total_max_attempts": 1},
    }
    return {**options, "config_kwargs": {**limits, **config}}


def without_repeats(fs: Any) -> Any:
    """Make an s3fs file system leave repeats to :func:`~pipeline.sources.retry.repeat`; others stay as they are."""
    if hasattr(fs, "call_s3"):
        fs.retries = 1
    return fs


def look_up(fs: Any, path: str) -> dict[str, Any]:
    """Return fsspec's ``info``; where S3 refuses it, the error says why."""
    found: dict[str, Any] = _told_why(fs, path, lambda: fs.info(path))
    return found


def _told_why(fs: Any, path: str, request: Callable[[], Any]) -> Any:
    """Return what a request returns that looks ``path`` up; its error is one that says why."""
    try:
        return request()
    except Exception as error:  # noqa: BLE001 - it is raised again, or one that says more
        told = clarified(fs, path, error)
        raise told from told.__cause__


def is_object(fs: Any, path: str) -> bool:
    """Tell by one request whether S3 holds an object; fsspec's ``info`` asks for a folder too where there is none."""
    bucket, key, _ = fs.split_path(path)
    try:
        _told_why(fs, path, lambda: fs.call_s3("head_object", Bucket=bucket, Key=key))
    except FileNotFoundError:
        return False
    return True


def _announces(fs: Any) -> bool:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & _ANNOUNCE)


def read_whole(fs: Any, path: str, size: int | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        fs: file system.
        path: the file.
        size: bytes that it should have, where they are known: if they come, S3 and GCS are not asked how many it has.

    Raises:
        ShortBodyError: they are not as many as S3 or GCS announced; other clients compare with the reply's header.
    """
    if not _announces(fs):
        return bytes(fs.cat_file(path))
    if size is not None:
        data = _in_one_request(fs, path)
        if len(data) == size:
            return data
    found = look_up(fs, path)
    if found["type"] != "file":
        raise FileNotFoundError(path)
    announced = int(found["size"])
    data = _in_one_request(fs, path)
    if len(data) != announced:
        raise ShortBodyError(len(data), announced)
    return data


def _in_one_request(fs: Any, path: str) -> bytes:
    # s3fs would look the size up, to compare it with nothing, unless it may make one request only.
    return bytes(fs.cat_file(path, max_concurrency=1) if hasattr(fs, "call_s3") else fs.cat_file(path))


def _fetched(fetch: Callable[[int, int], bytes], start: int, stop: int) -> bytes:
    try:
        return fetch(start, stop)
    except IndexError as error:
        # s3fs looks into the arguments of whatever failed, and a timeout has none.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


class RemoteFiles:
    """What the sources need of an fsspec file system behind a network.

    Errors are those of the file system, after the last repeat.
    """

    def __init__(self, fs: Any) -> None:
        self.fs = without_repeats(fs)

    def info(self, path: str) -> dict[str, Any]:
        """Return fsspec's ``info`` of a file or folder."""
        return repeat(lambda: look_up(self.fs, path), f"look up {self._name(path)}")

    def ls(self, path: str, detail: bool = True) -> Any:
        """Return the entries of a folder."""
        return repeat(lambda: self.fs.ls(path, detail=detail), f"list {self._name(path)}")

    def lists_in_order(self, path: str) -> bool:
        """Tell whether :meth:`files` may be asked: of S3, whose listings are sorted, but not of directory buckets."""
        if not hasattr(self.fs, "call_s3") or self.fs.version_aware:
            return False
        return not str(self.fs.split_path(path)[0]).endswith("--x-s3")

    def files(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield fsspec's ``info`` of the files of a folder of S3 in the order of their names, a page at a time."""
        bucket, key, _ = self.fs.split_path(path.rstrip("/"))
        wanted = {"Bucket": bucket, "Prefix": f"{key}/" if key else "", "Delimiter": "/", **self.fs.req_kw}
        last = ""
        while True:
            page = repeat(lambda: self.fs.call_s3("list_objects_v2", **wanted), f"list {self._name(path)}")
            for item in page.get("Contents", ()):
                if item["Key"].endswith("/"):  # the placeholder of a folder
                    continue
                if item["Key"] <= last:
                    raise OSError(
                        f"{item['Key']} is listed after {last}; name the files by braces instead of a pattern"
                    )
                last = item["Key"]
                yield {**item, "name": f"{bucket}/{last}", "type": "file", "size": int(item["Size"])}
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or folder."""
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Tell whether there is a folder."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Tell whether there is a file."""
        return self._type(path) == "file"

    def cat_file(self, path: str) -> bytes:
        """Return the bytes of a file, as many as the store announced."""
        return repeat(lambda: read_whole(self.fs, path), f"read {self._name(path)}")

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes ``start:stop`` of a file, fewer where it ends before that."""

        def ask() -> bytes:
            data = bytes(self.fs.cat_file(path, start=start, end=stop))
            if len(data) != stop - start and int(look_up(self.fs, path)["size"]) >= stop:
                raise ShortBodyError(len(data), stop - start)
            return data

        return repeat(ask, f"read bytes {start} to {stop} of {self._name(path)}")

    def open(self, path: str, block_bytes: int | None, cache_type: str, size: int | None = None) -> BinaryIO:
        """Open a file for reading; a read that breaks off goes on where it was.

        Args:
            path: the file.
            block_bytes: bytes that are read ahead at most; None: the file system's own choice.
            cache_type: fsspec's.
            size: bytes that the file has, where they are known. A store that announces another number, or not the same
                one twice, is asked again: what looks cut would be recorded as damage.
        """

        def ask() -> BinaryIO:
            how = {"block_size": block_bytes, "cache_type": cache_type}
            opened: BinaryIO = _told_why(self.fs, path, lambda: self.fs.open(path, "rb", **how))
            announced = getattr(opened, "size", None)
            if announced is not None and (size is not None or _announces(self.fs)):
                expected = look_up(self.fs, path)["size"] if size is None else size
                if announced != expected:
                    opened.close()
                    raise ShortBodyError(announced, expected)
            return opened

        file = repeat(ask, f"open {self._name(path)}")
        if isinstance(file, AbstractBufferedFile) and file.size is not None:
            fetch = file.cache.fetcher

            def fetch_all(start: int, stop: int) -> bytes:
                def ask() -> bytes:
                    data: bytes = _fetched(fetch, start, stop)
                    if len(data) != stop - start:
                        raise ShortBodyError(len(data), stop - start)
                    return data

                return repeat(ask, f"read bytes {start} to {stop} of {self._name(path)}")

            file.cache.fetcher = fetch_all
        return file

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
                raise
            return None

    def _name(self, path: str) -> str:
        # What follows a '?' may be a signature, and what stands before an '@' a password.
        protocol, _, rest = str(self.fs.unstrip_protocol(path)).partition("?")[0].partition("://")
        host, slash, key = rest.partition("/")
        return f"{protocol}://{host.rpartition('@')[2]}{slash}{key}"
