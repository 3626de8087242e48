"""The exported JSON Schemas are what the code says, and they accept what the code accepts."""

from __future__ import annotations

import json

import jsonschema
import pytest

from schemas.export import FOLDER, drifted, exported


def test_exported_schemas_have_not_drifted() -> None:
    assert drifted() == []
    assert {path.name for path in FOLDER.glob("*.json")} == set(exported())


def test_the_job_schema_accepts_a_job_and_refuses_an_unknown_key() -> None:
    schema = json.loads((FOLDER / "job.schema.json").read_text())
    job = {
        "source": {"uri": "a.tar", "format": "webdataset"},
        "model": {"name": "torchvision:resnet18"},
        "methods": [{"name": "score_cam", "convention": "paper"}],
        "output": {"uri": "lake"},
    }
    jsonschema.validate(job, schema)
    jsonschema.validate({**job, "methods": ["grad_cam"], "targets": "label"}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "outptu": {}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**job, "methods": ["grad_camm"]}, schema)
