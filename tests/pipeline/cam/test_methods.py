"""Every method against its float64 reference, and the identities between methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.attributor import Attributor
from pipeline.cam.base import LayerSignals, LinearHead
from pipeline.cam.eigen_cam import EigenCAM
from pipeline.cam.grad_cam_pp import GradCAMpp
from pipeline.cam.noise import noise_seed, noised
from pipeline.cam.xgrad_cam import XGradCAM
from schemas.methods import MethodSpec
from tests.pipeline.cam import nets, reference

KINDS = ["gap", "inplace", "token"]
GRADIENT_METHODS = ["grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam"]
TARGETS = [[3, 0], [1], [4, 2, 0]]


def head_of(model: nn.Module) -> LinearHead | None:
    return model.head() if isinstance(model, nets.GapNet) else None


def entries() -> list[tuple[int, int]]:
    return [(image, target) for image, classes in enumerate(TARGETS) for target in classes]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_methods_equal_their_formulas(kind: str, channels_last: bool) -> None:
    model = nets.make(kind)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    images = nets.images(3)
    result = Attributor(model, [*GRADIENT_METHODS, "eigen_cam"], layers=nets.target_layers(model), head=head_of(model))(
        images, TARGETS
    )
    assert result.selection.image.tolist() == [image for image, _ in entries()]
    for layer in nets.target_layers(model):
        for row, (image, target) in enumerate(entries()):
            activation, gradient = reference.signals(model, layer.name, layer.to_grid, images[image], target)
            for name in GRADIENT_METHODS:
                expected = getattr(reference, name)(activation, gradient)
                ours = result[name, layer.name][row]
                assert nets.difference(ours, expected) < 2e-5, (name, layer.name)
                # Raw magnitudes, too: stored maps are unscaled.
                assert torch.allclose(ours.double(), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
            expected = reference.eigen_cam(activation)
            assert nets.difference(result["eigen_cam", layer.name][row], expected) < 2e-5
            assert torch.allclose(result["eigen_cam", layer.name][row].double(), expected, rtol=1e-3, atol=1e-4)


def test_cam_equals_its_formula_and_is_signed() -> None:
    model = nets.make("gap")
    images = nets.images(3)
    attributor = Attributor(model, ["cam"], layers=nets.target_layers(model), head=head_of(model))
    result = attributor(images, TARGETS)
    weight = head_of(model).weight
    for row, (image, target) in enumerate(entries()):
        activation, _ = reference.signals(
            model, "features", nets.target_layers(model)[1].to_grid, images[image], target
        )
        assert nets.difference(result["cam"][row], reference.cam(activation, weight, target)) < 1e-5
        # The map's mean and the bias make the logit.
        bias = float(model.head().bias[target])
        logit = float(result.logits[image, target])
        assert float(result["cam"][row].mean()) + bias == pytest.approx(logit, abs=1e-5)
    assert (result["cam"] < 0).any()
    assert [info.signed for info in attributor.method_infos()] == [True]


@pytest.mark.parametrize("numerator", ["second", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_smooth_grad_cam_pp_equals_its_formula(kind: str, numerator: str) -> None:
    model = nets.make(kind)
    images = nets.images(3)
    spec = {"name": "smooth_grad_cam_pp", "samples": 3, "noise_level": 0.2, "numerator": numerator}
    result = Attributor(model, [spec], layers=nets.target_layers(model), head=head_of(model), seed=7)(
        images, TARGETS, image_seeds=[11, 12, 13]
    )
    for layer in nets.target_layers(model):
        for row, (image, target) in enumerate(entries()):
            activation, _ = reference.signals(model, layer.name, layer.to_grid, images[image], target)
            gradients = []
            for sample in range(3):
                copy = noised(images[image], 0.2, noise_seed(7, 11 + image, sample))
                gradients.append(reference.signals(model, layer.name, layer.to_grid, copy, target)[1])
            expected = reference.smooth_grad_cam_pp(activation, gradients, numerator)
            assert nets.difference(result["smooth_grad_cam_pp", layer.name][row], expected) < 2e-4


def test_without_the_closed_form_the_head_layer_has_the_same_maps() -> None:
    model = nets.make("gap")
    images = nets.images(3)
    methods = [*GRADIENT_METHODS, {"name": "smooth_grad_cam_pp", "samples": 2}]
    closed = Attributor(model, methods, layers=nets.target_layers(model), head=head_of(model))(images, TARGETS)
    autograd = Attributor(model, methods, layers=nets.target_layers(model))(images, TARGETS)
    for name, layers in closed.maps.items():
        for layer in layers:
            assert nets.difference(closed[name, layer], autograd[name, layer]) < 2e-5, (name, layer)


def test_identities_behind_global_average_pooling() -> None:
    model = nets.make("gap")
    images = nets.images(4)
    # No head is given for the gradient methods: both sides of each identity are computed independently.
    gradient = Attributor(
        model, [*GRADIENT_METHODS, {"name": "smooth_grad_cam_pp", "samples": 2}], layers=nets.target_layers(model)[1:]
    )(images, [[1, 3]] * 4)
    cam = Attributor(model, ["cam"], layers=nets.target_layers(model)[1:], head=head_of(model))(images, [[1, 3]] * 4)
    cells = 5 * 6
    expected = cam["cam"].relu() / cells
    for name in ("grad_cam", "hires_cam", "xgrad_cam"):
        assert torch.allclose(gradient[name], expected, rtol=1e-4, atol=1e-6), name
    weight = model.fc.weight.detach()[gradient.selection.target].relu()
    activation = torch.stack(
        [
            reference.signals(model, "features", lambda grid: grid, images[image], 0)[0]
            for image in gradient.selection.image.tolist()
        ]
    ).float()
    layer_cam = torch.einsum("tk,tkij->tij", weight, activation) / cells
    assert torch.allclose(gradient["layer_cam"], layer_cam, rtol=1e-4, atol=1e-6)
    # The gradient does not depend on the input there, so noise changes nothing.
    assert nets.difference(gradient["smooth_grad_cam_pp"], gradient["grad_cam_pp"]) < 2e-5


def spec(name: str) -> MethodSpec:
    return MethodSpec(name=name)


def test_grad_cam_pp_closed_form_has_no_epsilon() -> None:
    # Gradients far below any epsilon: scaling g by 1e-6 and A's sum by 1e6 leaves alpha as it is.
    generator = torch.Generator().manual_seed(0)
    activation = torch.rand((2, 16, 3, 4), generator=generator)
    gradient = torch.randn((2, 16, 3, 4), generator=generator)
    target = torch.zeros(2, dtype=torch.int64)
    method = GradCAMpp(spec("grad_cam_pp"))
    usual = method.maps(LayerSignals(activation), gradient, target, None)
    tiny = method.maps(LayerSignals(activation * 2.0**30), gradient * 2.0**-30, target, None)
    assert torch.equal(usual, tiny)
    for image in range(2):
        expected = reference.grad_cam_pp(activation[image].double(), gradient[image].double())
        assert nets.difference(usual[image], expected) < 1e-6


def test_grad_cam_pp_takes_negative_channel_sums_as_zero() -> None:
    activation = torch.tensor([[[[-1.0, -3.0]], [[2.0, 1.0]]]])
    gradient = torch.tensor([[[[0.5, -1.0]], [[1.0, 1.0]]]])  # 2 + s g is 0 in the first channel: the pole
    maps = GradCAMpp(spec("grad_cam_pp")).maps(
        LayerSignals(activation), gradient, torch.zeros(1, dtype=torch.int64), None
    )
    weights = (0.5 / 2, 2 * 1 / (2 + 3))
    expected = torch.tensor([[[-weights[0] + 2 * weights[1], -3 * weights[0] + weights[1]]]]).relu()
    assert torch.allclose(maps, expected)


def test_xgrad_cam_leaves_out_channels_that_sum_to_zero() -> None:
    activation = torch.tensor([[[[1.0, -1.0]], [[2.0, 2.0]], [[0.0, 0.0]]]])
    gradient = torch.ones(1, 3, 1, 2)
    maps = XGradCAM(spec("xgrad_cam")).maps(LayerSignals(activation), gradient, torch.zeros(1, dtype=torch.int64), None)
    assert torch.equal(maps, torch.tensor([[[2.0, 2.0]]]))


@pytest.mark.parametrize("shape", [(4, 5, 6), (40, 2, 3)])  # more cells than channels, and fewer
def test_eigen_cam_of_either_shape_and_of_damaged_input(shape: tuple[int, int, int]) -> None:
    activation = torch.randn((4, *shape), generator=torch.Generator().manual_seed(1))
    activation[1] = activation[1].relu()
    activation[2] = 0
    activation[3, 0, 0, 0] = torch.nan
    maps = EigenCAM(spec("eigen_cam")).maps(LayerSignals(activation), None, torch.zeros(4, dtype=torch.int64), None)
    for image in (0, 1):
        assert nets.difference(maps[image], reference.eigen_cam(activation[image].double())) < 1e-5
        assert maps[image].sum() >= 0
    assert (maps[1] >= -1e-6).all()
    assert torch.equal(maps[2], torch.zeros(shape[1:]))
    assert maps[3].isnan().all()


def test_eigen_cam_with_a_sum_of_zero_makes_the_largest_entry_positive() -> None:
    # Channels sum to zero over the cells, so the projection does, too.
    activation = torch.tensor([[[[-2.0, 1.0, 1.0]], [[-4.0, 2.0, 2.0]]]])
    maps = EigenCAM(spec("eigen_cam")).maps(LayerSignals(activation), None, torch.zeros(1, dtype=torch.int64), None)
    assert maps[0, 0].tolist() == pytest.approx([20**0.5, -(5**0.5), -(5**0.5)], rel=1e-5)


def test_one_damaged_image_leaves_its_neighbours_alone() -> None:
    model = nets.make("gap")
    images = nets.images(3)
    attributor = Attributor(
        model,
        [*GRADIENT_METHODS, "cam", "eigen_cam", "smooth_grad_cam_pp", "score_cam"],
        layers=nets.target_layers(model),
        head=head_of(model),
        batch_size=4,
    )
    good = attributor(images, [1, 2, 3])
    damaged = images.clone()
    damaged[1, 0, 3, 3] = torch.inf
    result = attributor(damaged, [1, 2, 3])
    for name, layers in result.maps.items():
        for layer, maps in layers.items():
            assert torch.equal(maps[[0, 2]], good[name, layer][[0, 2]]), (name, layer)
            assert maps[1].isnan().any(), (name, layer)


def test_half_precision_network_gives_float32_maps() -> None:
    model = nets.make("inplace")
    images = nets.images(2)
    exact = Attributor(model, GRADIENT_METHODS, layers=nets.target_layers(model)[1:])(images, [1, 2])
    half = Attributor(model.bfloat16(), GRADIENT_METHODS, layers=nets.target_layers(model)[1:])(images, [1, 2])
    for name in GRADIENT_METHODS:
        assert half[name].dtype == torch.float32
        for ours, expected in zip(half[name], exact[name], strict=True):
            assert torch.corrcoef(torch.stack([ours.flatten(), expected.flatten()]))[0, 1] > 0.98, name
