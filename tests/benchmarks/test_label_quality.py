"""The parts of the benchmark of label quality that can be told without an hour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import ResNet18_Weights

from benchmarks.coco_imagenet import groups
from benchmarks.label_baselines import brightness, centre, otsu, whole
from benchmarks.label_intervals import ImageCounts, difference, interval
from benchmarks.label_quality import miou
from benchmarks.label_rows import Rows, table
from benchmarks.label_sets import scene_masks
from benchmarks.small_unet import fit_unet, segment
from jobs.demo.scenes import STICKER_ID, make_scenes
from pipeline.pseudolabels.confusion import Confusion, class_results, totals
from schemas.errors import InputError

ROW = "scenes|cam|one scale"


def test_classes_of_coco_are_found_among_those_of_imagenet() -> None:
    names = ResNet18_Weights.DEFAULT.meta["categories"]
    found = groups(names)
    assert (len(found["dog"]), len(found["bird"]), found["zebra"], found["cat"]) == (
        118,
        59,
        [340],
        [281, 282, 283, 284, 285],
    )
    used = [index for indices in found.values() for index in indices]
    assert len(set(used)) == len(used)  # no class is part of two
    with pytest.raises(InputError, match="no ImageNet class"):
        groups(names[:500])


def test_baselines() -> None:
    pixels = np.full((8, 12, 3), 40, np.uint8)
    pixels[2:5, 3:6] = 240
    assert whole(pixels, 3).tolist() == np.full((8, 12), 3).tolist()
    box = centre(pixels, 3)
    assert box[2:6, 3:9].min() == 3 and (box > 0).sum() == 24
    found = brightness(pixels, 7)
    assert (found[2:5, 3:6] == 7).all() and (found > 0).sum() == 9
    assert 0.1 < otsu(np.array([0.0] * 50 + [0.1] * 10 + [1.0] * 20 + [0.9] * 5)) < 0.9


def test_masks_of_scenes_are_classes_without_the_sticker() -> None:
    for scene in make_scenes(12, split="test", seed=1):
        found = scene_masks(scene)
        for position, label in enumerate(scene.labels):
            np.testing.assert_array_equal(found == label + 1, scene.masks == position + 1)
        assert not found[scene.masks == STICKER_ID].any()


def test_small_network_learns_where_it_is_bright() -> None:
    images = torch.randint(0, 60, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks = torch.zeros((40, 32, 32), dtype=torch.uint8)
    for number in range(40):
        row, column = 2 * (number % 8), 2 * (3 * number % 8)
        images[number, :, row : row + 14, column : column + 14] += 150
        masks[number, row : row + 14, column : column + 14] = 1
    labels = masks.clone()
    labels[:, 0] = 255  # ignored
    model = fit_unet(images[:32], labels[:32], 2, epochs=15, batch=8)
    assert miou(masks[32:], segment(model, images[32:])) > 0.8
    assert miou(masks, masks) == 1.0


def test_results_are_kept_and_told_with_what_each_part_brings(tmp_path: Path) -> None:
    rows = Rows(tmp_path)
    seeds, refined = f"{ROW}|none", f"{ROW}|pamr"
    found = {"images": 4, "seconds_per_image": 0.5, "plain": 0.25, "threshold": 0.4, "interval": [0.4, 0.6]}
    rows.add(seeds, chosen=0.25, **found)
    rows.add(refined, chosen=0.5, **found)
    for key, hits in ((seeds, 25), (refined, 50)):
        ImageCounts.of([{(1, 1): hits, (1, 0): 100 - hits}] * 4).save(rows.counts(key))
    rows.add("scenes|centre box", miou=0.125)
    for seed, network in enumerate((0.7, 0.9)):
        rows.add(f"train|true masks|{seed}", labels=1.0, network=network, seconds=3.0)
    rows.add("train|cam|pamr|0", labels=0.5, network=0.6, seconds=3.0)
    text = "\n".join(table(Rows(tmp_path)))
    assert "| cam | one scale | pamr | 0.250 | 0.40 | 0.500 | 0.400 to 0.600 | 0.50 |" in text
    # Of the background nothing is right, of the class a quarter or half, in every image.
    assert "| PAMR | cam, one scale | +0.250 | +0.125 to +0.125 |" in text
    assert "| *centre box* | | | 0.125 |" in text
    assert "| true masks | 1.000 | 2 | 0.800 (0.700 to 0.900) | 100% |" in text
    assert "| cam pamr | 0.500 | 1 | 0.600 (0.600 to 0.600) | 75% |" in text


def test_intervals_are_those_of_the_matrix_over_resampled_images() -> None:
    generator = np.random.default_rng(3)
    images = [
        {(true, found): int(generator.integers(1, 90)) for true in (0, 2) for found in (0, 2, 3)} for _ in range(12)
    ]
    counts = ImageCounts.of(images)
    times = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=2000)
    for number in (0, 7, 1999):
        confusion = Confusion()
        for image, repeated in zip(images, times[number], strict=True):
            for _ in range(repeated):
                confusion.merge(Confusion(dict(image)))
        assert counts.resampled()[number] == pytest.approx(totals(class_results(confusion.pairs, str)).miou)
    low, high = interval(counts)
    assert low < np.median(counts.resampled()) < high
    assert difference(counts, counts) == (0.0, 0.0)
    with pytest.raises(ValueError, match="not of the same images"):
        difference(counts, ImageCounts.of(images[::-1]))
