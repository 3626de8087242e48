"""Target layers by themselves and by name, the linear head, and the grids of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer, identity_grid
from pipeline.models.factory import build, parse_name
from pipeline.models.grids import ChannelsLastGrid, TokenGrid, guessed_token_grid, spatial_grid
from pipeline.models.layers import find_linear_head, find_target_layers, named_target_layer
from pipeline.models.trace import hooked
from schemas.errors import InputError

# name, options, size, layer, to_grid, (channels, height, width), has a linear head
CASES: list[tuple[str, dict, tuple[int, int], str, Any, tuple[int, int, int], bool]] = [
    ("torchvision:resnet18", {}, (64, 96), "layer4", identity_grid, (512, 2, 3), True),
    ("torchvision:vgg11", {}, (64, 64), "features.19", identity_grid, (512, 4, 4), False),
    ("torchvision:mobilenet_v2", {}, (64, 64), "features", identity_grid, (1280, 2, 2), True),
    ("torchvision:densenet121", {}, (64, 64), "features", identity_grid, (1024, 2, 2), False),
    ("torchvision:squeezenet1_1", {}, (64, 64), "features", identity_grid, (512, 3, 3), False),
    ("torchvision:googlenet", {}, (64, 64), "inception5b", identity_grid, (1024, 2, 2), True),
    ("torchvision:convnext_tiny", {}, (64, 64), "features", identity_grid, (768, 2, 2), False),
    ("torchvision:shufflenet_v2_x0_5", {}, (64, 64), "conv5", identity_grid, (1024, 2, 2), True),
    ("torchvision:swin_t", {}, (64, 96), "permute", identity_grid, (768, 2, 3), True),
    ("timm:resnet18", {}, (64, 64), "layer4", identity_grid, (512, 2, 2), True),
    ("timm:efficientnet_b0", {}, (64, 64), "bn2", identity_grid, (1280, 2, 2), True),
    ("timm:convnext_atto", {}, (64, 64), "stages", identity_grid, (320, 2, 2), False),
    (
        "timm:vit_tiny_patch16_224",
        {"img_size": (64, 96)},
        (64, 96),
        "blocks.11.norm1",
        TokenGrid(1, 4, 6),
        (192, 4, 6),
        False,
    ),
    (
        "timm:vit_tiny_patch16_224",  # T = 65 tokens of 64 channels per head: attention looks like a grid here
        {"img_size": 128, "qk_norm": True, "depth": 2},
        (128, 128),
        "blocks.1.norm1",
        TokenGrid(1, 8, 8),
        (192, 8, 8),
        False,
    ),
    (
        "timm:vit_tiny_patch16_224",  # all tokens are averaged and no norm follows: a linear head
        {"img_size": 64, "global_pool": "avg", "fc_norm": False, "depth": 2},
        (64, 64),
        "norm",
        TokenGrid(1, 4, 4),
        (192, 4, 4),
        True,
    ),
    (
        "timm:deit_tiny_distilled_patch16_224",
        {"img_size": 64, "depth": 3},
        (64, 64),
        "blocks.2.norm1",
        TokenGrid(2, 4, 4),
        (192, 4, 4),
        False,
    ),
    (
        "timm:vit_small_patch14_reg4_dinov2",  # a class token and four registers
        {"img_size": 56, "num_classes": 10, "depth": 2},
        (56, 56),
        "blocks.1.norm1",
        TokenGrid(5, 4, 4),
        (384, 4, 4),
        False,
    ),
    (
        "timm:swin_tiny_patch4_window7_224",
        {"img_size": (64, 96), "window_size": 2},
        (64, 96),
        "norm",
        ChannelsLastGrid(),
        (768, 2, 3),
        True,
    ),
]


def activation(model: nn.Module, layer: TargetLayer, image: Tensor) -> Tensor:
    """The grid as it is when the layer returns."""
    seen: list[Tensor] = []
    with (
        torch.no_grad(),
        hooked({layer.name: layer.module}, lambda _n, _m, _a, out: seen.append(layer.to_grid(out).clone())),
    ):
        model(image)
    (grid,) = seen
    return grid


@pytest.mark.parametrize(
    ("name", "options", "size", "expected", "to_grid", "shape", "has_head"),
    CASES,
    ids=[f"{c[0]}-{c[2]}" for c in CASES],
)
def test_automatic_layer_and_head(
    name: str, options: dict, size: tuple[int, int], expected: str, to_grid: Any, shape: tuple, has_head: bool
) -> None:
    model = build(parse_name(name), options)
    (layer,) = find_target_layers(model, size)
    assert layer.name == expected
    assert layer.to_grid == to_grid
    assert model.get_submodule(layer.name) is layer.module
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(9))
    grid = activation(model, layer, image)
    assert grid.shape == (2, *shape)
    head = find_linear_head(model, layer, size)
    assert (head is not None) == has_head
    if head is not None:
        assert head.layer == expected
        assert head.weight.dtype == torch.float32
        assert not head.weight.requires_grad
        logits = grid.mean((2, 3)) @ head.weight.T + (0 if head.bias is None else head.bias)
        with torch.no_grad():
            assert torch.allclose(logits, model(image), rtol=1e-3, atol=1e-4)
    named = named_target_layer(model, expected, size)
    assert (named.name, named.module, named.to_grid) == (layer.name, layer.module, layer.to_grid)


def test_vit_grid_keeps_the_place_of_patches() -> None:
    """A change inside one patch changes that cell of the patch embedding's norm, and no other."""
    model = build(parse_name("timm:vit_tiny_patch16_224"), {"img_size": (64, 96), "depth": 1})
    layer = named_target_layer(model, "blocks.0.norm1", (64, 96))
    image = torch.zeros(1, 3, 64, 96)
    other = image.clone()
    other[:, :, 16:32, 64:80] = 1  # patch row 1, column 4
    changed = (activation(model, layer, image) - activation(model, layer, other)).abs().sum(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 4]]


def test_swin_grid_keeps_the_place_of_patches() -> None:
    model = build(parse_name("timm:swin_tiny_patch4_window7_224"), {"img_size": (64, 96), "window_size": 4})
    layer = named_target_layer(model, "patch_embed", (64, 96))
    image = torch.zeros(1, 3, 64, 96)
    other = image.clone()
    other[:, :, 8:12, 40:44] = 1
    changed = (activation(model, layer, image) - activation(model, layer, other)).abs().sum(1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[2, 10]]


def test_tokens_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"returns 50 tokens, not 1 \+ 4 x 6"):
        TokenGrid(1, 4, 6)(torch.zeros(1, 50, 8))


def test_torchvision_vit() -> None:
    model = build(parse_name("torchvision:vit_b_16"), {"image_size": 32, "num_classes": 5})
    (layer,) = find_target_layers(model, (32, 32))
    assert layer.name == "encoder.layers.encoder_layer_11.ln_1"
    assert layer.to_grid == TokenGrid(1, 2, 2)


def test_default_size_is_what_the_model_says() -> None:
    model = build(parse_name("timm:vit_tiny_patch16_224"), {"img_size": 48, "depth": 1})
    assert find_target_layers(model)[0].to_grid == TokenGrid(1, 3, 3)


class Net(nn.Module):
    """The parts and the head are given; ``reuse`` runs the ReLU twice."""

    def __init__(self, head: nn.Module, dropout: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, 1, 1)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Conv2d(1, 1, 1)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.relu(self.conv2(self.relu(self.conv1(x))))))


class Gap(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mean((2, 3)))


class ThenGap(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Max(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


@pytest.mark.parametrize(
    ("head", "linear"),
    [
        (Gap(nn.Linear(8, 5)), True),
        (Gap(nn.Linear(8, 5, bias=False)), True),
        (Gap(nn.Dropout(0.9), nn.Linear(8, 5)), True),
        (ThenGap(nn.Conv2d(8, 5, 1)), True),  # NiN, all-convolutional nets
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()), True),
        (ThenGap(nn.Conv2d(8, 5, 1), nn.ReLU()), False),  # SqueezeNet
        (ThenGap(nn.Conv2d(8, 5, 1), nn.ReLU(inplace=True)), False),
        (ThenGap(nn.Conv2d(8, 5, 3, padding=1)), False),
        (Gap(nn.LayerNorm(8), nn.Linear(8, 5)), False),
        (Gap(nn.Linear(8, 8), nn.Linear(8, 5)), False),
        (Gap(nn.Linear(8, 5), nn.Softmax(1)), False),
        (Gap(Scaled(8, 5)), False),  # its forward is not its weight
        (nn.Sequential(Max(), nn.Linear(8, 5)), False),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), False),
    ],
)
def test_linear_head_is_found_by_numbers(head: nn.Module, linear: bool) -> None:
    torch.manual_seed(0)
    model = Net(head).eval()
    model(torch.zeros(1, 3, 16, 16))  # lazy layers
    layer = TargetLayer("drop", model.drop)
    found = find_linear_head(model, layer, (16, 16))
    assert (found is not None) == linear
    # Of the layer before the ReLU the head is no linear function, though its values pass through it in place.
    assert find_linear_head(model, TargetLayer("conv2", model.conv2), (16, 16)) is None


def test_zero_head_is_found_behind_its_own_layer_only() -> None:
    model = Net(Gap(nn.Linear(8, 8), nn.Linear(8, 5)))
    with torch.no_grad():
        for parameter in model.head.layers[1].parameters():
            parameter.zero_()
    assert find_linear_head(model, TargetLayer("drop", model.drop), (16, 16)) is None
    assert find_target_layers(model, (16, 16))[0].name == "conv2", "a head without weights says nothing against a layer"


def test_reused_relu_is_not_chosen_and_names_its_holder() -> None:
    model = nn.Sequential(Net(Gap(nn.Linear(8, 5))))
    assert find_target_layers(model, (16, 16))[0].name == "0.conv2"
    with pytest.raises(InputError, match=r"'0\.relu' runs 2 times in one forward; name the block that holds it: '0'"):
        named_target_layer(model, "0.relu", (16, 16))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "convv2",
            r"model\.layers: the model has no layer 'convv2' \(did you mean conv2.*layers are e\.g\. conv1, conv2",
        ),
        ("unused", "does not run"),
        ("head", r"returns \(5,\) per image, which is no grid"),
        ("", "the model has no layer ''"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_target_layer(Net(Gap(nn.Linear(8, 5))), name, (16, 16))


def test_layer_that_returns_no_tensor() -> None:
    model = build(parse_name("torchvision:vit_b_16"), {"image_size": 32, "num_classes": 5})
    with pytest.raises(InputError, match="does not return one tensor"):
        named_target_layer(model, "encoder.layers.encoder_layer_3.self_attention", (32, 32))


def test_model_without_a_grid() -> None:
    with pytest.raises(InputError, match=r"no layer of the model has a spatial grid"):
        find_target_layers(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)), (8, 8))


def test_wrong_size_names_the_field() -> None:
    model = build(parse_name("timm:vit_tiny_patch16_224"), {"img_size": 48, "depth": 1})
    with pytest.raises(InputError, match=r"does not run on a 64 x 64 RGB image .*set model\.preprocess\.crop"):
        find_target_layers(model, (64, 64))


@pytest.mark.parametrize("find", ["find_target_layers", "named_target_layer", "find_linear_head"])
def test_nothing_is_left_behind(find: str) -> None:
    model = Net(Gap(nn.Linear(8, 5))).train()
    model.conv1.eval()
    model.conv2.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    with torch.inference_mode():
        if find == "find_target_layers":
            find_target_layers(model, (16, 16))
        elif find == "named_target_layer":
            named_target_layer(model, "conv2", (16, 16))
        else:
            find_linear_head(model, TargetLayer("drop", model.drop), (16, 16))
        with pytest.raises(InputError):
            find_target_layers(nn.Sequential(model, nn.Flatten(0)), (16, 16))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in (model, model.conv1, model.conv2)] == [True, False, True]
    assert [p.requires_grad for p in (model.conv1.weight, model.conv2.weight)] == [True, False]
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert model.conv2.bias is not None
    assert model.conv2.bias.grad is None


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((1, 512, 7, 7), (224, 224), identity_grid),
        ((1, 7, 7, 512), (224, 224), ChannelsLastGrid()),
        ((1, 7, 11, 512), (200, 333), ChannelsLastGrid()),
        ((1, 512, 7, 11), (200, 333), identity_grid),
        ((1, 8, 8, 8), (64, 64), identity_grid),
        ((1, 512, 1, 1), (224, 224), None),
        ((1, 3, 197, 64), (224, 224), None),  # heads x tokens x channels
        ((1, 12, 197, 197), (192, 192), None),  # an attention matrix, larger than the image
        ((1, 49, 512), (224, 224), None),
    ],
)
def test_spatial_grid(shape: tuple[int, ...], image: tuple[int, int], expected: Any) -> None:
    assert spatial_grid(torch.zeros(shape), image) == expected


@pytest.mark.parametrize(
    ("tokens", "image", "expected"),
    [
        (197, (224, 224), TokenGrid(1, 14, 14)),
        (196, (224, 224), TokenGrid(0, 14, 14)),
        (198, (224, 224), TokenGrid(2, 14, 14)),
        (24 + 1, (64, 96), TokenGrid(1, 4, 6)),
        (1, (64, 64), None),
    ],
)
def test_guessed_token_grid(tokens: int, image: tuple[int, int], expected: TokenGrid | None) -> None:
    assert guessed_token_grid(torch.zeros(1, tokens, 8), image) == expected
