"""A network in two parts, its first convolution and the rest, that share its tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.factory import build, parse_name
from pipeline.models.layers import find_target_layers
from pipeline.models.optimise import prepare
from pipeline.models.stem import split_stem

SIZE = (64, 64)


class Network(nn.Module):
    """A convolution of the image and a linear head; ``join`` makes features of the convolution's output and the image.

    A convolution of the join's result would be another module; a random head tells any two feature maps apart.
    """

    def __init__(
        self, conv: nn.Module, join: Callable[[Tensor, Tensor], Tensor] = lambda x, _image: x, features: int = 6
    ) -> None:
        super().__init__()
        self.stem = conv
        self.alias = [conv]
        self.head = nn.Linear(features, 5)
        self.join = join

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.join(self.alias[0](image), image)
        return self.head(features.relu().mean((2, 3)))  # type: ignore[no-any-return]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE[0] * SIZE[1], 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image.flatten(1))  # type: ignore[no-any-return]


class Same(nn.Conv2d):
    """Does more than a convolution."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(functional.pad(image, (0, 1, 0, 1)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(self.conv(image)).mean((2, 3))  # type: ignore[no-any-return]


class Normalising(Network):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.sub_(0.5))


class Checking(Network):
    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[1] == 3, "not an image"
        return super().forward(image)


class Asking(Network):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.to(self.stem.weight.dtype))  # type: ignore[arg-type]


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(3, 6, 3, **{"padding": 1, **options})  # type: ignore[arg-type]


def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:swin_t", "timm:mobilenetv3_small_050"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_parts_are_the_whole(name: str, precision: Literal["float32", "bf16"]) -> None:
    model = build(parse_name(name), {"num_classes": 10}).eval()
    prepared, _ = prepare(model, find_target_layers(model, SIZE), precision, input_size=SIZE)
    stem = split_stem(prepared, SIZE)
    assert stem is not None
    image = images().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        whole, first = prepared(image), stem.conv(image.to(stem.conv.weight.dtype))
        parts = stem.rest(first)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert parts.dtype == torch.float32
    assert torch.equal(parts, whole)


def test_tensors_are_shared_and_the_model_is_left_as_it_is() -> None:
    model = build(parse_name("torchvision:resnet18"), {"num_classes": 10}).train()
    modules, state = dict(model.named_modules()), {key: value.clone() for key, value in model.state_dict().items()}
    stem = split_stem(model, SIZE)
    assert stem is not None
    assert stem.conv is model.get_submodule("conv1")
    assert isinstance(stem.rest.get_submodule("conv1"), nn.Identity)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shared = {**dict(stem.rest.named_parameters()), **dict(stem.rest.named_buffers())}
    assert shared.keys() == tensors.keys() - {"conv1.weight"}
    assert all(value is tensors[name] for name, value in shared.items())
    assert dict(model.named_modules()) == modules
    assert all(module.training for module in (*model.modules(), *stem.rest.modules()))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_every_reference_to_the_convolution_is_replaced() -> None:
    model = Network(conv())
    stem = split_stem(model, SIZE)
    assert stem is not None
    assert stem.rest.alias[0] is stem.rest.stem
    assert model.alias[0] is model.stem is stem.conv


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Flat, id="no convolution"),
        pytest.param(Twice, id="the convolution runs twice"),
        pytest.param(lambda: Network(conv(), lambda x, image: x + image.mean(1, keepdim=True)), id="image used again"),
        pytest.param(lambda: Network(conv(), lambda x, image: x * image.shape[1]), id="shape used"),
        pytest.param(lambda: Network(conv(), lambda x, image: torch.cat([x, image], 1), 9), id="image concatenated"),
        pytest.param(lambda: Checking(conv()), id="shape checked"),
        pytest.param(lambda: Asking(conv()), id="weight asked for"),
        pytest.param(lambda: Normalising(conv()), id="normalised in place before"),
        pytest.param(lambda: Network(conv(padding="same")), id="padding in words"),
        pytest.param(lambda: Network(conv(padding_mode="reflect")), id="padding of another kind"),
        pytest.param(lambda: Network(conv(groups=3)), id="groups"),
        pytest.param(lambda: Network(conv(dilation=2)), id="dilation"),
        pytest.param(lambda: Network(Same(3, 6, 3)), id="a subclass"),
        pytest.param(lambda: nn.Sequential(nn.AvgPool2d(2), Network(conv())), id="not the image"),
        pytest.param(lambda: Network(conv(), lambda x, image: x[0]), id="does not run"),
    ],
)
def test_other_networks_are_not_split(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert split_stem(make().eval(), SIZE) is None


def test_a_convolution_with_hooks_is_not_split() -> None:
    model = Network(conv())
    model.stem.register_forward_hook(lambda _module, _args, output: output * 2)
    assert split_stem(model, SIZE) is None


def test_a_vision_transformer_checks_its_input() -> None:
    assert split_stem(build(parse_name("timm:vit_tiny_patch16_224"), {"num_classes": 10}).eval()) is None
