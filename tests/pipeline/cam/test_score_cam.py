"""Score-CAM in every convention, for many targets, layers and instances at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.attributor import Attributor
from pipeline.cam.base import ChannelScores, TargetLayer
from pipeline.cam.score_cam import CONVENTIONS, ScoreCAM
from schemas.methods import ScoreCAMSpec
from tests.pipeline.cam import nets, reference

TARGETS = [[3, 0], [1], [4, 2, 0]]


def with_constant_channels(model: nn.Module) -> nn.Module:
    """Make some channels of the explained layers constant: zero behind the ReLU, and one and the same value."""
    with torch.no_grad():
        if isinstance(model, nets.GapNet):
            norm = model.features[1]
            norm.weight[:3] = 0
            norm.bias[:3] = torch.tensor([-1.0, 0.5, 2.0])
        else:
            assert isinstance(model, nets.InplaceNet)
            model.conv2.weight[:2] = 0
            model.conv2.bias[:2] = torch.tensor([-1.0, 0.5])
    return model


def expected(
    model: nn.Module, layer: TargetLayer, image: torch.Tensor, target: int, **switches: object
) -> torch.Tensor:
    activation = reference.signals(model, layer.name, layer.to_grid, image, target)[0]
    # Constant in float32 is what counts; float64's rounding may tell equal values apart.
    activation[activation.amax((1, 2)) - activation.amin((1, 2)) < 1e-12] = activation.mean((1, 2), keepdim=True)[
        activation.amax((1, 2)) - activation.amin((1, 2)) < 1e-12
    ]
    return reference.score_cam(model, activation, image, target, **switches)


@pytest.mark.parametrize("kind", ["gap", "inplace"])
@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_conventions_equal_their_formula(convention: str, kind: str) -> None:
    model = with_constant_channels(nets.make(kind))
    images = nets.images(3)
    layer = nets.target_layers(model)[1]
    result = Attributor(model, [{"name": "score_cam", "convention": convention}], layers=[layer], mask_batch=7)(
        images, TARGETS
    )
    for row, (image, target) in enumerate([(i, t) for i, classes in enumerate(TARGETS) for t in classes]):
        reference_map = expected(model, layer, images[image], target, **CONVENTIONS[convention]._asdict())
        assert nets.difference(result["score_cam"][row], reference_map) < 5e-5
        assert torch.allclose(result["score_cam"][row].double(), reference_map, rtol=1e-3, atol=1e-5)


def test_token_grids_and_sigmoid_probabilities() -> None:
    model = nets.make("token")
    images = nets.images(2)
    layer = nets.target_layers(model)[0]
    result = Attributor(model, ["score_cam"], layers=[layer], activation="sigmoid")(images, [1, 2])
    for image in range(2):
        reference_map = expected(
            model, layer, images[image], 1 + image, **CONVENTIONS["authors"]._asdict(), activation_of_logits="sigmoid"
        )
        assert nets.difference(result["score_cam"][image], reference_map) < 5e-5


def test_switches_override_the_convention_one_by_one() -> None:
    model = with_constant_channels(nets.make("gap"))
    images = nets.images(1)
    layer = nets.target_layers(model)[1]
    changes: list[dict[str, object]] = [
        {"score": "logit"},
        {"weight": "softmax"},
        {"normalise": "before"},
        {"align_corners": True},
    ]
    specs = [{"name": "score_cam", "label": f"v{number}", **change} for number, change in enumerate(changes)]
    attributor = Attributor(model, ["score_cam", *specs], layers=[layer])
    result = attributor(images, [1])
    for number, change in enumerate(changes):
        switches = CONVENTIONS["authors"]._asdict() | change
        reference_map = expected(model, layer, images[0], 1, **switches)
        assert nets.difference(result[f"v{number}"][0], reference_map) < 5e-5
        assert not torch.equal(result[f"v{number}"], result["score_cam"])
        recorded = attributor.method_infos()[number + 1].parameters
        assert {name: recorded[name] for name in switches} == switches


class Counting(nn.Module):
    """Counts the images that run in batches of the mask batch's size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return self.model(images)


def masked_forwards(methods: list[str | dict[str, object]], targets: list[list[int]]) -> int:
    """Return the number of forwards in chunks of 4 masked images."""
    model = with_constant_channels(nets.make("gap"))
    counting = Counting(model)
    Attributor(counting, methods, layers=nets.target_layers(model)[1:], mask_batch=4)(nets.images(3), targets)
    assert set(counting.batches[1:]) <= {4}
    return len(counting.batches) - 1


def masks_per_image() -> list[int]:
    model = with_constant_channels(nets.make("gap"))
    with torch.no_grad():
        activations = model.features(model.stem(nets.images(3)))
    counts = []
    for activation in activations.numpy():
        low, high = activation.min((1, 2), keepdims=True), activation.max((1, 2), keepdims=True)
        alive = (low < high).flatten()
        grids = ((activation - low)[alive] / (high - low)[alive]).reshape(alive.sum(), -1)
        counts.append(len({grid.tobytes() for grid in grids}))
    return counts


def chunks(masks: int) -> int:
    return -(-masks // 4)


def test_targets_and_instances_share_masked_forwards() -> None:
    masks = sum(masks_per_image())
    assert 24 < masks <= 39  # 16 channels, of which 3 at least are constant
    assert masked_forwards(["score_cam"], [[0], [0], [0]]) == chunks(masks)
    assert masked_forwards(["score_cam"], [[0, 1, 2, 3, 4]] * 3) == chunks(masks)
    other_score = {"name": "score_cam", "label": "other", "score": "logit"}
    assert masked_forwards(["score_cam", other_score], [[0], [0], [0]]) == chunks(masks)
    # With softmax weights the null mask is one more, for all images together.
    softmax = {"name": "score_cam", "convention": "paper"}
    assert masked_forwards([softmax, "grad_cam"], [[0], [1], [0]]) == chunks(masks + 1)
    # Another normalisation makes other masks, and they fill chunks together.
    before = {"name": "score_cam", "label": "before", "normalise": "before"}
    assert masked_forwards(["score_cam", before], [[0], [0], [0]]) == chunks(2 * masks)


def test_images_without_targets_cost_nothing() -> None:
    assert masked_forwards(["score_cam"], [[], [2], []]) == chunks(masks_per_image()[1])


def test_layers_are_fused_across_the_stream() -> None:
    model = nets.make("gap")
    images = nets.images(3)
    layers = nets.target_layers(model)
    specs = [{"name": "score_cam", "label": "fused", "fuse": "mean"}, "score_cam"]
    result = Attributor(model, specs, layers=layers, mask_batch=5)(images, TARGETS)
    assert list(result.maps["fused"]) == ["stem+features"]
    for row in range(6):
        parts = [result["score_cam", layer.name][row].double() for layer in layers]
        assert nets.difference(result["fused"][row], reference.fused(parts, "mean", 1)) < 1e-6


def test_a_convention_without_constant_channels_agrees_with_the_one_that_skips_them() -> None:
    # All channels constant: nothing is explained, and no mask is left to run.
    model = nets.make("gap")
    with torch.no_grad():
        model.features[1].weight.zero_()
        model.features[1].bias.fill_(0.5)
    methods = ["score_cam", {"name": "score_cam", "label": "paper", "convention": "paper"}]
    result = Attributor(model, methods, layers=nets.target_layers(model)[1:])(nets.images(2), [0, 1])
    assert torch.equal(result["score_cam"], torch.zeros(2, 5, 6))
    # In the softmax all channels are the null mask: weights 1/16 each.
    assert torch.allclose(result["paper"], torch.full((2, 5, 6), 0.5))


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_a_channel_that_is_not_finite_makes_the_whole_map_so(convention: str) -> None:
    activation = torch.rand(3, 2, 2)
    activation[1, 0, 0] = torch.inf
    no = torch.zeros(3, dtype=torch.bool)
    scores = ChannelScores(torch.ones(2, 3), torch.ones(2, 3), no, torch.tensor([False, True, False]))
    method = ScoreCAM(ScoreCAMSpec(name="score_cam", convention=convention))
    assert method.maps(activation, scores).isnan().all()
    activation[1] = 1
    fine = ChannelScores(scores.logit, scores.probability, no, no)
    assert method.maps(activation, fine).isfinite().all()
