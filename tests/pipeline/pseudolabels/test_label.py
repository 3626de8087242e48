"""Labels from maps, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.pseudolabels.classes import LabelClasses, resolve_classes
from pipeline.pseudolabels.label import class_maps, image_labels, refined_by_pamr, stacks
from pipeline.pseudolabels.pamr import PixelAffinity
from schemas.errors import InputError
from schemas.pseudolabels import (
    Background,
    BandBackground,
    ConstantBackground,
    LabelClass,
    PamrRefinement,
    PowerBackground,
)

CLASSES = resolve_classes(
    [LabelClass(id=9, name="pet", classes=[0, 2]), LabelClass(id=4, name="car", classes=["c"])],
    4,
    ["a", "b", "c", "d"],
    "none",
)


def labelled(maps: list[list[float]], rule: Background, size: tuple[int, int] = (1, 4)) -> np.ndarray:
    found = torch.tensor(maps)[:, None]
    owners = class_maps(torch.ones(2, 1, 1), [2, 3], ["label"] * 2, [1.0, 1.0], BOTH).classes
    return image_labels(0, size, owners, stacks(found, rule), BOTH, soft=False).index


BOTH = resolve_classes(
    [LabelClass(id=2, name="x", classes=[2]), LabelClass(id=3, name="y", classes=[3])], 4, None, "none"
)


def test_a_class_of_several_of_the_models_has_the_largest_map_and_each_is_divided_by_its_maximum() -> None:
    sums = torch.tensor([[[1.0, 8.0, 0.0]], [[5.0, 0.0, 0.0]], [[0.0, 2.0, 4.0]], [[7.0, 7.0, 7.0]]])
    found = class_maps(sums, [0, 1, 2, 3], ["top_k", "label", "label", "top_k"], [0.1, 0.2, 0.6, 0.1], CLASSES)
    assert [(each.label_id, each.label_name, each.kind) for each in found.classes] == [
        (4, "car", "label"), (9, "pet", "label"),
    ]  # fmt: skip
    assert [each.probability for each in found.classes] == [0.6, 0.6]
    expected = torch.tensor([[[0, 0.5, 1]], [[1 / 8, 1, 4 / 8]]])  # classes b and d are in none
    assert torch.allclose(found.maps, expected, atol=1e-5)
    assert float(found.maps.max()) < 1  # by maximum + 1e-5


def test_maps_of_zeros_or_of_no_numbers_claim_nothing() -> None:
    sums = torch.tensor([[[0.0, 0.0]], [[1.0, float("nan")]], [[float("inf"), 1.0]]])
    for row in sums:
        assert not class_maps(row[None], [2], ["label"], [0.5], BOTH).maps.any()


def test_rules() -> None:
    x, y = [0.10, 0.40, 0.9, 0.2], [0.0, 0.41, 0.2, 0.2]
    assert labelled([x, y], ConstantBackground(threshold=0.15)).tolist() == [[0, 3, 2, 2]]
    assert labelled([x, y], ConstantBackground(threshold=0.2)).tolist() == [[0, 3, 2, 0]]  # background wins ties
    # (1 - max)^2 = .81, .348, .01, .64
    assert labelled([x, y], PowerBackground(power=2)).tolist() == [[0, 3, 2, 0]]
    assert labelled([x, y], BandBackground(foreground=0.3, background=0.15)).tolist() == [[0, 3, 2, 255]]


def test_larger_images_get_bilinear_scores() -> None:
    index = labelled([[0.0, 1.0], [0.0, 0.0]], ConstantBackground(threshold=0.5), size=(2, 8))
    # Centres at -.375, -.125, .125, ..., of which those at .625 and beyond are above one half.
    assert index.tolist() == [[0, 0, 0, 0, 2, 2, 2, 2]] * 2


@pytest.mark.parametrize("rule", [ConstantBackground(threshold=0.3), BandBackground(), PowerBackground()])
def test_what_pamr_leaves_out_is_what_it_would_not_change(rule: Background) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 12, 14), dtype=torch.uint8, generator=generator) for _ in range(3)]
    maps = [torch.rand(count, 12, 14, generator=generator) for count in (1, 2, 0)]
    settings = PamrRefinement(dilations=(1, 3), iterations=4)
    found = refined_by_pamr(images, [stacks(each, rule) for each in maps], settings)
    for image, each, refined in zip(images, maps, found, strict=True):
        for before, after in zip(stacks(each, rule), refined, strict=True):
            whole = PixelAffinity(image[None], settings.dilations)(before.scores()[None], 4)[0]
            if len(each):
                assert torch.allclose(after.scores(), whole, atol=2e-6)
            assert after.maps.shape == each.shape


def test_classes_by_default_and_wrong_ones() -> None:
    plain = resolve_classes(None, 300, None, "none")
    assert (plain.classes[0].label_id, plain.classes[0].name) == (1, "class 0")
    assert plain.dtype == np.uint16 and plain.ignore == 65535
    assert isinstance(CLASSES, LabelClasses) and CLASSES.dtype == np.uint8 and CLASSES.ignore == 255
    with pytest.raises(InputError, match="names class 'a' of the model twice"):
        resolve_classes([LabelClass(id=1, name="x", classes=[0, "a"])], 2, ["a", "b"], "none")
    with pytest.raises(InputError, match="'x': the model has no class 7"):
        resolve_classes([LabelClass(id=1, name="x", classes=[7])], 2, ["a", "b"], "none")
