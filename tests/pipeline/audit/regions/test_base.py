from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.audit.regions.base import (
    Instance,
    InstanceSource,
    Region,
    as_box,
    class_keys,
    factors,
    plain_name,
    scaled_mask,
    stems,
)
from schemas.errors import InputError
from schemas.view import View

VIEW = View(10.0, -4.0, 58.0, 28.0)


def points(view: View, pixels: int) -> list[tuple[int, int, float, float]]:
    """Row, column and centre of each part of the view."""
    return [
        (i, j, view.x0 + (j + 0.5) * (view.x1 - view.x0) / pixels, view.y0 + (i + 0.5) * (view.y1 - view.y0) / pixels)
        for i in range(pixels)
        for j in range(pixels)
    ]


def inside(corners: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule by a ray to the left."""
    odd = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 > y) != (y1 > y) and x > x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def test_boxes_are_what_is_inside_their_edges() -> None:
    boxes = ((12.0, 0.0, 30.0, 9.5), (25.0, 5.0, 90.0, 20.0))
    found = Region(boxes=boxes).in_view(VIEW, 32)
    for i, j, x, y in points(VIEW, 32):
        assert found[i, j] == any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
    assert 0 < found.sum() < found.size


@pytest.mark.parametrize(
    "corners",
    [
        [(12.3, 1.1), (50.2, 3.7), (33.3, 26.9)],
        [(12.0, 0.0), (50.0, 0.0), (50.0, 20.0), (30.0, 7.0), (12.0, 20.0)],
        [(15.1, 2.2), (45.3, 22.2), (45.3, 2.2), (15.1, 22.2)],  # crosses itself
        [(-100.0, -50.0), (200.5, 3.0), (20.0, 30.0)],  # reaches beyond the view
    ],
)
def test_polygons_are_filled_by_centres(corners: list[tuple[float, float]]) -> None:
    found = Region(polygons=(np.array(corners, np.float32),)).in_view(VIEW, 40)
    rounded = [(float(np.float32(x)), float(np.float32(y))) for x, y in corners]
    for i, j, x, y in points(VIEW, 40):
        assert found[i, j] == inside(rounded, x, y), (i, j)
    assert 0 < found.sum() < found.size


def test_a_polygon_of_a_box_is_the_box() -> None:
    corners = np.array([(16, 0), (40, 0), (40, 16), (16, 16)], np.float32)
    box = Region(boxes=((16.0, 0.0, 40.0, 16.0),))
    assert (Region(polygons=(corners,)).in_view(VIEW) == box.in_view(VIEW)).all()


def test_masks_are_looked_up_at_centres_and_end_with_the_image() -> None:
    mask = np.random.default_rng(0).random((20, 50)) < 0.5
    found = Region(mask=mask).in_view(VIEW, 48)
    for i, j, x, y in points(VIEW, 48):
        there = 0 <= y < 20 and 0 <= x < 50
        assert found[i, j] == (there and bool(mask[int(y), int(x)]))


def test_a_region_is_the_union_of_its_parts() -> None:
    mask = np.zeros((28, 58), np.bool_)
    mask[:5] = True
    corners = np.array([(12, 20), (20, 20), (20, 27)], np.float32)
    parts = [Region(boxes=((40.0, 10.0, 50.0, 20.0),)), Region(mask=mask), Region(polygons=(corners,))]
    whole = Region(boxes=parts[0].boxes, mask=mask, polygons=(corners,))
    assert (whole.in_view(VIEW) == np.logical_or.reduce([part.in_view(VIEW) for part in parts])).all()


def test_outside_of_the_view_is_nothing() -> None:
    assert not Region(boxes=((70.0, 0.0, 90.0, 9.0),)).in_view(VIEW).any()


@pytest.mark.parametrize(
    ("image_id", "expected"),
    [
        ("shard-000/n01_7", ["n01_7", "shard-000/n01_7"]),
        ("cats/a.b.JPEG", ["a.b", "cats/a.b"]),
        ("a.v2", ["a.v2"]),
        ("../../etc/passwd", ["passwd"]),
        ("/etc/passwd", ["passwd"]),
    ],
)
def test_names_of_files_follow_from_ids(image_id: str, expected: list[str]) -> None:
    assert stems(image_id) == expected


def test_classes_are_known_by_name_first_synonym_and_index() -> None:
    keys = class_keys(7, "Great_White Shark, white shark")
    assert {plain_name("great  white shark"), "7"} <= keys
    assert "white shark" not in keys


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2, 3], "four numbers"),
        ("1234", "four numbers"),
        ([1, 2, 3, "4"], "no number"),
        ([1, 2, 3, float("nan")], "no place"),
        ([1, 2, 3, 10**400], "no place"),
        ([30, 40, 10, 20], "width, height"),
    ],
)
def test_what_is_no_box_is_told(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_box(values)


def test_annotations_of_a_scaled_copy_are_scaled() -> None:
    image = {"image_id": "a/1", "width": 250, "height": 188}
    assert factors((500, 375), image, "--boxes", "'x.xml'") == (0.5, 188 / 375)
    assert factors(None, image, "--boxes", "'x.xml'") == (1, 1)
    mask = np.zeros((375, 500), np.bool_)
    mask[:100, :200] = True
    scaled = scaled_mask(mask, image, "--masks", "'x.png'")
    assert scaled.shape == (188, 250)
    assert scaled[:50, :100].all()
    assert scaled.sum() == 50 * 100


def test_annotations_of_a_turned_picture_are_refused() -> None:
    image = {"image_id": "a/1", "width": 375, "height": 500}
    with pytest.raises(InputError, match=r"--boxes: 'x.xml' is about a picture of 500 x 375 .* 'a/1' has 375 x 500"):
        factors((500, 375), image, "--boxes", "'x.xml'")


class Fixed(InstanceSource):
    def __init__(self, *found: Instance) -> None:
        self.found = found

    def instances(self, image: Any) -> Any:
        return self.found

    def about(self) -> str:
        return "fixed"


CAT = Instance("cat", (0.0, 0.0, 4.0, 4.0))
DOG = Instance("dog", (5.0, 5.0, 9.0, 9.0), (np.array([(5, 5), (9, 5), (9, 9)], np.float32),))
ANY = Instance(None, (2.0, 2.0, 3.0, 3.0))


def test_objects_of_the_class_and_nameless_ones_are_the_region() -> None:
    source = Fixed(CAT, DOG, ANY)
    found = source.region({}, 0, "Cat")
    assert found is not None
    assert found.boxes == (CAT.box, ANY.box)
    assert found.polygons == ()
    found = source.region({}, 1, "dog")
    assert found is not None
    # What is drawn finer is not filled by its box.
    assert found.boxes == (ANY.box,)
    assert len(found.polygons) == 1
    assert found.outlines == (DOG.box, ANY.box)


def test_an_image_without_the_class_is_unknown_unless_any_class_will_do() -> None:
    source = Fixed(CAT)
    assert source.region({}, 1, "dog") is None
    assert source.region({}, 1, None) is not None
    source.any_class = True
    assert source.region({}, 1, "dog") is not None
    assert source.names({}) == {"cat"}
