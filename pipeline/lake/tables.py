"""The two Parquet tables of a unit, built in memory."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake.sink import TARGET_COLUMNS, MapSet
from schemas.errors import did_you_mean
from schemas.redact import redact
from schemas.tables import EFFORT, IMAGES, MAPS, STATISTICS, images_schema

_TRUE = frozenset({"true", "yes", "1"})
_FALSE = frozenset({"false", "no", "0"})


def _to_string(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool | dict | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _to_int64(value: Any) -> int | None:
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        return None
    number = int(value.decode() if isinstance(value, bytes) else value)
    return number if -(2**63) <= number < 2**63 else None


def _to_float64(value: Any) -> float | None:
    return float(value.decode() if isinstance(value, bytes) else value)


def _to_bool(value: Any) -> bool | None:
    text = (value.decode() if isinstance(value, bytes) else str(value)).strip().lower()
    if text in _TRUE or text == "1.0":
        return True
    return False if text in _FALSE or text == "0.0" else None


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "string": _to_string,
    "int64": _to_int64,
    "float64": _to_float64,
    "bool": _to_bool,
}


def convert(value: Any, kind: str) -> Any:
    """Convert a raw attribute to its declared type; None where that is not possible.

    Args:
        value: as the source holds it: text, bytes (UTF-8), a number, a bool, a list or an object.
        kind: 'string' (lists and objects become JSON), 'int64' (whole numbers only), 'float64' or 'bool'
            (true/false, yes/no, 1/0).
    """
    if value is None:
        return None
    try:
        return _CONVERT[kind](value)
    except (TypeError, ValueError, OverflowError):  # UnicodeDecodeError is a ValueError
        return None


def images_table(unit_id: str, rows: Sequence[Mapping[str, Any]], attributes: Mapping[str, str]) -> pa.Table:
    """Return the images table of a unit.

    Raises:
        ValueError: a row has a column that the schema does not know, or repeats an image id.
    """
    schema = images_schema(dict(attributes))
    known = set(schema.names)
    seen: set[str] = set()
    for row in rows:
        unknown = sorted(set(row) - known)
        if unknown:
            raise ValueError(
                f"images table: column '{unknown[0]}' is not in the schema{did_you_mean(unknown[0], known)}; "
                "declare it as an attribute of the source"
            )
        if row["image_id"] in seen:
            raise ValueError(f"image id '{row['image_id']}' appears twice in unit {unit_id}; ids must be unique")
        seen.add(row["image_id"])
    columns: list[pa.Array] = []
    for field in schema:
        if field.name == "unit_id":
            values: list[Any] = [unit_id] * len(rows)
        else:
            values = [row.get(field.name) for row in rows]
        if field.name in attributes:
            values = [convert(value, attributes[field.name]) for value in values]
        if field.name in _TEXTS or attributes.get(field.name) == "string":
            values = [None if value is None else redact(value) for value in values]
        if field.name in _FLOATS:
            values = [None if value is None or math.isnan(value) else value for value in values]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=schema)


# Columns that may hold URIs as a list of images has them, signed perhaps.
_TEXTS = frozenset({"uri", "error"})
_FLOATS = frozenset(field.name for field in IMAGES if pa.types.is_floating(field.type))


def maps_table(
    unit_id: str,
    image_ids: npt.NDArray[Any],
    map_set: MapSet,
    order: npt.NDArray[np.int64],
    store_path: str,
    vmax: npt.NDArray[np.float32],
) -> pa.Table:
    """Return the maps table of one map set, with row i of the array in row i.

    Args:
        unit_id: the unit.
        image_ids: (N,) object array of the unit's image ids.
        map_set: the maps, in the engine's order.
        order: (T,) position in the map set of each row of the array.
        store_path: the array, relative to the lake.
        vmax: (T,) the scale as stored, in the engine's order.
    """
    targets, count = map_set.targets, len(order)
    values: dict[str, Any] = {
        "image_id": image_ids[targets.image_index[order]].tolist(),
        "unit_id": [unit_id] * count,
        "store_path": [store_path] * count,
        "store_row": np.arange(count, dtype=np.int32),
        "method": [map_set.method] * count,
        "layer": [map_set.layer] * count,
    }
    for name in TARGET_COLUMNS:
        column = getattr(targets, name)
        values[name] = column[order] if isinstance(column, np.ndarray) else [column[i] for i in order.tolist()]
    values |= {name: np.asarray(map_set.statistics[name])[order] for name in STATISTICS}
    values["vmax"] = vmax[order]
    for name in EFFORT:
        values[name] = np.asarray(map_set.effort[name])[order] if name in map_set.effort else [None] * count
    return pa.table([_column(values[field.name], field) for field in MAPS], schema=MAPS)


def _column(values: Any, field: pa.Field) -> pa.Array:
    # An undefined statistic is null in SQL, where NaN would poison averages; columns that may not be null keep NaN.
    if isinstance(values, np.ndarray) and pa.types.is_floating(field.type) and field.nullable:
        return pa.array(values.astype(np.float32), field.type, from_pandas=True)
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(field.type)
    return pa.array(values, field.type)


def to_parquet(table: pa.Table, metadata: Mapping[str, str]) -> bytes:
    """Return a table as a Parquet file: zstd, dictionary columns as such, ``metadata`` beside the schema.

    Raises:
        ValueError: a column that must not be null holds one.
    """
    for field in table.schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"column '{field.name}' must not be null, and is in {table[field.name].null_count} rows")
    dictionaries = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(dict(metadata)),
        buffer,
        compression="zstd",
        compression_level=3,
        use_dictionary=dictionaries,
    )
    return buffer.getvalue()
