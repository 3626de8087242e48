"""The Parquet tables: types, nulls, attributes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.lake import tables
from schemas.tables import images_schema


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, "int64", None),
        ("12", "int64", 12),
        (" 12 ", "int64", 12),
        (12.0, "int64", 12),
        (12.5, "int64", None),
        ("12.5", "int64", None),
        (2**63, "int64", None),
        (True, "int64", 1),
        (b"7", "int64", 7),
        (float("nan"), "int64", None),
        ("x", "int64", None),
        ([1], "int64", None),
        ("1.5", "float64", 1.5),
        ("", "float64", None),
        ({}, "float64", None),
        ("Yes", "bool", True),
        ("0", "bool", False),
        (1, "bool", True),
        (0.0, "bool", False),
        ("maybe", "bool", None),
        (2, "bool", None),
        ("é", "string", "é"),
        ("é".encode(), "string", "é"),
        (b"\xff", "string", None),
        (3, "string", "3"),
        (True, "string", "true"),
        ({"a": [1]}, "string", '{"a": [1]}'),
    ],
)
def test_attributes_convert_or_become_null(value: Any, kind: str, expected: Any) -> None:
    result = tables.convert(value, kind)
    assert result == expected
    assert type(result) is type(expected)


def row(**members: Any) -> dict[str, Any]:
    return {"image_id": "a", "uri": "u", "status": "ok"} | members


def test_images_table_has_the_schema_and_the_attributes() -> None:
    rows = [row(width=3, age="x", predicted_probability=float("nan")), row(image_id="b", age="4", status="read_error")]
    table = tables.images_table("u1", rows, {"age": "int64"})
    assert table.schema.equals(images_schema({"age": "int64"}))
    assert table["age"].to_pylist() == [None, 4]
    assert table["unit_id"].to_pylist() == ["u1", "u1"]
    assert table["width"].to_pylist() == [3, None]
    assert table["predicted_probability"].to_pylist() == [None, None]
    assert tables.images_table("u1", [], {}).num_rows == 0


def test_images_table_refuses_unknown_columns_and_repeated_ids() -> None:
    with pytest.raises(ValueError, match=r"'widht' is not in the schema \(did you mean width"):
        tables.images_table("u1", [row(widht=3)], {})
    with pytest.raises(ValueError, match="'a' appears twice in unit u1"):
        tables.images_table("u1", [row(), row()], {})


def test_required_columns_must_not_be_null() -> None:
    table = tables.images_table("u1", [row(status=None)], {})
    with pytest.raises(ValueError, match="'status' must not be null, and is in 1 rows"):
        tables.to_parquet(table, {})


def test_parquet_holds_metadata_zstd_and_dictionaries() -> None:
    table = tables.images_table("u1", [row(sha256=b"x" * 32)], {})
    data = tables.to_parquet(table, {"run_id": "r", "unit_id": "u1"})
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.metadata[b"run_id"] == b"r"
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    back = file.read()
    assert pa.types.is_dictionary(back.schema.field("status").type)
    assert back.equals(table.replace_schema_metadata(back.schema.metadata))
    assert data == tables.to_parquet(table, {"run_id": "r", "unit_id": "u1"})


def test_floats_given_as_numpy_scalars() -> None:
    table = tables.images_table("u1", [row(label=np.int64(3), predicted_probability=np.float32(0.5))], {})
    assert table["label"].to_pylist() == [3]
    assert table["predicted_probability"].to_pylist() == [0.5]
