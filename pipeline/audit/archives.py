"""Named arrays as bytes: ``.npz`` archives without pickles, the same bytes for the same arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

Arrays = dict[str, npt.NDArray[Any]]

#: The oldest that a zip archive can hold.
_TIME = (1980, 1, 1, 0, 0, 0)
#: Of an array whose bytes are compressed: zstd is several times as quick as the archive's own deflate.
_COMPRESSED = ".zst"
_ZSTD = Zstd(level=1)
#: Arrays of fewer bytes are stored as they are.
_WORTH = 1 << 12


def archive(arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = True) -> bytes:
    """Return arrays as the bytes of an archive; uint8 arrays of one axis are taken for compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, values in arrays.items():
            if compress and values.nbytes >= _WORTH and not (values.dtype == np.uint8 and values.ndim == 1):
                plain = io.BytesIO()
                np.lib.format.write_array(plain, values, allow_pickle=False)
                name, values = f"{name}{_COMPRESSED}", np.frombuffer(_ZSTD.encode(plain.getvalue()), np.uint8)
            # A fixed time, so that the same sums are the same bytes.
            with file.open(zipfile.ZipInfo(f"{name}.npy", _TIME), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return buffer.getvalue()


def unarchived(data: bytes) -> Arrays:
    """Return what :func:`archive` was given.

    Raises:
        zipfile.BadZipFile, ValueError, RuntimeError: they are no such archive, or damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(_plain(stored))


def _plain(stored: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for name in stored.files:
        values = stored[name]
        if name.endswith(_COMPRESSED):
            plain = io.BytesIO(_ZSTD.decode(values.tobytes()))
            values = np.lib.format.read_array(plain, allow_pickle=False)
        yield name.removesuffix(_COMPRESSED), values
