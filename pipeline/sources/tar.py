"""Members of a tar archive, read once from front to back, with every kind of damage told.

The standard library's ``tarfile`` ends its iteration without an error at a broken header, at a cut between two members
and at the first of two concatenated archives; :class:`TarStream` tells these apart.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO, cast

from pipeline.sources.base import UnitError

#: What reading a damaged (compressed) archive raises.
DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)

# A header may claim any size, and name another header as its own extension without end.
_HEADER_DAMAGE = (*DAMAGE, ValueError, OverflowError, MemoryError, RecursionError)
# Beyond this, not every file system can seek.
_MOST_BYTES = 1 << 43

_TAIL_BYTES = 1 << 20

# Subclasses of tarfile.HeaderError, in the module for decades but not in the type stubs.
_END_MARK: type[tarfile.HeaderError] = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_END_OF_FILE: type[tarfile.HeaderError] = tarfile.EmptyHeaderError  # type: ignore[attr-defined]


class _Header(tarfile.TarInfo):
    """Keeps on the archive why it had no further header."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            cast(_Archive, archive).ended_by = error
            raise


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    ended_by: tarfile.HeaderError | None = None


class TarStream:
    """A tar archive, plain or gzip, opened for one pass; a context manager.

    Members that are not read are skipped by seeking, which costs no request inside what is buffered.

    Args:
        file: binary file at its start; :meth:`close` closes it.
        uri: name of the shard, for messages.

    Raises:
        UnitError: the first header is no tar header.
    """

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self.uri = uri
        #: The end-of-archive mark was reached: every member was yielded.
        self.ended = False
        self._raw = file
        self.compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if self.compressed else file
        try:
            # Names that are not UTF-8 stay distinct and printable, since they become image ids.
            self._archive = _Archive(fileobj=self._file, mode="r", encoding="utf-8", errors="backslashreplace")
        except _HEADER_DAMAGE as error:
            self._file.close()
            file.close()
            raise UnitError(f"{uri} is no readable tar archive ({_words(error)}); write the shard again") from error

    def __enter__(self) -> TarStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive and its file."""
        self._archive.close()
        self._file.close()
        self._raw.close()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members in order.

        Raises:
            UnitError: the archive is cut or broken; the message names the shard and the offset.
        """
        while True:
            offset = self._archive.offset
            try:
                member = self._archive.next()
            except _HEADER_DAMAGE as error:
                raise self._damaged(offset, error) from error
            if member is None:
                self._check_end()
                return
            # A negative size would lead back to this header, for ever.
            if member.size < 0 or not offset <= self._archive.offset <= _MOST_BYTES:
                raise self._damaged(offset, tarfile.HeaderError(f"a member of {member.size} bytes"))
            # tarfile keeps every header for random access; a shard may have millions
            self._archive.members.clear()  # type: ignore[attr-defined]
            yield member

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the bytes of the member that was yielded last.

        Raises:
            UnitError: the archive is cut or broken inside the member.
        """
        try:
            if member.issparse():
                data = cast(BinaryIO, self._archive.extractfile(member)).read()
            else:
                self._file.seek(member.offset_data)
                data = self._file.read(member.size)
        except DAMAGE as error:
            raise self._damaged(member.offset_data, error) from error
        if len(data) != member.size:
            raise UnitError(
                f"{self.uri} is cut inside the member '{member.name}': {len(data)} of {member.size} bytes from "
                f"offset {member.offset_data} are there; write or copy the shard again"
            )
        return data

    def locate(self, member: tarfile.TarInfo) -> int | None:
        """Return the offset of the member's bytes in the shard; None where they are no contiguous range of it."""
        return None if self.compressed or member.issparse() else member.offset_data

    def _damaged(self, offset: int, error: Exception) -> UnitError:
        return UnitError(
            f"{self.uri} is damaged or cut near offset {offset}{' after decompression' if self.compressed else ''} "
            f"({_words(error)}); write or copy the shard again"
        )

    def _check_end(self) -> None:
        """Raise unless the archive ended with its end mark and nothing but padding follows."""
        ended_by, offset = self._archive.ended_by, self._archive.offset
        if not isinstance(ended_by, _END_MARK):
            if ended_by is None or isinstance(ended_by, _END_OF_FILE):
                raise UnitError(
                    f"{self.uri} is cut at offset {offset}, between two members: the end-of-archive mark is missing; "
                    "write or copy the shard again"
                )
            raise self._damaged(offset, ended_by)
        self.ended = True
        try:
            while tail := self._file.read(_TAIL_BYTES):
                if tail.strip(b"\0"):
                    raise UnitError(
                        f"{self.uri} goes on after its end-of-archive mark at offset {offset}, as archives that were "
                        "joined with cat do; what follows was not read: write the shard as one archive"
                    )
        except DAMAGE as error:
            raise self._damaged(offset, error) from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
