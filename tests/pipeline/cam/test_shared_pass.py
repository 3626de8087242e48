"""The shared pass: what it captures, where it cuts the graph, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer
from pipeline.cam.shared_pass import SharedPass, shared_pass
from schemas.errors import InputError
from tests.pipeline.cam import nets


def run(model: nn.Module, layers: list[TargetLayer], rows: int = 2) -> SharedPass:
    return shared_pass(model, nets.images(rows), layers, {layer.name for layer in layers})


def one_target(result: SharedPass, target: int = 1, *, last: bool = True) -> dict[str, Tensor]:
    rows = len(result.logits)
    return result.gradients(torch.full((rows,), target), torch.ones(rows, dtype=torch.bool), last=last)


def test_activations_and_gradients_in_forward_order() -> None:
    model = nets.make("gap")
    layers = nets.target_layers(model)
    result = run(model, layers[::-1])
    assert list(result.activations) == ["stem", "features"]
    with torch.no_grad():
        stem = model.stem(nets.images(2))
        assert torch.equal(result.activations["stem"], stem)
        assert torch.equal(result.activations["features"], model.features(stem))
        assert torch.equal(result.logits, model(nets.images(2)))
    assert not result.logits.requires_grad
    expected = model.fc.weight[1].detach()[None, :, None, None].expand(2, -1, 5, 6) / 30
    assert torch.allclose(one_target(result)["features"], expected)


def test_inactive_images_get_no_gradient_and_several_backwards_share_one_graph() -> None:
    model = nets.make("inplace")
    layers = nets.target_layers(model)[1:]
    result = run(model, layers)
    first = one_target(result, 1, last=False)["conv2"]
    half = result.gradients(torch.tensor([1, 1]), torch.tensor([False, True]), last=False)["conv2"]
    again = one_target(result, 1)["conv2"]
    assert torch.equal(first, again)
    assert not half[0].any()
    assert torch.equal(half[1], first[1])
    with pytest.raises(RuntimeError, match="second time"):
        one_target(result)


def test_the_trunk_before_the_first_layer_keeps_no_graph() -> None:
    model = nets.make("gap")
    seen: list[bool] = []
    handles = [
        model.stem.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad)),
        model.fc.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad)),
    ]
    run(model, nets.target_layers(model)[1:])
    shared_pass(model, nets.images(1), nets.target_layers(model), ())
    for handle in handles:
        handle.remove()
    assert seen == [False, True, False, False]


def test_an_inplace_relu_behind_the_layer_does_not_change_what_was_captured() -> None:
    model = nets.make("inplace")
    layers = nets.target_layers(model)
    for gradient_layers in ({"conv1", "conv2"}, set()):
        result = shared_pass(model, nets.images(2), layers, gradient_layers)
        expected = nn.functional.conv2d(nets.images(2), model.conv1.weight, model.conv1.bias, padding=1)
        assert (result.activations["conv1"] < 0).any()
        assert torch.allclose(result.activations["conv1"], expected, atol=1e-6)


def state(model: nn.Module) -> list[object]:
    return [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        [buffer.clone() for buffer in model.buffers()],
    ]


def same(left: object, right: object) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    return left == right


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(fails: bool) -> None:
    model = nets.make("gap").train()
    model.stem.eval()
    model.fc.bias.requires_grad_(False)
    model.fc.weight.grad = torch.full_like(model.fc.weight, 3)
    layers = nets.target_layers(model)
    if fails:
        layers.append(TargetLayer("fc", model.fc))
    before = state(model)
    if fails:
        with pytest.raises(InputError, match="'fc'"):
            run(model, layers)
    else:
        result = run(model, layers)
        one_target(result)
        # In eval mode the batch norm used its running statistics: an image does not depend on its company.
        alone = shared_pass(model, nets.images(2)[:1], layers, ())
        assert torch.allclose(alone.logits, result.logits[:1], atol=1e-6)
    assert same(before, state(model))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(3, 4, 3)
        self.side = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.side(images)
        return self.fc(self.relu(self.relu(self.conv(images))).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("relu", "layer 'relu' runs more than once"),
        ("unused", "layer 'unused' does not run"),
        ("fc", r"layer 'fc' gives a tensor of shape \(2, 5\) for 2 images"),
        ("side", "layer 'side' does not influence the logits"),
    ],
)
def test_layers_that_cannot_be_explained(layer: str, message: str) -> None:
    model = Twice()
    with pytest.raises(InputError, match=message):
        one_target(run(model, [TargetLayer(layer, getattr(model, layer))]))


def test_a_layer_that_returns_no_tensor() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.LSTM(396, 5))
    with pytest.raises(InputError, match="layer '2' returns tuple, not a tensor"):
        run(model, [TargetLayer("2", model[2])])


@pytest.mark.parametrize(
    ("output", "message"),
    [(lambda logits: (logits, logits), "returned tuple"), (lambda logits: logits[:, 0], r"returned shape \(2,\)")],
)
def test_models_that_return_no_logits(output: Callable[[Tensor], object], message: str) -> None:
    model = nets.make("gap")
    model.register_forward_hook(lambda module, args, logits: output(logits))
    with pytest.raises(InputError, match=message):
        run(model, nets.target_layers(model))


def test_logits_that_are_detached_name_the_layer() -> None:
    model = nets.make("gap")
    model.register_forward_hook(lambda module, args, logits: logits.detach())
    with pytest.raises(InputError, match="layer 'stem' does not influence the logits"):
        one_target(run(model, nets.target_layers(model)))


def test_works_inside_inference_mode() -> None:
    model = nets.make("inplace")
    expected = one_target(run(model, nets.target_layers(model)))
    with torch.inference_mode():
        found = one_target(run(model, nets.target_layers(model)))
    assert torch.equal(found["conv1"], expected["conv1"])


def test_half_precision_gradients_do_not_underflow() -> None:
    # dS/dA is 3e-7 in each cell: below float16's normal range, where without scaling two bits are left of it.
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return (self.conv(images) * 3e-7).sum((2, 3))

    model = Small().half()
    result = shared_pass(model, nets.images(2).half(), [TargetLayer("conv", model.conv)], {"conv"})
    assert float(one_target(result)["conv"][0, 1, 0, 0]) == pytest.approx(3e-7, rel=2e-3)
