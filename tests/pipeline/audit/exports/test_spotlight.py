"""The table for Spotlight."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.audit.exports import export
from pipeline.audit.exports.spotlight import ALPHA, SIDE
from pipeline.lake import Lake
from tests.pipeline.audit.exports.pictured import make_pictured, plain
from tests.pipeline.audit.lakes import HEIGHT, VIEW, WIDTH


@pytest.fixture(scope="module")
def folder(pictured: Lake, audit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "table"
    export(pictured, "spotlight", output, audit=audit)
    return output


def test_rows_hold_pictures_names_measures_and_findings(folder: Path, pictured: Lake) -> None:
    rows = pq.read_table(folder / "table.parquet").to_pylist()
    assert len(rows) == 4
    for row in rows:
        image = pictured.image(row["image_id"])
        assert row["image"] == pictured.image_bytes(row["image_id"])
        assert (row["label"], row["prediction"], row["site"]) == (
            image["label_name"],
            image["predicted_name"],
            image["site"],
        )
        assert row["confidence"] == pytest.approx(image["predicted_probability"])
        assert len(row["embedding"]) == 5 and sum(row["embedding"]) == pytest.approx(1, abs=1e-4)
        assert row["energy"] > 0 and 0 < row["gini"] < 1
    both = next(row for row in rows if row["image_id"].endswith("00007"))
    assert (both["tags"], both["findings"]) == ("shortcut, border", "A mark.\nAn edge.")


def test_overlays_colour_the_view_and_leave_the_rest(folder: Path) -> None:
    for row in pq.read_table(folder / "table.parquet").to_pylist():
        with Image.open(io.BytesIO(row["overlay"])) as opened:
            assert opened.format == "PNG" and opened.size == (SIDE, SIDE * HEIGHT // WIDTH)
            laid = np.asarray(opened.convert("RGB"), float)
        original = np.asarray(Image.open(io.BytesIO(row["image"])).resize((SIDE, 240), Image.Resampling.LANCZOS), float)
        outside = int(VIEW[0] * SIDE / WIDTH) - 4
        assert np.abs(laid - original)[:, :outside].max() <= 1
        inside = np.abs(laid - original)[:, outside + 8 : SIDE // 2].mean()
        assert inside > 20 * ALPHA


def test_types_name_columns_and_categories_are_dictionaries(folder: Path) -> None:
    schema = pq.read_schema(folder / "table.parquet")
    types = json.loads((folder / "dtype.json").read_text())
    assert set(types) <= set(schema.names)
    assert (types["image"], types["overlay"], types["embedding"]) == ("Image", "Image", "Embedding")
    for field in schema:
        # Spotlight reads plain text as a literal of Python where it can.
        if pa.types.is_string(field.type):
            assert types[field.name] == "str", field.name


def test_without_an_audit_the_map_itself_is_the_embedding(pictured: Lake, tmp_path: Path) -> None:
    export(pictured, "spotlight", tmp_path / "out", images=1000)
    rows = pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()
    assert len(rows) == 117
    none = [row for row in rows if row["embedding"] is None]
    assert {row["tags"] for row in none} == {"all_zero, constant", "not_finite"} and len(none) == 6
    assert all(np.mean(row["embedding"]) == pytest.approx(1, rel=1e-5) for row in rows if row["embedding"])


def test_pandas_reads_it_as_spotlight_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    kinds = {"digit": "string", "age": "int64", "ok": "bool", "image": "string"}
    monkeypatch.setattr("tests.pipeline.audit.lakes.ATTRIBUTES", kinds)

    def draw(row: dict[str, Any]) -> bytes:
        number = int(row["image_id"][-5:])
        for key in ("site", "camera", "patient"):
            del row[key]
        row |= {"digit": str(number % 12), "age": number or None, "ok": None if number == 1 else True, "image": "[1]"}
        return plain(row)

    lake = make_pictured(tmp_path, draw=draw, units=1, images=25, failed=False)
    export(lake, "spotlight", tmp_path / "out")
    frame = pandas.read_parquet(tmp_path / "out" / "table.parquet").convert_dtypes()
    for name in ("digit", "label", "attribute_image"):
        assert isinstance(frame[name].dtype, pandas.CategoricalDtype)
    assert set(frame["digit"].cat.categories) == {str(number) for number in range(12)}
    assert ast.literal_eval(frame["digit"].iloc[0]) in range(12)  # what would become of it otherwise
    assert str(frame["age"].dtype) == "Int64" and frame["age"].isna().sum() == 1
    assert str(frame["ok"].dtype) == "boolean" and frame["ok"].isna().sum() == 1
    assert len(frame) == 25 and isinstance(frame["image"].iloc[0], bytes)
