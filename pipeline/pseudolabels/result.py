"""What a unit of a pseudo-label job came to, and the file in which its images wait for being written."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from pipeline.lake.sink import UnitResult
from pipeline.pseudolabels.labels import ClassScore


class Piece(NamedTuple):
    """Bytes in a spool."""

    offset: int
    size: int


class Spool:
    """Encoded images of a unit on the local disk: a unit may have more of them than the memory holds."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="camlake-")  # noqa: SIM115 - closed by close()
        self._lock = threading.Lock()
        self._end = 0

    def put(self, data: bytes) -> Piece:
        """Keep bytes."""
        with self._lock:
            piece = Piece(self._end, len(data))
            self._file.seek(piece.offset)
            self._file.write(data)
            self._file.flush()
            self._end += len(data)
        return piece

    def get(self, piece: Piece) -> bytes:
        """Return bytes that were kept."""
        return os.pread(self._file.fileno(), piece.size, piece.offset)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


@dataclass(frozen=True)
class LabelledImage:
    """The labels of an image, encoded: ``files`` by path, of which ``mask`` is the index image; its rows of the table.

    ``size`` is (H, W).
    """

    image_index: int
    mask: str
    size: tuple[int, int]
    classes: tuple[ClassScore, ...]
    files: Mapping[str, Piece]
    rows: pa.Table


@dataclass(frozen=True)
class LabelResult(UnitResult):
    """Everything that one attempt at a unit of a pseudo-label job produced."""

    labels: Sequence[LabelledImage] = ()
    flags: Mapping[str, int] = field(default_factory=dict)
    spool: Spool | None = None
