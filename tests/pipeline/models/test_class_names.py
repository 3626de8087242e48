"""Class names: where they come from, and labels to indices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pipeline.models.class_names import ClassIndex, read_class_names, resolve_class_names
from pipeline.models.factory import parse_name
from pipeline.models.weights import WeightsChoice
from schemas.errors import InputError
from schemas.job import Model

NAMES = ["tench", "crane", "owl", "crane", "7"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(["tench", "owl"]),
        json.dumps({"1": "owl", "0": "tench"}),
        json.dumps({"0": ["n01440764", "tench"], "1": ["n01622779", "owl"]}),
        json.dumps([["n01440764", "tench"], ["n01622779", "owl"]]),
        "tench\n owl \n\n",
        "\ufefftench\r\nowl\r\n",
    ],
)
def test_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names"
    path.write_text(text, encoding="utf-8")
    assert read_class_names(str(path)) == ["tench", "owl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"[1, 2]", "the name of class 0 is 1, no text"),
        (b'["a", ', "damaged JSON"),
        (b'{"0": "a", "2": "b"}', "the indices do not run from 0 to 1"),
        (b'{"a": "b"}', "the keys are no class indices"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_class_names(str(path))
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_class_names(str(tmp_path / "none"))


def resolve(num_classes: int, kind: Any, name: str, metadata: dict | None = None, **fields: Any) -> list[str] | None:
    config = Model(name=name, **fields)
    choice = WeightsChoice(kind, fields.get("weights"))
    return resolve_class_names(config, parse_name(name), choice, nn.Identity(), num_classes, metadata or {})


def test_sources_in_order(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("x\ny\n")
    metadata = {"class_names": ["a", "b"]}
    assert resolve(2, "uri", "m:f", metadata, weights="w", class_names=["k", "l"]) == ["k", "l"]
    assert resolve(2, "uri", "m:f", metadata, weights="w", class_names=str(path)) == ["x", "y"]
    assert resolve(2, "uri", "m:f", metadata, weights="w") == ["a", "b"]
    assert resolve(2, "uri", "m:f", weights="w") is None


def test_imagenet_names_of_trained_library_models() -> None:
    for kind, weights in (("named", "IMAGENET1K_V1"), ("uri", "w.pt")):
        names = resolve(1000, kind, "torchvision:resnet18", weights=weights)
        assert names is not None
        assert names[:2] == ["tench", "goldfish"]
    assert resolve(10, "uri", "torchvision:resnet18", weights="w.pt") is None
    assert resolve(1000, "random", "torchvision:resnet18", weights="random") is None
    names = resolve(1000, "uri", "timm:resnet18", weights="w.pt")
    assert names is not None
    assert names[0].startswith("tench")
    assert len(names) == 1000
    assert resolve(12, "uri", "timm:resnet18", weights="w.pt") is None


def test_wrong_number_of_names() -> None:
    with pytest.raises(InputError, match=r"model.class_names has 2 names but the model has 3 classes"):
        resolve(3, "random", "m:f", class_names=["a", "b"])
    with pytest.raises(InputError, match="in the metadata of 'w' has 2 names but the model has 3 classes"):
        resolve(3, "uri", "m:f", {"class_names": ["a", "b"]}, weights="w")


def test_labels() -> None:
    index = ClassIndex(5, NAMES)
    assert index("owl") == 2
    assert index(4) == 4
    assert index("0") == 0
    assert index("7") == 4, "a name that is digits wins"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("crane", "class name 'crane' is that of classes 1 and 3; use the index"),
        ("tenhc", r"no class 'tenhc' \(did you mean tench\?\); use a class name or an index from 0 to 4"),
        (5, "no class 5; use an index from 0 to 4"),
        ("5", "no class 5; use an index from 0 to 4"),
        (-1, "no class -1; use an index from 0 to 4"),
        (True, "no class True"),
    ],
)
def test_wrong_labels(label: int | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassIndex(5, NAMES)(label)


def test_model_without_names() -> None:
    assert ClassIndex(5, None)("3") == 3
    with pytest.raises(InputError, match=r"the model has no class names, set model\.class_names"):
        ClassIndex(5, None)("owl")
