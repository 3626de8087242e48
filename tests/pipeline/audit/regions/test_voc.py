from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.audit.regions.voc import Voc
from schemas.errors import InputError

IMAGE: dict[str, Any] = {"image_id": "shard-0/img_1", "width": 100, "height": 50}


def xml(*objects: str, size: str = "<size><width>100</width><height>50</height><depth>3</depth></size>") -> str:
    return f"<annotation><filename>x</filename>{size}{''.join(objects)}</annotation>"


def thing(name: str, xmin: object, ymin: object, xmax: object, ymax: object) -> str:
    box = f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{part}{box}</object>"


def source(folder: Path, text: str | bytes, name: str = "img_1.xml") -> Voc:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Voc(str(folder))


def test_pixels_count_from_one_and_both_ends_belong(tmp_path: Path) -> None:
    voc = source(tmp_path, xml(thing("dog", 1, 11, 100, 50), thing("cat", 0, 0, 7.5, 9)))
    found = voc.instances(IMAGE)
    assert [(each.name, each.box) for each in found or ()] == [("dog", (0, 10, 100, 50)), ("cat", (0, 0, 7.5, 9))]
    region = voc.region(IMAGE, 0, "Dog")
    assert region is not None
    assert region.boxes == ((0, 10, 100, 50),)
    assert voc.region(IMAGE, 0, "bird") is None
    assert voc.names(IMAGE) == {"dog", "cat"}


def test_boxes_of_a_larger_copy_are_scaled(tmp_path: Path) -> None:
    size = "<size><width>400</width><height>200</height></size>"
    (found,) = source(tmp_path, xml(thing("dog", 5, 5, 100, 200), size=size)).instances(IMAGE) or ()
    assert found.box == (1, 1, 25, 50)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_files_without_a_size_are_taken_as_they_are(tmp_path: Path, size: str) -> None:
    (found,) = source(tmp_path, xml(thing("dog", 5, 5, 10, 10), size=size)).instances(IMAGE) or ()
    assert found.box == (4, 4, 10, 10)


def test_files_lie_in_the_folder_or_under_the_whole_id(tmp_path: Path) -> None:
    voc = source(tmp_path, xml(thing("dog", 1, 1, 2, 2)), "n01/n01_7.xml")
    assert len(voc.instances(IMAGE | {"image_id": "n01/n01_7.JPEG"}) or ()) == 1
    assert voc.instances(IMAGE) is None
    assert voc.names(IMAGE) is None
    assert voc.region(IMAGE, 0, "dog") is None


def test_any_store_will_do() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{root}/img_1.xml", "wb") as file:
        file.write(xml(thing("dog", 1, 1, 2, 2)).encode())
    assert len(Voc(f"{root}/").instances(IMAGE) or ()) == 1
    assert Voc(root).instances(IMAGE | {"image_id": "x/other"}) is None


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "aaaa"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation>", "no element found"),
        ("", "no element found"),
        (b"\xff\xfe\x00", "unclosed token"),
        (xml("<object><name>dog</name></object>"), "no 'bndbox'"),
        (xml("<object><bndbox><xmin>1</xmin></bndbox></object>"), "'bndbox' has no 'ymin'"),
        (xml(thing("dog", "a", 1, 2, 3)), "could not convert"),
        (xml(thing("dog", "nan", 1, 2, 3)), "'xmin' of 'bndbox' is nan"),
        (xml(thing("dog", 50, 1, 2, 3)), "ends before"),
        (BOMB, "document type"),
        (BOMB.encode("utf-16"), "document type"),
        ("<annotation>&undefined;</annotation>", "undefined entity"),
    ],
)
def test_what_is_no_voc_file_is_told_with_file_and_image(tmp_path: Path, text: str | bytes, reason: str) -> None:
    voc = source(tmp_path, text)
    with pytest.raises(InputError, match=rf"--boxes: '.*/img_1.xml', the boxes of image 'shard-0/img_1', .*({reason})"):
        voc.instances(IMAGE)


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    voc = source(tmp_path, b"<annotation>" + b" " * (5 << 20) + b"</annotation>")
    with pytest.raises(InputError, match="more than 4 MiB"):
        voc.instances(IMAGE)


def test_boxes_of_another_picture_are_refused(tmp_path: Path) -> None:
    voc = source(tmp_path, xml(thing("dog", 1, 1, 2, 2), size="<size><width>50</width><height>100</height></size>"))
    with pytest.raises(InputError, match="50 x 100 pixels, and image 'shard-0/img_1' has 100 x 50"):
        voc.region(IMAGE, 0, "dog")
