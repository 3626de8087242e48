"""Seeds against a direct transcription of the protocol, and what must not change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.attributor import Attributor
from pipeline.cam.selection import TargetSelector
from pipeline.pseudolabels.classes import LabelClasses, Resolved
from pipeline.pseudolabels.label import class_maps, image_labels, stacks
from pipeline.pseudolabels.seeds import SeedMaker, Seeds
from pipeline.pseudolabels.sizes import Scaled, ScaledImages, Sizes, in_order
from schemas.job import Targets
from schemas.pseudolabels import ConstantBackground
from tests.pipeline.cam.nets import CLASSES, GapNet
from tests.pipeline.pseudolabels import protocol

SCALES = (1.0, 0.5, 1.5, 2.0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = LabelClasses(tuple(Resolved(each + 1, str(each), (each,)) for each in range(CLASSES)), np.dtype(np.uint8))


def network() -> GapNet:
    torch.manual_seed(1)
    return GapNet().eval()


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: smooth shapes, so that the one grey level between Pillow and PyTorch is all that differs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 3 : height * 1j, 0 : 4 : width * 1j]
    channels = [128 + 100 * np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.3, 2.5, (3, 3))]
    return np.stack(channels, 2).astype(np.uint8)


def maker(
    model: nn.Module, method: Any, targets: Targets, *, scales: tuple[float, ...] = SCALES, **given: Any
) -> SeedMaker:
    attributor = Attributor(model, methods=[method], layers=["features"], seed=3)
    settings = {"flip": True, "mean": MEAN, "std": STD, "forward_pixels": 0, "mask_pixels": 10**5} | given
    return SeedMaker(attributor, TargetSelector(targets), ScaledImages(Sizes(in_order(scales), 10**6, 8)), **settings)


def scaled(found: SeedMaker, *images: np.ndarray) -> list[Scaled]:
    return [found._scaled(torch.from_numpy(image.transpose(2, 0, 1).copy()))[0] for image in images]


def explain(found: SeedMaker, *images: np.ndarray) -> Seeds:
    return found(scaled(found, *images), range(7, 7 + len(images)), [[] for _ in images])


def normalised(seeds: Seeds, image: int) -> torch.Tensor:
    mine = (seeds.selection.image == image).nonzero().flatten()
    targets = seeds.selection.target[mine].tolist()
    return class_maps(seeds.sums[mine], targets, ["class"] * len(mine), [0.5] * len(mine), ALL).maps


@pytest.mark.parametrize("method", ["cam", "grad_cam"])
@pytest.mark.parametrize(("height", "width"), [(20, 24), (31, 18)])
def test_seeds_are_the_protocols(method: str, height: int, width: int) -> None:
    model, image = network(), picture(height, height, width)
    classes = [0, 2, 3]
    found = normalised(explain(maker(model, method, Targets(classes=classes)), image), 0).numpy()
    expected = protocol.seeds(model, "features", "fc", image, classes, SCALES)
    # Maps in [0, 1]. Pillow and PyTorch resize to within one grey level; measured: 0.0010, and 4.1e-7 without scales.
    assert np.abs(found - expected).max() < 3e-3
    one = normalised(explain(maker(model, method, Targets(classes=classes), scales=(1.0,)), image), 0).numpy()
    exact = protocol.seeds(model, "features", "fc", image, classes, (1.0,))
    assert np.abs(one - exact).max() < 3e-6
    assert np.abs(one - found).max() > 0.1, "the scales change nothing"
    labels = image_labels(
        0,
        (height, width),
        class_maps(torch.from_numpy(one), classes, ["class"] * 3, [0.0] * 3, ALL).classes,
        stacks(torch.from_numpy(one), ConstantBackground(threshold=0.6)),
        ALL,
        soft=False,
    )
    ids = np.array([0, *(each + 1 for each in classes)])[protocol.labels(exact, 0.6)]
    assert (labels.index == ids).mean() > 0.999 and len(np.unique(ids)) > 1


METHODS = ["grad_cam", "score_cam", {"name": "smooth_grad_cam_pp", "samples": 2}, "eigen_cam",
           {"name": "layer_cam", "layers": ["stem", "features"], "fuse": "max"}]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda each: each if isinstance(each, str) else each["name"])
def test_an_image_has_the_same_bits_in_any_company_and_nearly_the_same_in_larger_forwards(method: Any) -> None:
    images = [picture(seed, 22, 30) for seed in range(3)]
    targets = Targets(top_k=2)
    alone = maker(network(), method, targets)
    one_by_one = [alone(scaled(alone, image), [seed], [[]]) for seed, image in enumerate(images)]
    company = maker(network(), method, targets)
    together = company(scaled(company, *images), range(3), [[]] * 3)
    for number, each in enumerate(one_by_one):
        mine = together.selection.image == number
        assert torch.equal(each.selection.target, together.selection.target[mine])
        assert torch.equal(each.sums, together.sums[mine])
        assert torch.equal(each.logits[0], together.logits[number])
    larger = maker(network(), method, targets, forward_pixels=22 * 30 * 4)
    assert larger.images_per_forward(22, 30) == 2
    batched = larger(scaled(larger, *images), range(3), [[]] * 3)
    assert torch.equal(batched.selection.target, together.selection.target)
    largest = together.sums.amax((1, 2), keepdim=True)
    assert ((batched.sums - together.sums).abs() <= 1e-4 * largest).all()


def test_an_image_and_its_mirror_image_have_mirrored_seeds() -> None:
    image = picture(0, 20, 26)
    found = maker(network(), "grad_cam", Targets(classes=[1, 4]))
    seeds = explain(found, image, np.ascontiguousarray(image[:, ::-1]))
    own, mirrored = seeds.sums[seeds.selection.image == 0], seeds.sums[seeds.selection.image == 1]
    assert torch.allclose(own, mirrored.flip(-1), atol=1e-4 * float(own.max()))


def test_targets_come_from_scale_1_whether_it_is_summed_or_not() -> None:
    images = [picture(seed, 24, 20) for seed in range(4)]
    without = explain(maker(network(), "grad_cam", Targets(predicted=True), scales=(0.5, 2.0)), *images)
    plain = explain(maker(network(), "grad_cam", Targets(predicted=True), scales=(1.0,), flip=False), *images)
    assert torch.equal(without.logits.argmax(1), without.selection.target)
    assert torch.equal(without.selection.target, plain.selection.target)
    assert torch.allclose(without.logits, plain.logits, atol=1e-5)
    both = explain(maker(network(), "grad_cam", Targets(predicted=True), scales=(0.5, 1.0, 2.0)), *images)
    rest = explain(maker(network(), "grad_cam", Targets(predicted=True), scales=(1.0,)), *images)
    assert torch.allclose(without.sums + rest.sums, both.sums, atol=1e-4 * float(both.sums.max()))


def test_images_without_targets_have_none() -> None:
    images = [picture(seed, 20, 20) for seed in range(2)]
    found = maker(network(), "grad_cam", Targets(threshold=0.999999))
    seeds = explain(found, *images)
    assert len(seeds.sums) == len(seeds.selection.image) == 0 and len(seeds.logits) == 2
