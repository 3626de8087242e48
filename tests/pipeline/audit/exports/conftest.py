"""A lake with pictures, and an audit of it."""

from __future__ import annotations

import json

import pytest

from pipeline.audit.run import run_audit
from pipeline.lake import Lake
from schemas.audit import ImageRef, Settings
from schemas.registries import FINDINGS
from tests.pipeline.audit.exports.pictured import make_pictured

IMAGES = 40


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("pictured")
    return make_pictured(folder, units=3, images=IMAGES, classes=4, methods=("grad_cam", "layer_cam"), boxes=True)


@pytest.fixture(scope="session")
def audit(pictured: Lake, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an audit with two findings: the second also names an image of the first."""
    output = tmp_path_factory.mktemp("audits") / "audit"
    with pytest.MonkeyPatch.context() as patch:
        for name in reversed(list(FINDINGS)):  # undone in their order
            patch.delitem(FINDINGS, name)
        patch.setitem(FINDINGS, "degenerate", "tests.pipeline.audit.kinds")
        patch.setattr("pipeline.audit.run.write_report", lambda *given: b"<!doctype html>")
        settings = Settings(groups=("site",), boxes="boxes", parts=5, bootstrap=50)
        run_audit(pictured.store.uri, settings, str(output), say=lambda line: None)
    images = [_reference(pictured, unit, row) for unit, row in ((0, 5), (0, 6), (2, 7), (1, 8))]
    path = output / "findings.json"
    template = json.loads(path.read_text())[0]
    findings = [
        template
        | {"finding_id": "a", "kind": "shortcut", "severity": 90.0, "sentence": "A mark.", "images": images[:3]},
        template
        | {"finding_id": "b", "kind": "border", "severity": 40.0, "sentence": "An edge.", "images": images[2:]},
    ]
    path.write_text(json.dumps(findings))
    return str(output)


def _reference(lake: Lake, unit: int, row: int) -> dict[str, object]:
    """A reference to the map of the predicted class."""
    name = sorted(lake.commits)[unit]
    image = lake.unit_images(name).slice(row, 1).to_pylist()[0]
    reference = ImageRef(image_id=image["image_id"], unit_id=name, target_class=image["predicted_class"])
    return reference.model_dump()
