"""The replica: from the job file's model to what a worker uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models import Replica, load_replica
from pipeline.models.factory import build, parse_name
from pipeline.models.trace import hooked
from pipeline.models.weights import digest
from schemas.documents import LayerInfo
from schemas.errors import InputError
from schemas.job import Model

SMALL = {"resize": [48, 64], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def resnet(**fields: Any) -> Model:
    defaults = {"name": "torchvision:resnet18", "weights": "random", "options": {"num_classes": 4}, "preprocess": SMALL}
    return Model.model_validate({**defaults, **fields})


def test_whole_path() -> None:
    replica = load_replica(resnet(class_names=["a", "b", "c", "d"]), method_layers=["layer2", "layer4", "layer3"])
    assert [layer.name for layer in replica.layers] == ["layer4"]
    assert [layer.name for layer in replica.method_layers] == ["layer2", "layer3"]
    assert replica.layer("layer2").module is replica.model.get_submodule("layer2")
    assert replica.num_classes == 4
    assert replica.class_index("c") == 2
    assert replica.preprocess.input_size == (48, 64)
    assert not replica.model.training
    assert not any(parameter.requires_grad for parameter in replica.model.parameters())
    assert replica.digest == digest(build(parse_name("torchvision:resnet18"), {"num_classes": 4}))
    info = replica.info()
    assert info.layers == [
        LayerInfo(name="layer4", channels=512, height=2, width=2),
        LayerInfo(name="layer2", channels=128, height=6, width=8),
        LayerInfo(name="layer3", channels=256, height=3, width=4),
    ]
    assert info.input_size == (48, 64)
    assert info.preprocess["sources"]["mean"] == "the job file"
    assert type(info).model_validate_json(info.model_dump_json()) == info

    assert replica.head is not None
    assert replica.head.layer == "layer4"
    pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    image, view = replica.preprocess(pixels)
    assert (view.x0, view.y0, view.x1, view.y1) == pytest.approx((0, 0, 70, 50))
    seen: list[Tensor] = []
    layer = replica.layer("layer4")
    with (
        torch.no_grad(),
        hooked({"layer4": layer.module}, lambda _n, _m, _a, out: seen.append(layer.to_grid(out).clone())),
    ):
        logits = replica.model(image[None])
    computed = seen[0].mean((2, 3)) @ replica.head.weight.T + replica.head.bias
    assert torch.allclose(computed, logits, atol=1e-5)
    with pytest.raises(
        InputError, match=r"layer 'layer1' is none of the replica's target layers \(layer4, layer2, layer3"
    ):
        replica.layer("layer1")


def test_named_layers() -> None:
    replica = load_replica(resnet(layers=["layer3", "layer4.1.bn2"]))
    assert [layer.name for layer in replica.layers] == ["layer3", "layer4.1.bn2"]
    assert isinstance(replica.layer("layer4.1.bn2").module, torch.nn.BatchNorm2d)
    with pytest.raises(InputError, match=r"model\.layers: the model has no layer 'layr4' \(did you mean layer4"):
        load_replica(resnet(layers=["layr4"]))
    with pytest.raises(InputError, match=r"methods\.layers: the model has no layer 'layr4'"):
        load_replica(resnet(), method_layers=["layr4"])
    with pytest.raises(InputError, match=r"model\.layers names 'layer4' twice"):
        load_replica(resnet(layers=["layer4", "layer4"]))


def test_two_replicas_are_equal() -> None:
    a, b = load_replica(resnet()), load_replica(resnet())
    image = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(a.model(image), b.model(image))
    assert a.info() == b.info()


def test_weights_file_with_metadata(factories: str, tmp_path: Path) -> None:
    model = build(parse_name(f"{factories}:tiny"), {})
    state = {key: value + 0.5 for key, value in model.state_dict().items() if "num_batches" not in key}
    path = str(tmp_path / "w.safetensors")
    metadata = {"preprocess": json.dumps(SMALL), "class_names": json.dumps(["a", "b", "c", "d"])}
    save_file({key: value.half() for key, value in state.items()}, path, metadata=metadata)
    replica = load_replica(Model(name=f"{factories}:tiny", weights=path))
    assert replica.class_names == ["a", "b", "c", "d"]
    assert replica.preprocess.describe()["sources"]["mean"] == f"the metadata of '{path}'"
    assert torch.equal(replica.model.get_submodule("fc").weight, state["fc.weight"].half().float())
    assert replica.load_report.loaded == len(state)
    (layer,) = replica.layers
    assert layer.name == "body"
    assert replica.head is not None

    with pytest.raises(InputError, match=r"model\.options: \{num_classes: 4\}"):
        load_replica(Model(name=f"{factories}:tiny", weights=path, options={"num_classes": 7}))
    loose = load_replica(
        Model(
            name=f"{factories}:tiny",
            weights=path,
            options={"num_classes": 7},
            strict=False,
            class_names=list("abcdefg"),
        )
    )
    assert [entry.partition(":")[0] for entry in loose.load_report.mismatched] == ["fc.weight", "fc.bias"]


def test_factory_that_loads_its_own(factories: str) -> None:
    replica = load_replica(Model(name=f"{factories}:with_preprocess"))
    assert replica.preprocess.input_size == (20, 24)
    assert replica.info().weights is None
    assert replica.class_names is None
    with pytest.raises(InputError, match=r"set model\.preprocess\.resize"):
        load_replica(Model(name=f"{factories}:tiny"))


def test_wrong_number_of_class_names() -> None:
    with pytest.raises(InputError, match=r"model.class_names has 2 names but the model has 4 classes"):
        load_replica(resnet(class_names=["a", "b"]))


def test_model_that_returns_no_logits(factories: str) -> None:
    with pytest.raises(InputError, match="the model returns tuple, not a tensor of logits"):
        load_replica(Model.model_validate({"name": f"{factories}:returns_tuple", "preprocess": SMALL}))


def test_transformer_of_another_size() -> None:
    config = {"name": "timm:vit_tiny_patch16_224", "weights": "random", "options": {"img_size": 48, "depth": 2}}
    replica = load_replica(Model.model_validate(config))
    assert replica.preprocess.input_size == (48, 48)
    assert replica.layer_infos == [LayerInfo(name="blocks.1.norm1", channels=192, height=3, width=3)]
    assert replica.head is None
    with pytest.raises(InputError, match=r"does not run on a 64 x 64 RGB image"):
        load_replica(Model.model_validate({**config, "preprocess": {"resize": [64, 64]}}))


def test_precision() -> None:
    replica = load_replica(resnet(precision="bf16"))
    assert replica.info().precision == "bf16"
    assert replica.digest == load_replica(resnet()).digest
    assert replica.head is not None
    assert replica.head.weight.dtype == torch.float32
    with torch.no_grad():
        assert replica.model(torch.randn(1, 3, 48, 64)).dtype == torch.float32


def test_precision_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.models.replica as module

    def fails(*_args: Any) -> Any:
        raise RuntimeError('"conv" not implemented for Half')

    monkeypatch.setattr(module, "outputs", fails)
    with pytest.raises(
        InputError, match=r"does not run in model\.precision 'fp16' on cpu .*set model\.precision: float32"
    ):
        load_replica(resnet(precision="fp16"))


def test_device_is_checked_first() -> None:
    with pytest.raises(InputError, match="device 'cuda:99' is not usable"):
        load_replica(resnet(name="torchvision:no_such_net"), device="cuda:99")


def test_replica_is_what_the_package_exports() -> None:
    assert isinstance(load_replica(resnet()), Replica)
