"""Folding, memory format and precision keep outputs, target layers and their names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer
from pipeline.models.factory import build, parse_name
from pipeline.models.layers import find_target_layers
from pipeline.models.optimise import FOLD_TOLERANCE, fold_batch_norms, outputs, prepare, usable_device
from schemas.errors import InputError


def trained(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics and weights of its own, so that folding has something to do."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                with torch.no_grad():
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * a.abs().max())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("torchvision:resnet18", 0),
        ("torchvision:mobilenet_v2", 0),
        ("torchvision:densenet121", 62),  # those that follow a concatenation; conv0 and 58 bottlenecks are folded
        ("timm:efficientnet_b0", 1),  # bn2 is the target layer
        ("timm:resnet18", 0),
    ],
)
def test_outputs_are_kept(name: str, left: int) -> None:
    model = trained(build(parse_name(name), {"num_classes": 10}))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layers = find_target_layers(model, (64, 64))
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    logits, grids = outputs(model, layers, image)
    prepared, copies = prepare(model, layers, input_size=(64, 64))
    assert norms(prepared) == left
    assert [layer.name for layer in copies] == [layer.name for layer in layers]
    assert [name for name, _ in model.named_modules() if name not in dict(prepared.named_modules())] == []
    folded_logits, folded_grids = outputs(prepared, copies, image)
    assert close(logits, folded_logits, FOLD_TOLERANCE)
    assert close(grids[layers[0].name], folded_grids[layers[0].name], FOLD_TOLERANCE)
    assert all(copied.module is not layer.module for copied, layer in zip(copies, layers, strict=True))
    # The given model is left as it is.
    assert norms(model) > left
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    weights = [m.weight for m in prepared.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


class Traps(nn.Module):
    """Batch norms that must not be folded, and one that may."""

    def __init__(self) -> None:
        super().__init__()
        self.good = nn.Conv2d(3, 4, 3, padding=1)
        self.good_norm = nn.BatchNorm2d(4)
        self.skip = nn.Conv2d(4, 4, 3, padding=1)
        self.skip_norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.shared_norm = nn.BatchNorm2d(4)
        self.gap = nn.Conv2d(4, 4, 3, padding=1)
        self.gap_norm = nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.counted = nn.BatchNorm2d(4, track_running_stats=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good_norm(self.good(x)).relu()
        y = self.skip(x)
        x = self.skip_norm(y) + y  # the convolution's output is used twice
        x = self.shared_norm(self.shared(self.shared_norm(self.shared(x))))  # twice the same
        x = self.gap_norm(self.gap(x).relu())  # something in between
        return self.head((self.alone(x) + self.counted(self.gap(x))).mean((2, 3)))


def test_only_what_may_be_folded_is() -> None:
    torch.manual_seed(0)
    model = trained(Traps())
    folded, count = fold_batch_norms(model, input_size=(16, 16))
    assert count == 1
    assert isinstance(folded.get_submodule("good_norm"), nn.Identity)
    assert norms(folded) == norms(model) - 1


@pytest.mark.parametrize("target", ["0", "1", "wrap"])
def test_targets_are_not_folded(target: str) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    name = f"0.{target}"
    if target == "wrap":  # a container whose output is the convolution's
        inner[0] = nn.Sequential(inner[0])
        name = "0.0"
    trained(model)
    layers = [TargetLayer(name, model.get_submodule(name))]
    image = torch.randn(1, 3, 12, 12)
    _, grids = outputs(model, layers, image)
    folded, count = fold_batch_norms(model, layers, (12, 12))
    assert count == 1
    assert isinstance(folded.get_submodule("0.1"), nn.BatchNorm2d)
    _, folded_grids = outputs(folded, layers, image)
    assert close(grids[name], folded_grids[name], FOLD_TOLERANCE)


def test_a_fold_that_changes_the_outputs_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.models.optimise as module

    model = trained(Traps())
    monkeypatch.setattr(module, "fuse_conv_bn_eval", lambda conv, _norm: copy.deepcopy(conv))
    folded, count = fold_batch_norms(model, input_size=(16, 16))
    assert count == 0
    assert norms(folded) == norms(model)
    assert folded is not model


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:vit_tiny_patch16_224"])
def test_bf16(name: str) -> None:
    options = {"num_classes": 10, **({"img_size": 64, "depth": 2} if "vit" in name else {})}
    model = trained(build(parse_name(name), options))
    layers = find_target_layers(model, (64, 64))
    prepared, copies = prepare(model, layers, "bf16", input_size=(64, 64))
    assert {parameter.dtype for parameter in prepared.parameters()} == {torch.bfloat16}
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    logits, _ = outputs(model, layers, image)
    low, grids = outputs(prepared, copies, image)
    assert low.dtype == torch.float32
    assert grids[copies[0].name].dtype == torch.bfloat16
    assert close(logits, low, 0.05)
    assert not torch.equal(logits, low)


def test_unusable_devices() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    for device in ("cuda:77", "toaster"):
        with pytest.raises(InputError, match=f"device '{device}' is not usable on this machine"):
            usable_device(device)
