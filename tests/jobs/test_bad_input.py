"""Wrong input: exit code 2 and one sentence that names the field and the remedy, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import Result

Change = Callable[[dict[str, Any], Path], None]


def _set(*path: str, value: Any) -> Change:
    def change(document: dict[str, Any], folder: Path) -> None:
        node = document
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


def _weights_of_another_net(document: dict[str, Any], folder: Path) -> None:
    save_file({"conv.weight": torch.zeros(3, 3)}, folder / "other.safetensors")
    document["model"]["weights"] = str(folder / "other.safetensors")


def _text_as_weights(document: dict[str, Any], folder: Path) -> None:
    (folder / "net.pt").write_text("not weights")
    document["model"]["weights"] = str(folder / "net.pt")


def _empty_folder(document: dict[str, Any], folder: Path) -> None:
    (folder / "empty").mkdir()
    document["source"] = {"uri": str(folder / "empty"), "format": "folder"}


def _foreign_output(document: dict[str, Any], folder: Path) -> None:
    (folder / "lake").mkdir()
    (folder / "lake" / "holiday.jpg").write_bytes(b"x")


CASES: list[tuple[str, Change, list[str]]] = [
    ("no such shard", _set("source", "uri", value="/nowhere/x-{0..2}.tar"), ["source.uri", "/nowhere"]),
    ("no match", _set("source", "uri", value="/nowhere/*.tar"), ["source.uri", "/nowhere"]),
    ("empty folder", _empty_folder, ["source.uri", "empty"]),
    ("wrong format", _set("source", "format", value="parquet"), ["source.format", "scenes-000000.tar"]),
    ("unknown label field", _set("source", "label", value="class"), ["source.label", "class"]),
    ("unknown class", _set("targets", value={"classes": ["severn"]}), ["severn", "seven"]),
    ("class beyond the model", _set("targets", value={"classes": [10]}), ["10"]),
    ("unknown layer", _set("model", "layers", value=["stage5"]), ["stage5", "stage4"]),
    ("unknown method layer", _set("methods", value=[{"name": "grad_cam", "layers": ["stag3"]}]), ["stag3", "stage3"]),
    ("weights of another net", _weights_of_another_net, ["other.safetensors", "conv.weight", "stage1.0.weight"]),
    ("no weights file", _set("model", "weights", value="/nowhere/net.safetensors"), ["model.weights", "/nowhere"]),
    ("text as weights", _text_as_weights, ["net.pt"]),
    ("unknown model", _set("model", "name", value="torchvision:resnet81"), ["model.name", "resnet81", "resnet18"]),
    ("unknown module", _set("model", "name", value="nowhere.at_all:net"), ["model.name", "nowhere.at_all"]),
    ("wrong option", _set("model", "options", value={"width": 3}), ["model.options", "width"]),
    ("no weights said", _set("model", value={"name": "torchvision:resnet18"}), ["model.weights", "random"]),
    ("class names of another length", _set("model", "class_names", value=["a", "b"]), ["model.class_names", "10"]),
    ("foreign output", _foreign_output, ["output.uri", "holiday.jpg"]),
    ("unknown key", _set("sink", value={}), ["unknown key 'sink'", "source"]),
]


def _cam_without_gap(document: dict[str, Any], folder: Path) -> None:
    document["model"] = {
        "name": "torchvision:vgg11",
        "weights": "random",
        "options": {"num_classes": 10},
        "preprocess": {"resize": 64, "crop": 64},
    }
    document["methods"] = ["cam"]


CASES.append(("CAM without a GAP head", _cam_without_gap, ["cam", "grad_cam"]))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("change", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_wrong_input_is_one_sentence(
    change: Change, words: list[str], document: dict[str, Any], tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    change(document, tmp_path)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    result = camlake("attribute", path)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "lake" / "camlake.json").exists()


def test_a_missing_job_file(camlake: Callable[..., Result], tmp_path: Path) -> None:
    result = camlake("plan", tmp_path / "absent.yaml")
    assert result.exit_code == 2 and "absent.yaml' does not exist" in result.stderr


@pytest.mark.parametrize("command", ["status", "verify", "show"])
def test_a_folder_that_is_no_lake(command: str, camlake: Callable[..., Result], tmp_path: Path) -> None:
    result = camlake(command, tmp_path)
    assert result.exit_code == 2 and "camlake.json" in result.stderr
