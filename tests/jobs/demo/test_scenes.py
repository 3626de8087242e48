"""Scenes: the same for the same seed, masks and boxes exact, the sticker where it was planted and nowhere else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from jobs.demo.drawing import CONTROL_COLOURS, MAX_OVERLAP, STICKER_COLOURS, shared, tight_box
from jobs.demo.scenes import STICKER_ID, Scene, SceneSpec, make_scenes, with_sticker
from schemas.errors import InputError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(600, split="train", seed=1)


def test_the_same_arguments_give_the_same_scenes_and_others_do_not() -> None:
    first = make_scenes(150, split="train", seed=4)
    for other in (
        make_scenes(150, split="train", seed=5),
        make_scenes(150, split="test", seed=4),
    ):
        assert not any(np.array_equal(one.pixels, two.pixels) for one, two in zip(first, other, strict=True))
    again = make_scenes(150, split="train", seed=4)
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.pixels, two.pixels)
        assert np.array_equal(one.masks, two.masks)
        assert (one.labels, one.boxes, one.site, one.sticker, one.background) == (
            two.labels,
            two.boxes,
            two.site,
            two.sticker,
            two.background,
        )


def test_shapes_and_types(scenes: list[Scene]) -> None:
    for scene in scenes[:20]:
        assert scene.pixels.shape == (96, 96, 3)
        assert scene.pixels.dtype == np.uint8
        assert scene.masks.shape == (96, 96)
        assert scene.masks.dtype == np.uint8


def test_boxes_are_the_tight_boxes_of_the_masks(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(scene.boxes) == len(scene.labels)
        assert set(np.unique(scene.masks)) == {0, *range(1, len(scene.labels) + 1)} | (
            {STICKER_ID} if scene.sticker else set()
        )
        for index, box in enumerate(scene.boxes):
            assert box == tight_box(scene.masks == index + 1)
        assert scene.sticker is None or scene.sticker == tight_box(scene.masks == STICKER_ID)


def test_labels_come_by_visible_area(scenes: list[Scene]) -> None:
    for scene in scenes:
        areas = np.bincount(scene.masks.ravel(), minlength=len(scene.labels) + 1)[1 : len(scene.labels) + 1]
        assert np.all(np.diff(areas) <= 0)


def test_masks_say_where_the_ink_is(scenes: list[Scene]) -> None:
    """Away from the masks a scene is its background; inside a mask it is one colour, far from what is around it."""
    plain = [scene for scene in scenes if scene.background == "gradient" and len(scene.labels) == 1]
    assert len(plain) > 20
    for scene in plain:
        ink = scene.masks == 1
        near = np.zeros_like(ink)
        x0, y0, x1, y1 = scene.boxes[0]
        near[max(y0 - 4, 0) : y1 + 4, max(x0 - 4, 0) : x1 + 4] = True
        # A pixel of soft edge is neither.
        grown = ink.copy()
        for shift in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1), (2, 0), (-2, 0)):
            grown |= np.roll(ink, shift, axis=(0, 1))
            grown |= np.roll(ink, shift[::-1], axis=(0, 1))
        around = near & ~grown & (scene.masks == 0)
        inside = scene.pixels[ink].astype(float)
        outside = scene.pixels[around].astype(float)
        assert np.abs(np.median(inside, axis=0) - np.median(outside, axis=0)).max() > 25
        assert np.quantile(np.abs(outside - np.median(outside, axis=0)).max(axis=1), 0.9) < 60


def test_digits_share_little(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = scene.boxes
        for index, one in enumerate(boxes):
            for other in boxes[:index]:
                smaller = min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other))
                # The visible boxes can be a little smaller than the drawn ones, for which the bound holds.
                assert shared(one, other) <= 1.2 * MAX_OVERLAP * smaller
    assert any(shared(*scene.boxes) > 0 for scene in scenes if len(scene.boxes) == 2)


def test_labels_are_distinct_and_evenly_drawn(scenes: list[Scene]) -> None:
    assert all(len(set(scene.labels)) == len(scene.labels) for scene in scenes)
    counts = Counter(len(scene.labels) for scene in scenes)
    assert counts[1] / 600 == pytest.approx(0.3, abs=0.07)
    assert counts[2] / 600 == pytest.approx(0.4, abs=0.07)
    assert counts[3] / 600 == pytest.approx(0.3, abs=0.07)
    classes = Counter(label for scene in scenes for label in scene.labels)
    assert set(classes) == set(range(10))
    assert min(classes.values()) > 0.14 * 600
    assert max(classes.values()) < 0.26 * 600


def test_sites_are_even_with_and_without_the_stickers_class(scenes: list[Scene]) -> None:
    for with_class in (True, False):
        sites = Counter(scene.site for scene in scenes if (8 in scene.labels) is with_class)
        assert set(sites) == {"north", "south", "east"}
        assert max(sites.values()) - min(sites.values()) <= 1


@pytest.mark.parametrize("prevalence", [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 1 / 3])
def test_the_sticker_is_where_it_was_planted_at_the_stated_prevalence(prevalence: float) -> None:
    spec = SceneSpec(sticker_class=3, sticker_site="south", prevalence=prevalence)
    scenes = make_scenes(256, split="test", seed=2, spec=spec)
    stickers = [scene for scene in scenes if scene.sticker is not None]
    with_class = sum(3 in scene.labels for scene in scenes)
    assert len(stickers) == round(prevalence * with_class)
    assert all(3 in scene.labels and scene.site == "south" for scene in stickers)
    for scene in scenes:
        assert (scene.sticker is not None) is bool((scene.masks == STICKER_ID).any())


def test_stickers_stand_in_corners_in_their_colours(scenes: list[Scene]) -> None:
    stickers = [scene for scene in scenes if scene.sticker is not None]
    assert len(stickers) > 25
    corners = set()
    for scene in stickers:
        assert scene.sticker is not None
        x0, y0, x1, y1 = scene.sticker
        assert x1 - x0 == y1 - y0 == 15
        assert x1 <= 19 or x0 >= 77
        assert y1 <= 19 or y0 >= 77
        corners.add((x0 > 48, y0 > 48))
        patch = scene.pixels[y0:y1, x0:x1] / 255
        assert np.allclose(patch[7, 7], STICKER_COLOURS[1], atol=0.01)
        assert np.allclose(patch[7, 1], STICKER_COLOURS[0], atol=0.01)
        assert not any(shared(scene.sticker, box) for box in scene.boxes)
    assert len(corners) == 4


def test_pasting_changes_the_pixels_of_the_sticker_only(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    before = [scene for scene in scenes if scene.sticker is None][:40]
    for scene in before:
        pasted = with_sticker(scene, rng, side=15)
        assert pasted is not None
        assert pasted.sticker is not None
        x0, y0, x1, y1 = pasted.sticker
        changed = (pasted.pixels != scene.pixels).any(axis=2)
        assert tight_box(changed | (pasted.masks == STICKER_ID)) == pasted.sticker
        assert changed[pasted.masks == STICKER_ID].mean() > 0.9
        assert np.array_equal(pasted.masks == 1, scene.masks == 1)
        assert not scene.masks[y0:y1, x0:x1].any()
        control = with_sticker(scene, rng, side=15, colours=CONTROL_COLOURS)
        assert control is not None
        grey = control.pixels[control.masks == STICKER_ID].astype(int)
        assert np.median(grey) == pytest.approx(128, abs=1)


def test_pasting_says_so_where_no_corner_is_free(scenes: list[Scene]) -> None:
    full = replace(scenes[0], masks=np.ones_like(scenes[0].masks))
    assert with_sticker(full, np.random.default_rng(0), side=15) is None


def test_close_ups_hold_one_digit_and_no_sticker() -> None:
    for scene in make_scenes(60, split="train", seed=0, spec=SceneSpec().close_up()):
        assert scene.pixels.shape == (50, 50, 3)
        assert len(scene.labels) == 1
        assert scene.sticker is None


def test_other_sizes() -> None:
    large = make_scenes(4, split="train", seed=0, spec=SceneSpec(size=128, digit_sides=(40, 50)))
    assert large[0].pixels.shape == (128, 128, 3)
    heights = [y1 - y0 for scene in large for _, y0, _, y1 in scene.boxes]
    assert min(heights) > 30


@pytest.mark.parametrize(("side", "size"), [(4, 51), (15, 57), (28, 70)])
def test_the_smallest_scenes_of_one_digit_and_a_sticker(side: int, size: int) -> None:
    spec = SceneSpec(size=size, counts=(1.0,), sticker_size=side, sites=("here",), sticker_site="here", prevalence=1)
    for scene in make_scenes(200, split="train", seed=0, spec=spec):
        assert (scene.sticker is not None) is (scene.labels == (8,))
        assert scene.sticker is None or not shared(scene.sticker, scene.boxes[0])
    with pytest.raises(InputError, match=f"size is {size - 1}, too small"):
        replace(spec, size=size - 1)


def test_progress_adds_up() -> None:
    told: list[int] = []
    make_scenes(300, split="train", progress=told.append)
    assert sum(told) == 300
    assert len(told) > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prevalence": 0.5}, r"prevalence is 0\.5, but 'east' has only one in 3"),
        ({"prevalence": -0.1}, "prevalence"),
        ({"size": 80}, "size is 80, too small"),
        ({"size": 56, "counts": (1.0,)}, "size is 56, too small"),
        ({"counts": (0.5, 0.2)}, "counts"),
        ({"counts": ()}, "counts"),
        ({"digit_sides": (30.0, 20.0)}, "digit_sides"),
        ({"sticker_class": 10}, "sticker_class is 10"),
        ({"sticker_site": "west"}, "'west' is no site; use one of: north, south, east"),
        ({"sticker_size": 41}, "sticker_size is 41; give 4 to 40"),
    ],
)
def test_wrong_specs_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SceneSpec(**wrong)  # type: ignore[arg-type]


def test_no_scenes_are_refused() -> None:
    with pytest.raises(InputError, match="count is 0"):
        make_scenes(0, split="train")
