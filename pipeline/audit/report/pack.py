"""Numbers and text as they lie in the page: little, and safe whatever they hold."""

from __future__ import annotations

import base64
import json
import math
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: The code of NaN among quantised numbers.
NOTHING = 65535
#: Steps of a quantised number over the range of its column.
STEPS = 65534


def encoded(values: npt.NDArray[Any]) -> str:
    """Return an array's bytes, little-endian, as base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def quantised(values: Floats) -> dict[str, Any]:
    """Return columns (..., M) as 16-bit steps over each column's range: ``{"low": [M], "high": [M], "steps": base64}``.

    NaN is :data:`NOTHING`. The error is at most 1/131,068 of the column's range.
    """
    columns = values.reshape(-1, values.shape[-1])
    found = np.isfinite(columns)
    low = np.where(found, columns, np.inf).min(0, initial=np.inf)
    high = np.where(found, columns, -np.inf).max(0, initial=-np.inf)
    empty = low > high
    low, high = np.where(empty, 0.0, low), np.where(empty, 0.0, high)
    width = np.where(high > low, high - low, 1.0)
    steps = np.rint((np.where(found, columns, low) - low) / width * STEPS)
    codes = np.where(found, steps, NOTHING).astype(np.uint16)
    return {"low": low.tolist(), "high": high.tolist(), "steps": encoded(codes)}


def packed_maps(maps: Floats) -> dict[str, Any]:
    """Return maps (K, GRID, GRID) >= 0 as bytes over each one's maximum: ``{"scale": base64 (K,), "cells": base64}``.

    The scale is the maximum, float32, and 0 of a map that is NaN.
    """
    flat = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    scale = np.where(np.isfinite(flat).all(1), np.nan_to_num(flat).max(1, initial=0), 0.0)
    cells = np.rint(np.nan_to_num(flat) / np.where(scale > 0, scale, 1.0)[:, None] * 255)
    return {
        "scale": encoded(scale.astype(np.float32)),
        "cells": encoded(np.clip(cells, 0, 255).astype(np.uint8)),
    }


def packed_map(values: Floats, signed: bool) -> dict[str, Any]:
    """Return one map of any grid as ``{"rows", "columns", "scale", "cells"}``; 128 is zero where it is signed."""
    clean = np.nan_to_num(values)
    scale = float(np.abs(clean).max(initial=0))
    share = clean / (scale or 1.0)
    cells = np.rint(128 + 127 * share) if signed else np.rint(255 * share)
    return {
        "rows": values.shape[0],
        "columns": values.shape[1],
        "scale": round(scale, 6),
        "cells": encoded(np.clip(cells, 0, 255).astype(np.uint8)),
    }


def clean(text: str, most: int) -> str:
    """Return text without control characters and lone surrogates, cut to ``most`` characters."""
    kept = "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text[: most + 1])
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def script_json(value: Any) -> str:
    """Return JSON that cannot end a script element, nor begin a comment or an entity; NaN and infinity become null."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value
