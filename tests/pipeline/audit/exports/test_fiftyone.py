"""The FiftyOne folder, read as its format is documented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.audit.exports import export
from pipeline.audit.exports.fiftyone import SIDE
from pipeline.lake import Lake
from tests.pipeline.audit.exports.pictured import make_pictured, plain
from tests.pipeline.audit.lakes import HEIGHT, VIEW, WIDTH

Document = dict[str, Any]
#: What the types of fields may hold, as JSON.
HOLDS = {
    "ObjectIdField": dict,
    "StringField": str,
    "FloatField": (int, float),
    "IntField": int,
    "BooleanField": bool,
    "ListField": list,
    "EmbeddedDocumentField": dict,
    "HeatmapRangeField": list,
}


def read(folder: Path) -> tuple[Document, list[Document]]:
    """Read the folder, and hold it to its own description."""
    metadata = json.loads((folder / "metadata.json").read_text(), parse_constant=_refuse)
    samples = json.loads((folder / "samples.json").read_text(), parse_constant=_refuse)["samples"]
    for sample in samples:
        check(sample, metadata["sample_fields"], {"created_at", "last_modified_at", "_dataset_id"})
    assert len({sample["_id"]["$oid"] for sample in samples}) == len(samples)
    return metadata, samples


def _refuse(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def check(document: Document, fields: list[Document], absent: set[str]) -> None:
    known = {field["db_field"]: field for field in fields}
    assert set(document) - {"_cls"} == set(known) - absent
    for name, value in document.items():
        if name == "_cls" or value is None:
            continue
        field = known[name]
        kind = field["ftype"].rsplit(".", 1)[1]
        assert isinstance(value, HOLDS[kind]) and (kind == "BooleanField") == isinstance(value, bool), name
        if kind == "ObjectIdField":
            assert re.fullmatch("[0-9a-f]{24}", value["$oid"])
        if kind == "EmbeddedDocumentField":
            assert field["embedded_doc_type"].endswith(f".{value['_cls']}")
            check(value, field["fields"], set())


@pytest.fixture(scope="module")
def folder(pictured: Lake, audit: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "dataset"
    assert export(pictured, "fiftyone", output, audit=audit).images == 4
    return output


def test_the_folder_is_what_its_documents_say(folder: Path, pictured: Lake, audit: str) -> None:
    metadata, samples = read(folder)
    assert {path.name for path in folder.iterdir()} == {"metadata.json", "samples.json", "data", "fields"}
    assert metadata["media_type"] == "image" and metadata["version"] == "1.0.0"
    assert metadata["default_classes"] == [f"name-{number}" for number in range(4)]
    assert metadata["info"]["camlake"]["audit"] == audit
    assert len(samples) == 4
    for sample in samples:
        row = pictured.image(sample["image_id"])
        assert (folder / sample["filepath"]).read_bytes() == pictured.image_bytes(sample["image_id"])
        assert sample["metadata"]["width"] == WIDTH and sample["metadata"]["mime_type"] == "image/png"
        assert sample["ground_truth"]["label"] == row["label_name"]
        assert sample["prediction"]["label"] == row["predicted_name"]
        assert sample["prediction"]["confidence"] == pytest.approx(row["predicted_probability"])
        assert sample["outcome"] == ("right" if row["label"] == row["predicted_class"] else "wrong")
        assert (sample["site"], sample["camera"]) == (row["site"], row["camera"])
        assert len(sample["loadings"]) == 5 and sum(sample["loadings"]) == pytest.approx(1, abs=1e-4)
        assert sample["energy"] is not None


def test_findings_are_tags_sentences_and_a_severity(folder: Path) -> None:
    found = {sample["image_id"][-5:]: sample for sample in read(folder)[1]}
    assert [found[name]["tags"] for name in ("00005", "00007", "00008")] == [
        ["shortcut"],
        ["shortcut", "border"],
        ["border"],
    ]
    assert found["00007"]["findings"] == ["A mark.", "An edge."]
    assert [found[name]["severity"] for name in ("00005", "00007", "00008")] == [90, 90, 40]


def test_maps_lie_over_the_whole_image_as_small_bytes(folder: Path, pictured: Lake) -> None:
    for sample in read(folder)[1]:
        assert sample["heatmap"]["range"] == [0, 255]
        path = sample["heatmap"]["map_path"]
        # The reader takes the folder's name for that of the field.
        assert Path(path).parts[:2] == ("fields", "heatmap")
        with Image.open(folder / path) as image:
            assert image.format == "PNG" and image.mode == "L"
            laid = np.asarray(image)
        assert laid.shape == (SIDE * HEIGHT // WIDTH, SIDE)
        left, right = (int(edge * SIDE / WIDTH) for edge in (VIEW[0], VIEW[2]))
        assert not laid[:, :left].any() and not laid[:, right:].any()
        rows = pictured.unit_maps(sample["unit_id"]).to_pylist()
        row = next(
            row
            for row in rows
            if (row["image_id"], row["target_name"], row["method"])
            == (sample["image_id"], sample["target"], "grad_cam")
        )
        y, x = np.unravel_index(laid.argmax(), laid.shape)
        view = VIEW[2] - VIEW[0], VIEW[3] - VIEW[1]
        expected = VIEW[1] + row["peak_y"] * view[1], VIEW[0] + row["peak_x"] * view[0]
        # The peak of the enlarged map lies in the strongest cell, of which there are seven along a side.
        assert abs((y + 0.5) * WIDTH / SIDE - expected[0]) <= view[1] / 7
        assert abs((x + 0.5) * WIDTH / SIDE - expected[1]) <= view[0] / 7
        assert laid.max() > 200


def test_degenerate_maps_are_black_and_tagged(pictured: Lake, tmp_path: Path) -> None:
    export(pictured, "fiftyone", tmp_path / "all", images=1000)
    _, samples = read(tmp_path / "all")
    flagged = [sample for sample in samples if {"all_zero", "not_finite"} & set(sample["tags"])]
    assert len(flagged) == 6 and len(samples) == 117
    for sample in flagged:
        assert not np.asarray(Image.open(tmp_path / "all" / sample["heatmap"]["map_path"])).any()
        assert sample["gini"] is None
    assert "loadings" not in samples[0] and "severity" not in samples[0] and "energy" not in samples[0]


def test_attributes_of_any_type_and_name_keep_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"age": "int64", "dose µ": "float64", "ok": "bool", "filepath": "string"}
    monkeypatch.setattr("tests.pipeline.audit.lakes.ATTRIBUTES", kinds | {"site": "string"})

    def draw(row: dict[str, Any]) -> bytes:
        number = int(row["image_id"][-5:])
        row |= {"age": number, "dose µ": float("nan") if number % 2 else 0.5, "ok": number > 3, "filepath": "../x"}
        row |= {"age": None, "ok": None} if number == 2 else {}
        return plain({**row, **{key: row.pop(key) for key in ("camera", "patient")}})

    lake = make_pictured(tmp_path, draw=draw, units=1, images=6, failed=False, labelled=False)
    export(lake, "fiftyone", tmp_path / "out")
    _, samples = read(tmp_path / "out")
    assert all(sample["ground_truth"] is None and sample["outcome"] == "unknown" for sample in samples)
    found = {int(sample["image_id"][-5:]): sample for sample in samples}
    assert [found[number]["age"] for number in range(4)] == [0, 1, None, 3]
    assert [found[number]["dose__"] for number in range(3)] == [0.5, None, 0.5]
    assert [found[number]["ok"] for number in (2, 3, 4)] == [None, False, True]
    assert found[0]["attribute_filepath"] == "../x" and found[0]["filepath"].startswith("data/")


def test_ids_do_not_depend_on_what_else_is_exported(pictured: Lake, folder: Path, tmp_path: Path) -> None:
    export(pictured, "fiftyone", tmp_path / "all", images=1000)
    ids = {sample["image_id"]: sample["_id"] for sample in read(tmp_path / "all")[1]}
    assert all(ids[sample["image_id"]] == sample["_id"] for sample in read(folder)[1])
