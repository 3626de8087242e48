"""What a file is, by its first bytes, so that a wrong ``source.format`` is named before anything starts."""

from __future__ import annotations

import tarfile

from schemas.errors import InputError

#: Bytes that :func:`kind_of` needs.
HEAD_BYTES = 1024

_MAGIC = (
    (b"PAR1", "Parquet"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"ARROW1", "Arrow IPC"),
    (b"\x89HDF", "HDF5"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "RIFF (WebP)"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_FORMATS = {
    "tar": "webdataset",
    "gzip": "webdataset",
    "Parquet": "parquet",
    "text": "list",
    "zip": "",
    "JPEG": "folder",
}
_FORMATS |= {"PNG": "folder", "GIF": "folder", "RIFF (WebP)": "folder"}


def kind_of(head: bytes) -> str:
    """Return the kind of a file by its first :data:`HEAD_BYTES` bytes: ``tar``, ``Parquet``, ``text``, ..."""
    if not head:
        return "empty"
    if _is_tar(head):  # first, since it has a checksum and may begin with any name
        return "tar"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if b"\0" not in head:
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            # a character may be cut at the end of the head
            if len(head) < HEAD_BYTES or error.start < len(head) - 3:
                return "non-UTF-8 text" if min(head) >= 9 else "unknown"
        return "text"
    return "unknown"


def check_kind(head: bytes, uri: str, source_format: str, allowed: tuple[str, ...]) -> str:
    """Return the kind of a file, which must be one of ``allowed``.

    Raises:
        InputError: it is of another kind; the message names the format that reads it, where there is one.
    """
    kind = kind_of(head)
    if kind in allowed:
        return kind
    other = _FORMATS.get(kind)
    remedy = f"give files of kind {' or '.join(allowed)}"
    if "text" in allowed and kind.endswith("text"):
        remedy = "write it as UTF-8"
    elif other and other != source_format:
        remedy = f"set format: {other}"
    what = "empty" if kind == "empty" else "of an unknown kind" if kind == "unknown" else f"a {kind} file"
    raise InputError(
        f"source.format: '{source_format}' reads {' or '.join(allowed)} files, but '{uri}' is {what}; {remedy}"
    )


def _is_tar(head: bytes) -> bool:
    if len(head) < tarfile.BLOCKSIZE:
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return not any(head)  # an archive without members is its end mark alone
    return True
