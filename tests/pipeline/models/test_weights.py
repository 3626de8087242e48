"""Weights: what is asked for, reading files, and what does not fit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.models.factory import build, parse_name
from pipeline.models.weights import WeightsChoice, choose, digest, load, read
from schemas.errors import InputError
from schemas.job import Model


def net(classes: int = 3) -> nn.Module:
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def fill(model: nn.Module, value: float) -> dict[str, Tensor]:
    return {
        k: torch.full_like(v, value) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("torchvision:resnet18", "random", WeightsChoice("random")),
        ("torchvision:resnet18", "IMAGENET1K_V1", WeightsChoice("named", "IMAGENET1K_V1")),
        ("torchvision:resnet18", "DEFAULT", WeightsChoice("named", "DEFAULT")),
        ("torchvision:resnet18", "s3://b/w.safetensors", WeightsChoice("uri", "s3://b/w.safetensors")),
        ("torchvision:resnet18", "w.pth", WeightsChoice("uri", "w.pth")),
        ("timm:resnet18", "tv_in1k", WeightsChoice("named", "tv_in1k")),
        ("timm:resnet18", "DEFAULT", WeightsChoice("named", "a1_in1k")),
        ("timm:resnet18.a2_in1k", "DEFAULT", WeightsChoice("named", "a2_in1k")),
        ("nets:f", None, WeightsChoice("own")),
        ("nets:f", "random", WeightsChoice("random")),
        ("nets:f", "w", WeightsChoice("uri", "w")),
    ],
)
def test_choice(name: str, weights: str | None, expected: WeightsChoice) -> None:
    assert choose(Model(name=name, weights=weights), parse_name(name)) == expected


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("torchvision:resnet18", None, r"model\.weights is not set .*IMAGENET1K_V1.*'random'"),
        ("timm:resnet18", None, r"model\.weights is not set .*a1_in1k.*'random'"),
        ("torchvision:resnet50", "IMAGENET1K_V3", r"neither a named entry .*did you mean IMAGENET1K_V\d.* nor a path"),
        ("timm:resnet18", "a1_in2k", r"neither a named entry .*did you mean a1_in1k"),
    ],
)
def test_wrong_choice(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(Model(name=name, weights=weights), parse_name(name))


@pytest.mark.parametrize("form", ["safetensors", "torch", "state_dict", "model", "data_parallel", "compiled", "half"])
def test_forms_of_files(tmp_path: Path, form: str) -> None:
    model = net()
    state = fill(model, 0.5)
    path = str(tmp_path / "w")
    prefix = {"data_parallel": "module.", "compiled": "_orig_mod."}.get(form, "")
    named: Any = {prefix + key: value.half() if form == "half" else value for key, value in state.items()}
    if form in ("safetensors", "half"):
        save_file(named, path)
    else:
        torch.save({form: named, "epoch": 3} if form in ("state_dict", "model") else named, path)
    report = load(model, read(path), path)
    assert (report.loaded, report.missing, report.unexpected, report.mismatched) == (8, (), (), ())
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32
            assert (value == 0.5).all(), key


def test_memory_file_system_and_metadata() -> None:
    from safetensors.torch import save

    model = net()
    metadata = {"class_names": json.dumps(["a", "b", "c"]), "format": "pt"}
    with fsspec.open("memory://weights-test/w.safetensors", "wb") as file:
        file.write(save(fill(model, 0.25), metadata=metadata))
    file = read("memory://weights-test/w.safetensors")
    assert file.metadata == {"class_names": ["a", "b", "c"], "format": "pt"}
    load(model, file, "w")
    assert (model[3].weight == 0.25).all()


def test_missing_and_unexpected_are_listed_and_counted() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    tensors = {f"other.{index}": torch.zeros(1) for index in range(12)} | {"0.weight": torch.ones(2, 2)}
    file = type(read_bytes({"a": torch.zeros(1)}))(tensors)
    with pytest.raises(InputError) as caught:
        load(model, file, "f.pt")
    message = str(caught.value)
    assert "15 missing (0.bias, 1.weight, 1.bias" in message
    assert "and 5 more); 12 unexpected (other.0" in message
    assert "other.9, and 2 more)" in message
    assert "model.strict: false" in message
    assert not (model[0].weight == 1).all(), "nothing is loaded when it is refused"
    report = load(model, file, "f.pt", strict=False)
    assert report.loaded == 1
    assert len(report.missing) == 15
    assert report.unexpected[0] == "other.0"
    assert (model[0].weight == 1).all()


def read_bytes(state: dict[str, Tensor]) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with fsspec.open("memory://weights-test/any.pt", "wb") as file:
        file.write(buffer.getvalue())
    return read("memory://weights-test/any.pt")


def test_head_of_other_classes_names_num_classes() -> None:
    with pytest.raises(InputError) as caught:
        load(net(3), read_bytes(fill(net(5), 1.0)), "f.pt")
    message = str(caught.value)
    assert "3.weight: (5, 4) float32 in the file, (3, 4) float32 in the model" in message
    assert "set model.options: {num_classes: 5}" in message


def test_other_shapes_do_not_name_num_classes() -> None:
    state = fill(net(3), 1.0)
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    with pytest.raises(
        InputError, match=r"0\.weight: \(4, 3, 5, 5\) float32 in the file.*weights of this model"
    ) as caught:
        load(net(3), read_bytes(state), "f.pt")
    assert "num_classes" not in str(caught.value)


def test_integers_are_no_weights() -> None:
    state = fill(net(3), 1.0)
    state["3.weight"] = state["3.weight"].to(torch.int8)
    with pytest.raises(InputError, match=r"3\.weight: \(3, 4\) int8 in the file, \(3, 4\) float32 in the model"):
        load(net(3), read_bytes(state), "f.pt")


def test_nothing_fits_is_an_error_even_when_not_strict() -> None:
    with pytest.raises(InputError, match=r"none of the 1 tensors of 'f.pt' fits"):
        load(net(3), read_bytes({"x": torch.zeros(1)}), "f.pt", strict=False)


def test_old_densenet_names() -> None:
    model = build(parse_name("torchvision:densenet121"), {"num_classes": 2})
    state = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): torch.zeros_like(value)
        for key, value in model.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    assert load(model, read_bytes(state), "f.pt").missing == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file, nor a torch file"),
        (b"<html>not found</html>", "no safetensors file, nor a torch file"),
        (b"\x08\0\0\0\0\0\0\0{", "damaged safetensors file"),
        ("object", "nor a torch file of tensors alone"),
        ("list", "holds list, no names with tensors"),
        ("numbers", "2 entries that are no tensors .epoch, loss"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes | str, message: str) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        values = {"object": net(), "list": [torch.zeros(1)], "numbers": {"epoch": 1, "loss": 0.5, "w": torch.zeros(1)}}
        torch.save(values[content], path)
    with pytest.raises(InputError, match=message) as caught:
        read(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(fill(net(), 1.0), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="damaged safetensors file"):
        read(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; check the path"):
        read(str(tmp_path / "none.pt"))
    with pytest.raises(InputError, match="unknown protocol"):
        read("nosuchprotocol://bucket/w.pt")
    with pytest.raises(InputError, match="is a folder"):
        read(str(tmp_path))  # a folder


def test_digest_depends_on_names_types_shapes_and_values() -> None:
    model = net()
    reference = digest(model)
    assert len(reference) == 64
    assert digest(net()) == reference
    model[1].num_batches_tracked += 1
    assert digest(model) == reference
    model[1].running_mean[0] += 1
    assert digest(model) != reference
    assert digest(net().half()) != reference
    a, b = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        a.weight.zero_()
        b.weight.zero_()
    assert digest(a) != digest(b)
    assert digest(nn.Sequential(a)) != digest(a)
