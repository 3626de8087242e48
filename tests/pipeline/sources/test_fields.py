from __future__ import annotations

from typing import Any

import pytest

from pipeline.sources.fields import MISSING, LabelError, as_id, as_label, closest, lookup, require_fields, unique
from schemas.errors import InputError


@pytest.mark.parametrize(
    ("record", "path", "expected"),
    [
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        ({"a.b": {"c": 1}}, "a.b.c", 1),
        ({"a": {"x": 1}, "a.b": {"c": 2}}, "a.b.c", 2),
        ({"a": {"b": 1}, "a.b": 2}, "a.b", 2),
        ({"a": None}, "a", None),
        ({"a": None}, "a.b", MISSING),
        ({"a": [1]}, "a.0", MISSING),
        ([1], "a", MISSING),
        (MISSING, "a", MISSING),
    ],
)
def test_lookup(record: Any, path: str, expected: Any) -> None:
    assert lookup(record, path) is expected or lookup(record, path) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (3.0, 3), (True, 1), (" cat ", "cat"), ("3", "3"), ("", None), (None, None), (MISSING, None),
     (float("nan"), None)],
)  # fmt: skip
def test_labels(value: Any, expected: Any) -> None:
    label = as_label(value, "f")
    assert label == expected
    assert type(label) is type(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [([3, "cat"], (3, "cat")), ((), ()), ("[1, 2]", (1, 2)), ('["a", "b"]', ("a", "b")), ("[]", ()),
     ("[a]", "[a]"), ([2.0], (2,))],
)  # fmt: skip
def test_lists_of_labels(value: Any, expected: Any) -> None:
    assert as_label(value, "f") == expected


@pytest.mark.parametrize("value", [[1, None], [[1]], [1.5]])
def test_lists_that_are_no_labels(value: Any) -> None:
    with pytest.raises(LabelError, match=r"the label in 'f' is "):
        as_label(value, "f")


@pytest.mark.parametrize("value", [1.5, {"a": 1}, b"x", float("inf")])
def test_no_labels(value: Any) -> None:
    with pytest.raises(LabelError, match=r"the label in 'f' is .*, neither a class index nor a class name"):
        as_label(value, "f")


def test_ids_are_text_that_can_be_written() -> None:
    assert [as_id(value) for value in (7, "a", None, "", MISSING, 0)] == ["7", "a", None, None, None, "0"]
    assert as_id("\ud800x") == r"\ud800x"


def test_unique_never_gives_a_name_twice() -> None:
    seen: set[str] = set()
    assert [unique(name, seen) for name in ("a", "a", "a#2", "a", "b")] == ["a", "a#2", "a#2#2", "a#3", "b"]


def test_required_fields() -> None:
    require_fields({"source.label": "meta.y", "source.id": "a.b"}, ["meta", "a.b"], "x", "column")
    with pytest.raises(
        InputError, match=r"^source\.label: x has no column 'labl' \(did you mean label\?\); it has: label$"
    ):
        require_fields({"source.label": "labl"}, ["label"], "x", "column")


def test_closest_knows_the_last_part() -> None:
    assert closest("camera", ["json.meta.camera", "json.z"]) == " (did you mean json.meta.camera?)"
    assert closest("q", ["json.z"]) == ""
