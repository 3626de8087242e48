"""Which source the settings mean, and whether it fits the lake."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.audit.regions import open_regions
from pipeline.audit.regions.coco import Coco
from pipeline.audit.regions.column import Column
from pipeline.audit.regions.masks import Masks
from pipeline.audit.regions.voc import Voc
from pipeline.lake import Lake, open_lake
from schemas.audit import Settings
from schemas.errors import InputError
from schemas.view import View
from tests.pipeline.audit.lakes import HEIGHT, WIDTH, make_lake
from tests.pipeline.lake.helpers import build, local


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return open_lake(make_lake(tmp_path_factory.mktemp("lake") / "lake", units=2, images=8, boxes=True))


def stem(lake: Lake) -> str:
    """The name of the file of some image."""
    image_id: str = lake.unit_images(sorted(lake.commits)[1])["image_id"][3].as_py()
    return image_id.rpartition("/")[2]


def coco(folder: Path, file_name: str, category: str) -> str:
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": category}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    }
    (folder / "x.json").write_text(json.dumps(content))
    return f"{folder}/x.json"


def voc(folder: Path, name: str) -> str:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    (folder / f"{name}.xml").write_text(f"<annotation><object><name>n01440764</name>{box}</object></annotation>")
    return str(folder)


def masks(folder: Path, name: str) -> str:
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(folder / f"{name}.png")
    return str(folder)


def settings(**given: Any) -> Settings:
    return Settings.model_validate(given)


def test_nothing_is_asked_for(lake: Lake) -> None:
    assert open_regions(settings(), lake) is None


def test_a_column(lake: Lake) -> None:
    found = open_regions(settings(boxes="boxes"), lake)
    assert isinstance(found, Column)
    assert not found.any_class
    row = lake.unit_images(sorted(lake.commits)[0]).to_pylist()[0]
    region = found.region(row, 0, "name-0")
    assert region is not None
    assert region.boxes == tuple(tuple(box) for box in json.loads(row["boxes"]))


def test_a_coco_file_whose_names_are_the_model_s(lake: Lake, tmp_path: Path) -> None:
    found = open_regions(settings(boxes=coco(tmp_path, f"{stem(lake)}.jpg", "Name-2")), lake)
    assert isinstance(found, Coco)
    assert not found.any_class
    assert found.about() == f"objects of the COCO file {tmp_path}/x.json"


def test_names_of_another_vocabulary_are_any_class(lake: Lake, tmp_path: Path) -> None:
    image = {"image_id": stem(lake), "width": WIDTH, "height": HEIGHT}
    for uri, kind in ((coco(tmp_path, f"{stem(lake)}.jpg", "tench"), Coco), (voc(tmp_path, stem(lake)), Voc)):
        found = open_regions(settings(boxes=uri), lake)
        assert isinstance(found, kind)
        assert found.any_class
        assert found.region(image, 1, "name-1") is not None


def test_a_folder_of_masks(lake: Lake, tmp_path: Path) -> None:
    found = open_regions(settings(masks=masks(tmp_path, stem(lake))), lake)
    assert isinstance(found, Masks)
    assert not found.any_class


@pytest.mark.parametrize("kind", ["column", "coco", "voc", "masks"])
def test_sources_travel_to_workers(lake: Lake, tmp_path: Path, kind: str) -> None:
    makers: dict[str, Any] = {
        "column": lambda: {"boxes": "boxes"},
        "coco": lambda: {"boxes": coco(tmp_path, f"{stem(lake)}.jpg", "tench")},
        "voc": lambda: {"boxes": voc(tmp_path, stem(lake))},
        "masks": lambda: {"masks": masks(tmp_path, stem(lake))},
    }
    here = open_regions(settings(**makers[kind]()), lake)
    assert here is not None
    there = pickle.loads(pickle.dumps(here))
    assert there.any_class == here.any_class == (kind in ("coco", "voc"))
    rows = lake.unit_images(sorted(lake.commits)[1]).to_pylist()
    view = View(0, 0, WIDTH, HEIGHT)
    regions = [[each.region(row, 1, "name-1") for row in rows[:-1]] for each in (here, there)]
    assert any(region is not None for region in regions[0])
    for one, two in zip(*regions, strict=True):
        assert (one is None) == (two is None)
        assert one is None or (one.in_view(view) == two.in_view(view)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": "boxes", "masks": "/x"}, "--boxes and --masks both"),
        ({"boxes": "bxes"}, r"--boxes: 'bxes' is neither a column of the lake \(did you mean boxes\?\)"),
        ({"boxes": "/no/such/folder"}, "--boxes: '/no/such/folder' is no folder; give a COCO file"),
        ({"masks": "/no/such/folder"}, "--masks: '/no/such/folder' is no folder; give a folder of PNG masks"),
        ({"boxes": "/no/such.json"}, "--boxes: '/no/such.json' does not exist"),
    ],
)
def test_what_is_not_there_is_told(lake: Lake, given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_regions(settings(**given), lake)


@pytest.mark.parametrize(("make", "option"), [(coco, "boxes"), (voc, "boxes"), (masks, "masks")])
def test_files_that_know_none_of_the_images_are_told(lake: Lake, tmp_path: Path, make: Any, option: str) -> None:
    uri = make(tmp_path, "elsewhere.jpg", "tench") if make is coco else make(tmp_path, "elsewhere")
    with pytest.raises(InputError, match=rf"--{option}: none of 14 images of the lake, such as '0000.*source.id"):
        open_regions(settings(**{option: uri}), lake)


def test_a_column_without_boxes_is_told(lake: Lake, tmp_path: Path) -> None:
    empty = open_lake(make_lake(tmp_path / "lake", units=1, images=8))
    with pytest.raises(InputError, match=r"--boxes: none of 7 images .* boxes in the column 'boxes'; it is empty"):
        open_regions(settings(boxes="boxes"), empty)
    # Any text column may be named, and what it holds is told.
    with pytest.raises(InputError, match=r"--boxes: column 'site' of image '0000.*' holds no boxes"):
        open_regions(settings(boxes="site"), lake)


def test_a_column_of_numbers_is_told(tmp_path: Path) -> None:
    store = local(tmp_path / "lake")
    build(store, 1)
    with pytest.raises(InputError, match=r"--boxes: the column 'age' is of type int64, and boxes are text"):
        open_regions(settings(boxes="age"), Lake(store))
