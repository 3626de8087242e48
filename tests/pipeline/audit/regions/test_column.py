from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.audit.regions.column import Column
from pipeline.lake.tables import images_table
from pipeline.sources.webdataset import WebDataset
from schemas.errors import InputError
from schemas.job import Source
from tests.pipeline.sources.conftest import tar_bytes


def boxes(value: Any) -> list[tuple[str | None, Any]]:
    text = value if isinstance(value, str) or value is None else json.dumps(value)
    found = Column("boxes").instances({"image_id": "a/1", "boxes": text})
    return [(each.name, each.box) for each in found or ()]


def test_the_forms() -> None:
    assert boxes([[1, 2, 3.5, 4], [0, 0, 1, 1]]) == [(None, (1, 2, 3.5, 4)), (None, (0, 0, 1, 1))]
    assert boxes([1, 2, 3, 4]) == [(None, (1, 2, 3, 4))]
    assert boxes([{"box": [1, 2, 3, 4], "name": "cat", "score": 1}, {"box": [0, 0, 1, 1], "name": 7}]) == [
        ("cat", (1, 2, 3, 4)),
        ("7", (0, 0, 1, 1)),
    ]
    assert boxes("[]") == []


@pytest.mark.parametrize("text", [None, "", "  "])
def test_nothing_is_unknown(text: str | None) -> None:
    source = Column("boxes")
    assert source.instances({"image_id": "a/1", "boxes": text}) is None
    assert source.names({"image_id": "a/1", "boxes": text}) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[1, 2, 3", "Expecting"),
        ('{"box": [1, 2, 3, 4]}', "no list"),
        ("[[1, 2, 3]]", "four numbers"),
        ('[{"name": "cat"}]', "no 'box'"),
        ('[{"box": [1, 2, 3, 4], "name": ["cat"]}]', "'name' is no text"),
        ("[[9, 9, 3, 3]]", "width, height"),
        ("[[NaN, 1, 2, 3]]", "no place"),
        ("[" * 100_000, "recursion|nesting|Expecting"),
        ("[" + " " * (5 << 20) + "]", "characters"),
    ],
)
def test_what_is_no_boxes_is_told_with_its_image(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"--boxes: column 'boxes' of image 'a/1' holds no boxes \((?s:.)*({reason})"):
        Column("boxes").region({"image_id": "a/1", "boxes": text}, 0, None)


def test_lists_in_a_sample_s_json_become_such_a_column(tmp_path: Any) -> None:
    """What a WebDataset's .json holds passes through source and table unharmed."""
    wanted = [{"box": [1.25, 2, 30, 40.5], "name": "cät"}, {"box": [0, 0, 7, 7], "name": "dog"}]
    record = {"boxes": [wanted[0]["box"], wanted[1]["box"]], "objects": {"list": wanted}}
    data = tar_bytes([("a.jpg", b"image"), ("a.json", json.dumps(record).encode()), ("a.cls", b"0")])
    (tmp_path / "x.tar").write_bytes(data)
    attributes = [{"name": "boxes"}, {"name": "objects", "field": "objects.list"}]
    config = Source.model_validate(
        {"uri": str(tmp_path / "x.tar"), "format": "webdataset", "label": "cls", "attributes": attributes}
    )
    source = WebDataset(config)
    (sample,) = [sample for unit in source.plan() for sample in source.read(unit)]
    assert sample.error is None
    row = {"image_id": sample.image_id, "uri": sample.uri, "status": "ok", **sample.attributes}
    table = images_table("u", [row], {"boxes": "string", "objects": "string"}).to_pylist()[0]
    assert [each.box for each in Column("boxes").instances(table) or ()] == [tuple(each["box"]) for each in wanted]
    assert [each.name for each in Column("objects").instances(table) or ()] == ["cät", "dog"]
