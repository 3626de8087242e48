from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import InputError
from tests.pipeline.sources.conftest import Place, read_all

TREE = {
    "val/cat/b.JPG": b"cat b",
    "val/cat/a.png": b"cat a",
    "val/cat/deep/er/c.jpeg": b"cat c",
    "val/cat/notes.txt": b"-",
    "val/cat/.hidden.jpg": b"-",
    "val/7/x.webp": b"seven",
    "val/.git/y.jpg": b"-",
    "val/loose.jpg": b"loose",
    "val/empty/readme.md": b"-",
}


def _tree(place: Place, **more: bytes) -> None:
    for name, data in {**TREE, **more}.items():
        place.put(name, data)


def test_a_tree_on_every_store(any_place: Place) -> None:
    _tree(any_place)
    source = any_place.source(any_place.url("val"), "folder", unit_images=2)
    units = list(source.plan())
    assert [unit.members for unit in units] == [
        ("loose.jpg", "7/x.webp"), ("cat/a.png", "cat/b.JPG"), ("cat/deep/er/c.jpeg",)
    ]  # fmt: skip
    assert [unit.byte_size for unit in units] == [10, 10, 5]
    assert [unit.images for unit in units] == [2, 2, 1]
    samples = [sample for unit in units for sample in source.read(unit)]
    assert [(s.image_id, s.label, s.data, s.byte_offset, s.byte_size) for s in samples] == [
        ("loose.jpg", None, b"loose", 0, 5),
        ("7/x.webp", "7", b"seven", 0, 5),
        ("cat/a.png", "cat", b"cat a", 0, 5),
        ("cat/b.JPG", "cat", b"cat b", 0, 5),
        ("cat/deep/er/c.jpeg", "cat", b"cat c", 0, 5),
    ]
    assert samples[2].uri == f"{units[1].uri}/cat/a.png"
    assert any_place.source(samples[2].uri.rpartition("/")[0], "folder").config.uris  # the URI opens again


def test_several_roots_have_ids_of_their_own(place: Place) -> None:
    _tree(place)
    place.put("train/cat/a.png", b"train a")
    samples = read_all(place.source(place.url("{train,val}"), "folder"))
    assert samples[0].image_id == "train/cat/a.png"
    assert samples[0].label == "cat"
    assert {"val/cat/a.png", "val/loose.jpg"} < {sample.image_id for sample in samples}


def test_the_plan_is_frozen_and_knows_its_files(place: Place) -> None:
    _tree(place)
    source = place.source(place.url("val"), "folder")
    (unit,) = source.plan()
    assert next(source.plan()) == unit
    place.put("val/cat/zz.png", b"new")
    assert len(list(source.read(unit))) == 5
    (other,) = source.plan()
    assert other.etag != unit.etag
    place.put("val/cat/zz.png", b"more")
    (changed,) = source.plan()
    assert changed.members == other.members
    assert changed.etag != other.etag


def test_a_file_that_went_away_is_one_error(place: Place) -> None:
    import os

    _tree(place)
    source = place.source(place.url("val"), "folder")
    (unit,) = source.plan()
    os.remove(place.url("val/7/x.webp"))  # noqa: PTH107
    samples = list(source.read(unit))
    assert [sample.error is None for sample in samples] == [True, False, True, True, True]
    assert "x.webp' does not exist" in str(samples[1].error)


CSV = b"file_name,site,breed\ncat/a.png,north,siam\n./7/x.webp,south,\nunknown.png,x,y\n"


def test_metadata_gives_attributes_and_the_label(any_place: Place) -> None:
    _tree(any_place, **{"val/metadata.csv": CSV})
    source = any_place.source(any_place.url("val"), "folder", attributes=["site"], label="breed", unit_images=3)
    rows = {sample.image_id: (sample.label, sample.attributes["site"]) for sample in read_all(source)}
    assert rows == {
        "loose.jpg": (None, None), "7/x.webp": (None, "south"), "cat/a.png": ("siam", "north"),
        "cat/b.JPG": (None, None), "cat/deep/er/c.jpeg": (None, None),
    }  # fmt: skip


def test_metadata_without_a_label_column_keeps_the_folders_name(place: Place) -> None:
    _tree(place, **{"val/metadata.jsonl": b'{"file_name": "cat/a.png", "site": {"name": "n"}}\n'})
    attributes = [{"name": "site", "field": "site.name"}]
    samples = read_all(place.source(place.url("val"), "folder", attributes=attributes))
    assert [(s.label, s.attributes["site"]) for s in samples if s.image_id == "cat/a.png"] == [("cat", "n")]


def test_ids_and_typed_labels_from_parquet_metadata(place: Place) -> None:
    _tree(place)
    table = pa.table({"file_name": ["cat/a.png", "cat/b.JPG", "7/x.webp"], "id": ["p", "p", "q"], "y": [0.0, 1.0, 2.5]})
    pq.write_table(table, place.url("val/metadata.parquet"))
    samples = read_all(place.source(place.url("val"), "folder", id="id", label="y"))
    found = {sample.image_id: (sample.label, sample.error is None) for sample in samples}
    assert found == {
        "loose.jpg": (None, False), "q": (None, False), "p": (0, True), "p#2": (1, False),
        "cat/deep/er/c.jpeg": (None, False),
    }  # fmt: skip


def test_changed_metadata_is_another_plan(place: Place) -> None:
    _tree(place, **{"val/metadata.csv": CSV})
    source = place.source(place.url("val"), "folder", attributes=["site"])
    (before,) = source.plan()
    place.put("val/metadata.csv", CSV + b"loose.jpg,west,\n")
    (after,) = source.plan()
    assert before.members == after.members
    assert before.etag != after.etag


def _plan_error(place: Place, uri: str, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(place.source(uri, "folder", **config).plan())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_input(place: Place) -> None:
    _tree(place)
    uri = place.url("val")
    assert "source.image has no meaning for format 'folder'" in _plan_error(place, uri, image="jpg")
    assert "source.label: 'breed' would be a column of the metadata" in _plan_error(place, uri, label="breed")
    assert "holds none of metadata.csv" in _plan_error(place, uri, label="breed")
    place.put("val/metadata.csv", CSV)
    assert "has no column 'bred' (did you mean breed?)" in _plan_error(place, uri, label="bred")
    place.put("val/metadata.jsonl", b"{}\n")
    assert "holds both metadata.csv and metadata.jsonl; keep one" in _plan_error(place, uri, attributes=["site"])
    message = _plan_error(place, place.url("val/empty"))
    assert "no image is under" in message
    assert "1 .md" in message
    assert "is a file; this format reads folders" in _plan_error(place, place.url("val/loose.jpg"))
    assert "no folder matches" in _plan_error(place, place.url("vol"))
    assert "val" in _plan_error(place, place.url("vol"))
