from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.regions.coco import Coco, uncompressed, unrun
from schemas.errors import InputError
from schemas.view import View

IMAGE: dict[str, Any] = {"image_id": "shard-0/img_1", "width": 10, "height": 8}


def document(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "val/img_1.jpg", "width": 10, "height": 8}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 5, "category_id": 1, **each} for n, each in enumerate(annotations)],
    } | changes


def source(folder: Path, content: Any) -> Coco:
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return Coco(str(path))


def runs_of(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Run lengths, column by column, the first one outside."""
    found, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            found.append(0)
            value = pixel
        found[-1] += 1
    return found


def compressed(counts: list[int]) -> str:
    """COCO's text form, as the format's C code writes it."""
    text = ""
    for place, count in enumerate(counts):
        number = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            part = number & 31
            number >>= 5
            more = number != -1 if part & 16 else number != 0
            text += chr((part | 32 if more else part) + 48)
    return text


def test_boxes_are_x_y_width_height(tmp_path: Path) -> None:
    coco = source(tmp_path, document({"bbox": [1, 2, 3, 4.5]}, {"bbox": [0, 0, 2, 2], "category_id": 2}))
    found = coco.instances(IMAGE)
    assert [(each.name, each.box) for each in found or ()] == [("cat", (1, 2, 4, 6.5)), ("dog", (0, 0, 2, 2))]
    region = coco.region(IMAGE, 1, "dog")
    assert region is not None
    assert region.boxes == ((0, 0, 2, 2),)


def test_polygons_come_before_boxes(tmp_path: Path) -> None:
    drawn = [[1, 1, 5, 1, 5, 5, 1, 5], [7, 1, 9, 1, 9, 3]]
    coco = source(tmp_path, document({"bbox": [1, 1, 8, 4], "segmentation": drawn}))
    region = coco.region(IMAGE, 0, "cat")
    assert region is not None
    assert region.boxes == ()
    assert region.outlines == ((1, 1, 9, 5),)
    mask = region.in_view(View(0, 0, 10, 8), 40)
    assert mask[5:25, 4:20].all()
    assert not mask[25:].any()
    assert not mask[5:25, 20:28].any()
    assert mask.sum() == pytest.approx((16 + 2) / 80 * 1600, abs=10)


@pytest.mark.parametrize("form", ["numbers", "text"])
def test_run_lengths_are_masks(tmp_path: Path, form: str) -> None:
    mask = np.random.default_rng(0).random((8, 10)) < 0.5
    counts = runs_of(mask)
    drawn = {"size": [8, 10], "counts": counts if form == "numbers" else compressed(counts)}
    region = source(tmp_path, document({"bbox": [0, 0, 10, 8], "segmentation": drawn})).region(IMAGE, 0, "cat")
    assert region is not None
    assert region.mask is not None
    assert (region.mask == mask).all()
    assert region.boxes == ()


def test_the_text_form_of_long_runs() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3_000_000, 200).tolist()
    assert uncompressed(compressed(counts)) == counts


def test_runs_fill_columns() -> None:
    assert unrun(np.array([1, 2, 3]), (2, 3)).tolist() == [[False, True, False], [True, False, False]]


def test_pictures_of_another_size_are_scaled(tmp_path: Path) -> None:
    content = document({"bbox": [2, 2, 4, 4]}, {"segmentation": [[0, 0, 20, 0, 20, 16]]})
    content["images"][0] |= {"width": 20, "height": 16}
    first, second = source(tmp_path, content).instances(IMAGE) or ()
    assert first.box == (1, 1, 3, 3)
    assert second.polygons[0].tolist() == [[0, 0], [10, 0], [10, 8]]


def test_pictures_are_known_by_stem_or_whole_name(tmp_path: Path) -> None:
    content = document({"bbox": [1, 2, 3, 4]})
    content["images"] += [
        {"id": 6, "file_name": "a/7.jpg"},
        {"id": 7, "file_name": "b/7.jpg"},
        {"id": 8, "file_name": "empty.png"},
    ]
    content["annotations"] += [{"image_id": 6, "bbox": [0, 0, 1, 1]}, {"image_id": 7, "bbox": [0, 0, 2, 2]}]
    coco = source(tmp_path, content)
    assert coco.instances(IMAGE | {"image_id": "other"}) is None
    assert coco.instances(IMAGE | {"image_id": "empty"}) == []
    (found,) = coco.instances(IMAGE | {"image_id": "b/7"}) or ()
    assert (found.name, found.box) == (None, (0, 0, 2, 2))
    with pytest.raises(InputError, match="several pictures called '7', so that image 'shard-0/7' could be any"):
        coco.instances(IMAGE | {"image_id": "shard-0/7"})
    assert coco.names(IMAGE) == {"cat"}


def test_any_store_will_do() -> None:
    uri = f"memory://{uuid.uuid4().hex}/x.json"
    with fsspec.open(uri, "wb") as file:
        file.write(json.dumps(document({"bbox": [1, 2, 3, 4]})).encode())
    assert len(Coco(uri).instances(IMAGE) or ()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        ([], "no lists"),
        ({"images": []}, "no lists"),
        (document(images=[{"id": 5}]), "image 0 in .* no 'file_name'"),
        (
            document({"bbox": [1, 2, 3]}),
            r"annotation 0, of 'val/img_1.jpg', in .* is wrong \(not enough values",
        ),
        (document({"bbox": [1, 2, "3", 4]}), "annotation 0"),
        (document({"bbox": [1, 2, -3, 4]}), "ends before it begins"),
        (document({}), "neither 'bbox' nor 'segmentation'"),
        (document({"bbox": [1, 2, 3, 4], "image_id": 9}), "'image_id' 9 is in no image"),
        (document({"segmentation": [[1, 2, 3, 4]]}), "three corners"),
        (document({"segmentation": {"size": [8, 10], "counts": [3, 4]}}), "do not fill 10 x 8"),
        (document({"segmentation": {"size": [10**6, 10**6], "counts": [3, 4]}}), "of 1000000 x 1000000 pixels"),
        (document({"segmentation": {"size": [8, 10], "counts": "äö"}}), "none of COCO's"),
        (document({"segmentation": {"size": [8, 10], "counts": "P"}}), "end within a number"),
        (document({"segmentation": {"counts": "P"}}), "it has no 'size'"),
    ],
)
def test_what_is_no_coco_file_is_told(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=rf"--boxes: .*({reason})"):
        source(tmp_path, content)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(InputError, match=r"--boxes: '/nowhere/x.json' does not exist"):
        Coco("/nowhere/x.json")
