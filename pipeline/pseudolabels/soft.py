"""The scores of all classes of an image as one NumPy archive."""

from __future__ import annotations

import io
import threading
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schemas.pseudolabels import BACKGROUND_ID

# NumPy parses an array's header as Python, and CPython 3.11's parser fails now and then in several threads at once
# (SystemError: AST constructor recursion depth mismatch); verification, evaluation and tuning read in threads.
_PARSING = threading.Lock()


def encode_soft(scores: npt.NDArray[np.float32], ids: Sequence[int]) -> bytes:
    """Return an ``.npz`` with ``scores`` (K + 1, H, W) float16 and ``ids`` (K + 1) int32, 0 (the background) first.

    Args:
        scores: (K + 1, H, W) in [0, 1]: the background's, then the classes'.
        ids: of the K classes.

    Raises:
        ValueError: the numbers do not fit.
    """
    if scores.ndim != 3 or len(scores) != len(ids) + 1:
        raise ValueError(f"scores of shape {scores.shape} for {len(ids)} classes and the background")
    buffer = io.BytesIO()
    # NumPy dates the members of its archives to 1980, so that the same scores give the same bytes.
    np.savez_compressed(
        buffer, scores=scores.astype(np.float16), ids=np.array([BACKGROUND_ID, *ids], np.int32), allow_pickle=False
    )
    return buffer.getvalue()


def decode_soft(data: bytes) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    """Return scores (K + 1, H, W) float32, and the ids of the K classes.

    Raises:
        ValueError: it is no archive of :func:`encode_soft`.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError("it is no archive of 'scores' and 'ids', or cut short")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [archive.read(f"{name}.npy") for name in ("scores", "ids")]
        # Inflated already, so that the lock is held for no more than headers and copies.
        with _PARSING:
            scores, ids = (np.lib.format.read_array(io.BytesIO(each), allow_pickle=False) for each in members)
    except (OSError, KeyError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it is no archive of 'scores' and 'ids' ({error})") from error
    if scores.ndim != 3 or ids.shape != scores.shape[:1] or not len(ids) or ids[0] != BACKGROUND_ID:
        raise ValueError(f"its 'scores' have shape {scores.shape} and its 'ids' {ids.shape}")
    return scores.astype(np.float32), tuple(int(each) for each in ids[1:])
