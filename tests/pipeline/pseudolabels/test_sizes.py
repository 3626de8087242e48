"""Sizes, scales and buckets."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.replica import load_replica
from pipeline.pseudolabels.buckets import Buckets
from pipeline.pseudolabels.sizes import ScaledImages, Sizes, find_sizes, in_order
from pipeline.sources.decode import DecodeError
from schemas.job import Model
from schemas.pseudolabels import PseudoLabels


def test_sizes_at_scales() -> None:
    sizes = Sizes((1.0, 0.5), 10_000, 32)
    assert sizes.base(50, 60) == (50, 60)
    assert sizes.scaled(51, 81, 0.5) == (32, 40)  # 25.5 rounds to 26, which is below the least side
    assert sizes.scaled(75, 101, 1.5) == (112, 152)
    assert sizes.base(300, 400) == (86, 115) and 86 * 115 <= 10_000
    assert sizes.base(1, 1_000_000) == (1, 10_000)
    assert sizes.base(30_000, 3) == (10_000, 1)
    assert Sizes((1.0,), 10_000, 1, fixed=(64, 48)).scaled(500, 20, 1.0) == (64, 48)
    assert in_order((0.5, 2.0, 1.0)) == (1.0, 0.5, 2.0)


def test_images_are_shown_whole_as_pillow_resizes_them() -> None:
    pixels = (np.mgrid[:40, :50].sum(0)[..., None] * [2, 1, 2] + [0, 60, 10]).astype(np.uint8)
    prepare = pickle.loads(pickle.dumps(ScaledImages(Sizes((0.5, 1.5), 10**6, 8))))
    scaled, view = pickle.loads(pickle.dumps(prepare(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))))
    assert (view.x0, view.y0, view.x1, view.y1) == (0, 0, 50, 40)
    assert scaled.size == (40, 50) and torch.equal(scaled.base, torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    # Scale 1 is shown too: targets are chosen there.
    assert [tuple(each.shape) for each in scaled.scaled] == [(3, 40, 50), (3, 20, 25), (3, 60, 75)]
    for each in scaled.scaled:
        expected = Image.fromarray(pixels).resize((each.shape[2], each.shape[1]), Image.Resampling.BICUBIC)
        difference = np.asarray(expected).astype(int) - each.permute(1, 2, 0).numpy()
        assert np.abs(difference).max() <= 1


def test_a_scale_too_large_for_memory_is_the_images_fault() -> None:
    with pytest.raises(DecodeError, match=r"would have 6000000 x 32 at a scale"):
        ScaledImages(Sizes((1.0, 2.0), 3_000_000, 32))(torch.zeros(3, 1, 3_000_000, dtype=torch.uint8))


def test_the_least_side_is_found() -> None:
    replica = load_replica(Model(name="torchvision:resnet18", weights="random"))
    found = find_sizes(PseudoLabels(scales=(0.5, 1.0)), replica)
    # At 32 pixels the last layer has one cell, which has no place.
    assert found == Sizes((1.0, 0.5), 1_000_000, 64)


def test_buckets_come_out_by_what_goes_in() -> None:
    buckets: Buckets[int] = Buckets(lambda size: 2 if size == (1, 1) else 9, 100)
    out: list[list[int]] = []
    for number, size in enumerate([(1, 1), (2, 2), (1, 1), (2, 2), (3, 3), (2, 2)]):
        out += buckets.add(size, number, 30)
    # (1, 1) was full at its second item; with the last one 120 pixels were held, and (2, 2) was the fullest.
    assert out == [[0, 2], [1, 3, 5]]
    assert list(buckets.rest()) == [[4]]
    assert list(buckets.add((5, 5), 7, 1000)) == [[7]]  # one that is larger than all that may be held
