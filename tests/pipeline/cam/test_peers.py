"""Side by side with the packages grad-cam and torchcam: where they are right we agree, and where not, it shows."""

from __future__ import annotations

import copy
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.attributor import Attributor
from pipeline.cam.base import LayerSignals, TargetLayer
from pipeline.cam.eigen_cam import EigenCAM
from pipeline.cam.noise import noise_seed, noised
from schemas.errors import InputError
from schemas.methods import MethodSpec
from tests.pipeline.cam import nets, reference

# The peers' own warnings (escapes in docstrings, deprecated numpy and matplotlib) are not ours to fix.
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = [1, 3, 0]


class Peers(NamedTuple):
    grad_cam: ModuleType
    torchcam: ModuleType
    scale: Any
    target: Any


@pytest.fixture(scope="module")
def peers() -> Peers:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        import torchcam.methods
        from pytorch_grad_cam.utils.image import scale_cam_image
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    return Peers(pytorch_grad_cam, torchcam.methods, scale_cam_image, ClassifierOutputTarget)


def last_layer(model: nn.Module) -> TargetLayer:
    return nets.target_layers(model)[-1]


def make(kind: str) -> nn.Module:
    """A net without in-place ReLUs, which peers cannot bear behind a layer (see the last test)."""
    model = nets.make(kind)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def ours(model: nn.Module, spec: str | dict[str, object], images: Tensor) -> Tensor:
    attributor = Attributor(model, [spec], layers=[last_layer(model)])
    return attributor(images, TARGETS)[next(iter(attributor.method_infos())).key]


def from_grad_cam(peers: Peers, name: str, model: nn.Module, images: Tensor) -> np.ndarray[Any, Any]:
    """Their maps, scaled and enlarged by them."""
    model = copy.deepcopy(model)
    layer = last_layer(model)
    reshape = None if isinstance(model, nets.GapNet | nets.InplaceNet) else layer.to_grid
    with getattr(peers.grad_cam, name)(model, [layer.module], reshape_transform=reshape) as method:
        maps: np.ndarray[Any, Any] = method(images, [peers.target(target) for target in TARGETS])
    return maps


def like_grad_cam(peers: Peers, maps: Tensor) -> np.ndarray[Any, Any]:
    """Our raw maps, scaled and enlarged as they do it."""
    once = peers.scale(np.maximum(maps.numpy(), 0), nets.SIZE[::-1])
    result: np.ndarray[Any, Any] = peers.scale(once)
    return result


def from_torchcam(peers: Peers, name: str, model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    """Their raw maps."""
    model = copy.deepcopy(model)
    layer = last_layer(model)
    transform = {} if isinstance(model, nets.GapNet | nets.InplaceNet) else {"reshape_transform": layer.to_grid}
    extractor = getattr(peers.torchcam, name)(model, [layer.name], input_shape=(3, *nets.SIZE), **transform, **options)
    with extractor:
        scores = model(images)
        return extractor(TARGETS, scores, normalized=False)[0].detach()


@pytest.mark.parametrize("kind", ["gap", "inplace", "token"])
@pytest.mark.parametrize(
    ("key", "name"),
    [("grad_cam", "GradCAM"), ("layer_cam", "LayerCAM"), ("hires_cam", "HiResCAM"), ("xgrad_cam", "XGradCAM")],
)
def test_gradient_methods_agree(peers: Peers, key: str, name: str, kind: str) -> None:
    model, images = make(kind), nets.images(3)
    maps = ours(model, key, images)
    if (key, kind) != ("xgrad_cam", "token"):  # their absolute epsilons matter where sums come near zero
        assert np.abs(like_grad_cam(peers, maps) - from_grad_cam(peers, name, model, images)).max() < 2e-4
    if hasattr(peers.torchcam, name) and (key, kind) != ("xgrad_cam", "token"):
        theirs = from_torchcam(peers, name, model, images)
        assert nets.difference(maps, theirs) < 2e-4
        assert torch.allclose(maps, theirs, rtol=1e-2, atol=1e-5)


def test_cam_agrees_up_to_its_sign(peers: Peers) -> None:
    model, images = make("gap"), nets.images(3)
    attributor = Attributor(model, ["cam"], layers=[last_layer(model)], head=model.head())
    theirs = from_torchcam(peers, "CAM", model, images, fc_layer="fc")
    assert torch.allclose(attributor(images, TARGETS)["cam"], theirs, rtol=1e-3, atol=1e-5)


def test_eigen_cam_differs_by_their_centring_alone(peers: Peers) -> None:
    model, images = make("gap"), nets.images(3)
    theirs = from_grad_cam(peers, "EigenCAM", model, images)
    assert np.abs(like_grad_cam(peers, ours(model, "eigen_cam", images)) - theirs).max() > 0.1
    with torch.no_grad():
        activation = model.features(model.stem(images))
    centred = activation - activation.mean((2, 3), keepdim=True)
    projection = EigenCAM(MethodSpec(name="eigen_cam")).maps(
        LayerSignals(centred), None, torch.zeros(3, dtype=torch.int64), None
    )
    # The sign is arbitrary there, and fixed in no way: one of the two is theirs.
    for image in range(3):
        signs = [like_grad_cam(peers, sign * projection[image : image + 1])[0] for sign in (1, -1)]
        assert min(np.abs(each - theirs[image]).max() for each in signs) < 1e-3


@pytest.mark.parametrize("kind", ["gap", "inplace"])
def test_score_cam_conventions_agree(peers: Peers, kind: str) -> None:
    model, images = make(kind), nets.images(3)
    maps = ours(model, {"name": "score_cam", "convention": "grad_cam"}, images)
    assert np.abs(like_grad_cam(peers, maps) - from_grad_cam(peers, "ScoreCAM", model, images)).max() < 1e-4
    maps = ours(model, {"name": "score_cam", "convention": "torchcam"}, images)
    theirs = from_torchcam(peers, "ScoreCAM", model, images)
    assert nets.difference(maps, theirs) < 1e-4
    assert torch.allclose(maps, theirs, rtol=1e-3, atol=1e-5)


def expected(model: nn.Module, images: Tensor, name: str) -> Tensor:
    layer = last_layer(model)
    maps = [
        getattr(reference, name)(*reference.signals(model, layer.name, layer.to_grid, image, target))
        for image, target in zip(images, TARGETS, strict=True)
    ]
    return torch.stack(maps).float()


def test_torchcam_grad_cam_pp_never_divides_alpha(peers: Peers) -> None:
    model, images = make("inplace"), nets.images(3)
    formula = expected(model, images, "grad_cam_pp")
    assert nets.difference(ours(model, "grad_cam_pp", images), formula) < 2e-5
    theirs = from_torchcam(peers, "GradCAMpp", model, images)
    assert nets.difference(theirs, formula) > 0.02
    layer = last_layer(model)
    for row, (image, target) in enumerate(zip(images, TARGETS, strict=True)):
        activation, gradient = reference.signals(model, layer.name, layer.to_grid, image, target)
        weight = (gradient**2 * gradient.relu()).sum((1, 2))
        assert nets.difference(theirs[row], torch.einsum("k,kij->ij", weight, activation).relu()) < 1e-4


def test_grad_cam_pp_of_grad_cam_drowns_small_gradients(peers: Peers) -> None:
    model, images = make("gap"), nets.images(3)
    with torch.no_grad():
        model.fc.weight.mul_(0.01)
    formula = expected(model, images, "grad_cam_pp")
    assert nets.difference(ours(model, "grad_cam_pp", images), formula) < 2e-5
    theirs = from_grad_cam(peers, "GradCAMPlusPlus", model, images)
    assert np.abs(like_grad_cam(peers, ours(model, "grad_cam_pp", images)) - theirs).max() > 0.02


def test_torchcam_smooth_grad_cam_pp_keeps_the_last_sample_only(peers: Peers) -> None:
    model, images = make("inplace"), nets.images(3)
    layer = last_layer(model)
    seeds, level, samples = [4, 5, 6], 0.2, 3
    copies = [
        torch.stack(
            [noised(image, level, noise_seed(0, seed, sample)) for image, seed in zip(images, seeds, strict=True)]
        )
        for sample in range(samples)
    ]
    signals = [
        [reference.signals(model, layer.name, layer.to_grid, copy[row], TARGETS[row]) for copy in copies]
        for row in range(3)
    ]
    clean = [reference.signals(model, layer.name, layer.to_grid, images[row], TARGETS[row])[0] for row in range(3)]
    formula = torch.stack(
        [reference.smooth_grad_cam_pp(clean[row], [gradient for _, gradient in signals[row]]) for row in range(3)]
    ).float()
    spec = {"name": "smooth_grad_cam_pp", "samples": samples, "noise_level": level}
    attributor = Attributor(model, [spec], layers=[layer])
    found = attributor(images, TARGETS, image_seeds=seeds)["smooth_grad_cam_pp"]
    assert nets.difference(found, formula) < 2e-4

    # The same noise for torchcam: what its distribution draws is our noise.
    network = copy.deepcopy(model)
    queue = [each - images for each in copies]

    class Replay:
        def sample(self, size: object) -> Tensor:
            return queue.pop(0)

    with peers.torchcam.SmoothGradCAMpp(
        network, [layer.name], input_shape=(3, *nets.SIZE), num_samples=samples
    ) as extractor:
        extractor._distrib = Replay()
        network(images)
        theirs = extractor(TARGETS, normalized=False)[0].detach()
    assert not queue
    assert nets.difference(theirs, formula) > 0.02
    for row in range(3):
        # What it computes: s_k g^3 became a sum over cells, relu(D1) and A are those of the last noised copy.
        second = torch.stack([gradient**2 for _, gradient in signals[row]]).mean(0)
        third = torch.stack([gradient**3 for _, gradient in signals[row]]).mean(0)
        last_activation, last_gradient = signals[row][-1]
        alpha = second / (2 * second + (third * clean[row]).sum((1, 2), keepdim=True) + 1e-8)
        weight = (alpha * last_gradient.relu()).sum((1, 2))
        assert nets.difference(theirs[row], torch.einsum("k,kij->ij", weight, last_activation).relu()) < 1e-3


def test_grad_cam_takes_too_few_targets_and_overwrites_gradients(peers: Peers) -> None:
    model, images = make("gap"), nets.images(3)
    network = copy.deepcopy(model)
    network.fc.weight.grad = torch.full_like(network.fc.weight, 3)
    with peers.grad_cam.GradCAM(network, [last_layer(network).module]) as method:
        theirs = method(images, [peers.target(1)])
    assert not theirs[1:].any()  # two images silently without a map
    assert not torch.equal(network.fc.weight.grad, torch.full_like(network.fc.weight, 3))

    attributor = Attributor(model, layers=[last_layer(model)])
    with pytest.raises(InputError, match="targets: 1 for 3 images"):
        attributor(images, [1])
    model.fc.weight.grad = torch.full_like(model.fc.weight, 3)
    attributor(images, TARGETS)
    assert torch.equal(model.fc.weight.grad, torch.full_like(model.fc.weight, 3))


def test_an_inplace_relu_behind_the_layer_changes_what_peers_see(peers: Peers) -> None:
    model, images = nets.make("inplace"), nets.images(3)
    formula = expected(model, images, "grad_cam")
    assert nets.difference(ours(model, "grad_cam", images), formula) < 2e-5
    assert nets.difference(from_torchcam(peers, "GradCAM", model, images), formula) > 0.05
    assert np.abs(like_grad_cam(peers, formula) - from_grad_cam(peers, "GradCAM", model, images)).max() > 0.05
