"""Whole exports: what is refused, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.exports import export
from pipeline.audit.exports.base import Export
from pipeline.lake import Lake
from schemas.errors import InputError, LakeError
from schemas.registries import EXPORTS, implementation
from tests.pipeline.audit.exports.pictured import make_pictured


@pytest.mark.parametrize("name", EXPORTS)
def test_registered_modules_define_an_export(name: str) -> None:
    assert issubclass(implementation(EXPORTS, "--to", name).EXPORT, Export)


@pytest.mark.parametrize("name", EXPORTS)
def test_every_export_is_written_and_says_how_to_open_it(pictured: Lake, tmp_path: Path, name: str) -> None:
    output = tmp_path / "it's here"
    output.mkdir()  # an empty folder will do
    found = export(pictured, name, output, images=9, classes=["name-0", "2"])
    assert (found.images, found.classes, found.missing) == (9, 2, 0)
    assert "it" in found.how_to_open and "s here" in found.how_to_open
    assert [path.name for path in tmp_path.iterdir()] == [output.name] and any(output.iterdir())


@pytest.mark.parametrize("name", EXPORTS)
def test_the_same_export_is_the_same_bytes(pictured: Lake, audit: str, tmp_path: Path, name: str) -> None:
    folders = [tmp_path / place / "same" for place in ("one", "two")]
    for folder in folders:
        folder.parent.mkdir()
        export(pictured, name, folder, audit=audit)
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    ]
    assert files[0] == files[1]


def test_another_method_is_exported_without_parts(pictured: Lake, audit: str, tmp_path: Path) -> None:
    export(pictured, "fiftyone", tmp_path / "out", audit=audit, method="layer_cam")
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["info"]["camlake"]["method"] == "layer_cam"
    assert "loadings" not in {field["name"] for field in metadata["sample_fields"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "fiftytwo"}, r"--to 'fiftytwo' is unknown \(did you mean fiftyone"),
        ({"method": "gradcam"}, "did you mean grad_cam"),
        ({"layer": "layer5"}, "did you mean layer4"),
        ({"classes": ["name-7"]}, "no class 'name-7'"),
        ({"audit": "nowhere"}, "nowhere holds no finished audit"),
    ],
)
def test_wrong_input_leaves_nothing(pictured: Lake, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if "audit" in options:
        options = {"audit": str(tmp_path.parent / options["audit"])}
    with pytest.raises(InputError, match=words):
        export(pictured, options.pop("to", "fiftyone"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_touched(pictured: Lake, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for output in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="give an empty or new folder"):
            export(pictured, "fiftyone", output)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_pictured(tmp_path / "lake", units=1, images=5)

    def fails(*given: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.audit.exports.fiftyone._dataset", fails)
    with pytest.raises(InputError, match=r"cannot be written \(disk full\)"):
        export(lake, "fiftyone", tmp_path / "out" / "deep")
    assert list((tmp_path / "out").iterdir()) == []
    next((tmp_path / "lake").glob("*.pack")).unlink()
    with pytest.raises(LakeError, match=r"none of the 4 images can be had .*is not there any more"):
        export(lake, "spotlight", tmp_path / "out" / "deep")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_audit_of_another_lake_is_refused(pictured: Lake, audit: str, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.mkdir()
    document = json.loads((Path(audit) / "audit.json").read_text()) | {"lake_run_id": "other"}
    (path / "audit.json").write_text(json.dumps(document))
    (path / "findings.json").write_text("[]")
    with pytest.raises(InputError, match="is an audit of another lake"):
        export(pictured, "fiftyone", tmp_path / "out", audit=str(path))
    (path / "audit.json").write_text("{}")
    with pytest.raises(LakeError, match="no sound audit"):
        export(pictured, "fiftyone", tmp_path / "out", audit=str(path))


def test_an_audit_without_images_says_so(pictured: Lake, audit: str, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.mkdir()
    (path / "audit.json").write_bytes((Path(audit) / "audit.json").read_bytes())
    (path / "findings.json").write_text("[]")
    with pytest.raises(InputError, match="names no image behind its findings; leave --audit out"):
        export(pictured, "fiftyone", tmp_path / "out", audit=str(path))
