"""The compute core as a notebook uses it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from pipeline import Attributor
from pipeline.cam.base import TargetLayer
from pipeline.cam.selection import select_lists
from schemas.errors import InputError
from schemas.job import Targets
from tests.pipeline.cam import nets


def test_importing_the_package_is_light() -> None:
    code = "import sys, pipeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names() -> None:
    import pipeline
    from pipeline.attributor import Attributor as Defined

    assert pipeline.Attributor is Defined
    assert pipeline.__all__ == ["Attributor", "open_lake"]
    assert {"Attributor", "open_lake"} <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'Attribtor'"):
        pipeline.Attribtor  # noqa: B018


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=5)


def test_three_lines_on_a_plain_torchvision_model(resnet: nn.Module) -> None:
    result = Attributor(resnet, methods=["cam", "grad_cam", "eigen_cam"])(nets.images(2, size=(64, 96)))
    assert result["grad_cam"].shape == (2, 2, 3)
    assert result.selection.target.tolist() == result.logits.argmax(1).tolist()
    # The head was found: CAM works, and Grad-CAM is its positive part.
    assert torch.allclose(result["grad_cam"], result["cam"].relu() / 6, rtol=1e-4, atol=1e-6)
    assert resnet.training


def test_layers_by_name(resnet: nn.Module) -> None:
    spec = {"name": "layer_cam", "layers": ["layer3", "layer4"], "fuse": "max"}
    attributor = Attributor(resnet, ["grad_cam", spec], layers=["layer4.1.conv2"])
    result = attributor(nets.images(1, size=(64, 64)))
    assert {name: list(maps) for name, maps in result.maps.items()} == {
        "grad_cam": ["layer4.1.conv2"],
        "layer_cam": ["layer3+layer4"],
    }
    assert [layer.name for layer in attributor.layers] == ["layer4.1.conv2", "layer3", "layer4"]
    with pytest.raises(InputError, match=r"layers: the model has no layer 'layer5' \(did you mean layer4"):
        Attributor(resnet, layers=["layer5"])


def test_a_resolver_of_layers_is_asked_for_names_only() -> None:
    model = nets.make("gap")
    layers = {layer.name: layer for layer in nets.target_layers(model)}
    asked: list[str] = []

    def find(name: str) -> TargetLayer:
        asked.append(name)
        return layers[name]

    attributor = Attributor(
        model, [{"name": "layer_cam", "layers": ["stem", "features"]}], layers=[layers["features"]], find_layer=find
    )
    assert asked == ["stem"]
    assert attributor.method_infos()[0].layers == ["stem", "features"]


@pytest.fixture
def attributor() -> Attributor:
    model = nets.make("gap")
    return Attributor(
        model,
        ["grad_cam", {"name": "layer_cam", "label": "two"}, {"name": "grad_cam", "label": "scored"}],
        layers=nets.target_layers(model),
        head=model.head(),
        batch_size=2,
    )


def test_the_forms_of_targets(attributor: Attributor) -> None:
    images = nets.images(3)

    def pairs(targets: object) -> list[tuple[int, int]]:
        selection = attributor(images, targets).selection
        return list(zip(selection.image.tolist(), selection.target.tolist(), strict=True))

    best = attributor(images).logits.argmax(1).tolist()
    assert pairs(None) == list(enumerate(best))
    assert pairs([1, 0, 4]) == [(0, 1), (1, 0), (2, 4)]
    assert pairs(torch.tensor([1, 0, 4])) == [(0, 1), (1, 0), (2, 4)]
    assert pairs([[1, 2], [], (3,)]) == [(0, 1), (0, 2), (2, 3)]
    assert pairs(torch.tensor([[1, 2], [3, 0], [4, 4]])) == [(0, 1), (0, 2), (1, 3), (1, 0), (2, 4), (2, 4)]
    assert pairs(lambda logits: select_lists([[0]] * len(logits))) == [(0, 0), (1, 0), (2, 0)]
    result = attributor(images, Targets(predicted=True, classes=[1]))
    assert len(result.selection.kind or ()) == len(result.selection.target)
    assert {target for image, target in pairs(Targets(predicted=True, classes=[1])) if image == 0} == {1, best[0]}
    for wrong, message in (([1, 2], "targets: 2 for 3 images"), ([1, 2, 5], "class 5 of image 0 does not exist")):
        with pytest.raises(InputError, match=message):
            attributor(images, wrong)


def test_results_by_method_and_layer(attributor: Attributor) -> None:
    result = attributor(nets.images(3), [[1, 2], [0], [3]])
    assert result["two", "stem"].shape == (4, 10, 12)
    assert result["two", "features"].shape == (4, 5, 6)
    assert torch.allclose(result.probabilities.sum(1), torch.ones(3))
    with pytest.raises(InputError, match=r"maps of several layers; ask for one: .* stem, features"):
        result["two"]
    with pytest.raises(InputError, match=r"method 'grad_can' was not computed \(did you mean grad_cam"):
        result["grad_can"]
    with pytest.raises(InputError, match=r"layer 'feature' of 'two' was not computed \(did you mean features"):
        result["two", "feature"]


def test_upsampled_maps_are_scaled_for_display(attributor: Attributor) -> None:
    result = attributor(nets.images(2), [0, 1])
    shown = result.upsampled(("two", "features"))
    assert shown.shape == (2, 20, 24)
    assert result.upsampled(("two", "features"), (5, 6)).amax((1, 2)).tolist() == pytest.approx([1, 1])
    expected = nn.functional.interpolate(
        nets.scaled(result["two", "features"])[:, None], (20, 24), mode="bilinear", align_corners=False
    )[:, 0]
    assert torch.allclose(shown, expected)


def test_one_image_and_many_images(attributor: Attributor) -> None:
    images = nets.images(5)
    together = attributor(images, [1] * 5)
    single = attributor(images[3], [1])
    assert together["two", "stem"].shape[0] == 5
    assert torch.equal(single["two", "stem"][0], together["two", "stem"][3])
    with pytest.raises(InputError, match="images: a tensor"):
        attributor(images[:0])


def test_noise_follows_the_image_and_the_seed() -> None:
    model = nets.make("inplace")

    def maps(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
        spec = {"name": "smooth_grad_cam_pp", "samples": 2}
        attributor = Attributor(model, [spec], layers=nets.target_layers(model)[1:], batch_size=4, seed=seed)
        return attributor(images, [1] * len(images))["smooth_grad_cam_pp"]

    images = nets.images(3)
    assert torch.equal(maps(images)[[2, 0]], maps(images[[2, 0]]))
    assert not torch.equal(maps(images), maps(images, seed=1))


def test_sigmoid_probabilities() -> None:
    model = nets.make("gap")
    result = Attributor(model, layers=nets.target_layers(model)[1:], activation="sigmoid")(nets.images(2))
    assert torch.allclose(result.probabilities, result.logits.sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"mask_batch": 0}, "mask_batch: 0"),
        ({"activation": "relu"}, "activation: 'relu'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    model = nets.make("gap")
    with pytest.raises(InputError, match=message):
        Attributor(model, layers=nets.target_layers(model), **options)


def test_a_head_that_was_found_and_does_not_hold_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.models import layers as found

    model = nets.make("gap")
    right = model.head()
    wrong = type(right)("features", right.weight * 3, right.bias)
    monkeypatch.setattr(found, "find_linear_head", lambda model, layer: wrong)
    result = Attributor(model, ["grad_cam"], layers=["features"])(nets.images(2), [1, 2])
    expected = Attributor(model, ["grad_cam"], layers=nets.target_layers(model)[1:])(nets.images(2), [1, 2])
    assert torch.equal(result["grad_cam"], expected["grad_cam"])
    with pytest.raises(InputError, match="CAM needs a model"):
        Attributor(model, ["cam"], layers=["features"])(nets.images(2), [1, 2])
