"""Noise, and how samples are packed into batches."""

from __future__ import annotations

import pytest
import torch

from pipeline.attributor import Attributor
from pipeline.cam import noise
from pipeline.cam.noise import noise_seed, noised
from tests.pipeline.cam import nets


def test_noise_is_relative_to_the_range_of_each_image() -> None:
    image = nets.images(1, size=(100, 100))[0]
    for scale in (1.0, 5.0):
        drawn = noised(image * scale, 0.15, 3) - image * scale
        sigma = 0.15 * scale * float(image.max() - image.min())
        assert float(drawn.std()) == pytest.approx(sigma, rel=0.02)
        assert abs(float(drawn.mean())) < 0.02 * sigma
    assert torch.equal(noised(image, 0.15, 3), noised(image, 0.15, 3))


def test_seeds_differ_in_every_part() -> None:
    # CPU generators use the low 32 bits only.
    seeds = {
        noise_seed(seed, image, sample) & 0xFFFFFFFF
        for seed in (0, 1, 2**40)
        for image in (0, 1, 2, 2**32, 2**63)
        for sample in range(10)
    }
    assert len(seeds) == 3 * 5 * 10
    assert 0 <= noise_seed(2**70, 2**70, 0) < 2**64


def attribute(batch_size: int | None, count: int = 3, **spec: object) -> torch.Tensor:
    model = nets.make("inplace")
    attributor = Attributor(
        model,
        [{"name": "smooth_grad_cam_pp", "samples": 5, **spec}],
        layers=nets.target_layers(model)[1:],
        batch_size=batch_size,
    )
    targets = [[1, 2, 3], [0], [4, 1]][:count]
    return attributor(nets.images(3)[:count], targets, image_seeds=[5, 6, 7][:count])["smooth_grad_cam_pp"]


def test_packing_samples_changes_nothing() -> None:
    # 15 copies in batches of 4 and 8: an image occurs up to three times in a batch, in the order of its samples.
    expected = attribute(None)
    for batch_size in (4, 8, 16):
        assert nets.difference(attribute(batch_size), expected) < 1e-5
    # Alone or in company, the same bits.
    assert torch.equal(attribute(8, count=1), attribute(8)[:3])
    assert torch.equal(attribute(8, count=2), attribute(8)[:4])


def test_many_targets_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = attribute(8)
    monkeypatch.setattr(noise, "_ACCUMULATOR_BYTES", 1)
    assert torch.equal(attribute(8), expected)


def test_few_images_cost_few_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    model = nets.make("inplace")
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    attributor = Attributor(
        model,
        [
            {"name": "smooth_grad_cam_pp", "samples": 8},
            {"name": "smooth_grad_cam_pp", "label": "first", "samples": 8, "numerator": "first"},
        ],
        layers=nets.target_layers(model)[1:],
        batch_size=8,
    )
    attributor(nets.images(1), [[0, 1, 2]])
    # The clean pass, and one batch of all 8 samples, for both numerators and all targets.
    assert batches == [8, 8]


def test_no_noised_forward_where_the_gradient_is_known() -> None:
    batches: list[int] = []
    model = nets.make("gap")
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    layers = nets.target_layers(model)[1:]
    Attributor(model, ["smooth_grad_cam_pp"], layers=layers, head=model.head())(nets.images(2), [0, 1])
    assert batches == [2]


def test_samples_and_level_matter() -> None:
    usual = attribute(8)
    assert not torch.equal(attribute(8, samples=4), usual)
    assert not torch.equal(attribute(8, noise_level=0.3), usual)
    assert not torch.equal(attribute(8, numerator="first"), usual)
