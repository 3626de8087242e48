"""Named arrays as bytes: ``.npz`` archives without pickles, the same bytes for the same arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

#: The oldest that a zip archive can hold.
_TIME = (1980, 1, 1, 0, 0, 0)


def archive(arrays: Arrays, *, stored: Collection[str] | None = ()) -> bytes:
    """Return arrays as bytes, compressed but for those in ``stored`` (None: all)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=1) as file:
        for name, values in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _TIME)
            plain = stored is None or name in stored
            member.compress_type = zipfile.ZIP_STORED if plain else zipfile.ZIP_DEFLATED
            with file.open(member, "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, values, allow_pickle=False)
    return buffer.getvalue()


def unarchived(data: bytes) -> Arrays:
    """Return what :func:`archive` was given."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return dict(stored)
