from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.audit.regions.masks import Masks, decoded
from schemas.errors import InputError

IMAGE: dict[str, Any] = {"image_id": "shard-0/img_1", "width": 6, "height": 4}
IDS = np.array([[0, 1, 1, 2, 255, 0], [0, 1, 1, 2, 255, 0], [0, 0, 0, 2, 7, 7], [0, 0, 0, 0, 0, 0]], np.uint8)
CLASSES = {"0": "background", "1": "cat", "2": "dog", "255": "void"}


def png(values: npt.NDArray[Any], mode: str | None = None) -> bytes:
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette([200, 0, 0] * 256)
    elif mode:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def source(folder: Path, data: bytes, classes: Any = None, name: str = "img_1.png") -> Masks:
    (folder / "masks").mkdir(exist_ok=True)
    (folder / "masks" / name).write_bytes(data)
    if classes is not None:
        (folder / "masks" / "classes.json").write_text(classes if isinstance(classes, str) else json.dumps(classes))
    return Masks(f"{folder}/masks/")


def mask_of(masks: Masks, name: str | None = "cat", image: dict[str, Any] = IMAGE) -> Any:
    region = masks.region(image, 0, name)
    return None if region is None else region.mask


def test_without_classes_all_but_zero_and_void_is_the_object(tmp_path: Path) -> None:
    masks = source(tmp_path, png(IDS))
    assert (mask_of(masks) == np.isin(IDS, [1, 2, 7])).all()
    assert masks.names(IMAGE) == frozenset()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_a_plain_mask_may_be_255_and_of_any_mode(tmp_path: Path, mode: str) -> None:
    plain = np.where(IDS > 0, 255, 0).astype(np.uint8)
    assert (mask_of(source(tmp_path, png(plain, mode))) == (IDS > 0)).all()


def test_a_dark_colour_is_an_object_too(tmp_path: Path) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[1, 2] = (1, 0, 0)
    assert mask_of(source(tmp_path, png(colours))).sum() == 1


@pytest.mark.parametrize("mode", [None, "P"])
def test_the_explained_class_s_ids_are_its_region(tmp_path: Path, mode: str | None) -> None:
    masks = source(tmp_path, png(IDS, mode), CLASSES)
    assert (mask_of(masks, "cat") == (IDS == 1)).all()
    assert (mask_of(masks, "Dog") == (IDS == 2)).all()
    assert mask_of(masks, "bird") is None
    assert masks.names(IMAGE) == set(CLASSES.values())
    masks.any_class = True
    assert (mask_of(masks, "bird") == np.isin(IDS, [1, 2])).all()


def test_sixteen_bits_hold_large_ids(tmp_path: Path) -> None:
    ids = np.where(IDS == 1, 1000, 0).astype(np.uint16)
    assert (mask_of(source(tmp_path, png(ids), {"1000": "cat"})) == (IDS == 1)).all()


def test_classes_may_lie_above_the_folder(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    assert (mask_of(source(tmp_path, png(IDS)), "dog") == (IDS == 2)).all()


def test_masks_of_a_larger_copy_are_scaled(tmp_path: Path) -> None:
    large = np.kron(IDS, np.ones((3, 3), np.uint8))
    assert (mask_of(source(tmp_path, png(large), CLASSES), "cat") == (IDS == 1)).all()


def test_images_without_a_mask_are_unknown(tmp_path: Path) -> None:
    masks = source(tmp_path, png(IDS))
    other = IMAGE | {"image_id": "shard-0/img_2"}
    assert masks.region(other, 0, "cat") is None
    assert masks.names(other) is None
    assert mask_of(source(tmp_path, png(np.zeros_like(IDS)))) is None


def test_any_store_will_do() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for name, data in (("m/img_1.png", png(IDS)), ("m/classes.json", json.dumps(CLASSES).encode())):
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(data)
    assert (mask_of(Masks(f"{root}/m"), "dog") == (IDS == 2)).all()


@pytest.mark.parametrize(
    ("data", "classes", "reason"),
    [
        (b"GIF89a" + bytes(40), None, "no PNG"),
        (png(IDS)[:60], None, "cannot be used"),
        (png(np.zeros((4, 6, 3), np.uint8)), CLASSES, "colours, which are no ids"),
        (png(IDS)[:16] + (60_000).to_bytes(4, "big") * 2 + png(IDS)[24:], None, "60000 x 60000 pixels"),
    ],
)
def test_what_is_no_mask_is_told_with_file_and_image(tmp_path: Path, data: bytes, classes: Any, reason: str) -> None:
    with pytest.raises(InputError, match=rf"--masks: .*/img_1.png', the mask of image 'shard-0/img_1', .*{reason}"):
        source(tmp_path, data, classes).region(IMAGE, 0, "cat")


def test_a_mask_of_another_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--masks: .*img_1.png' is about a picture of 4 x 6 pixels, .* has 6 x 4"):
        source(tmp_path, png(IDS.T.copy())).region(IMAGE, 0, "cat")


@pytest.mark.parametrize("classes", ["[1, 2]", "{", '{"cat": 1}'])
def test_wrong_classes_are_told(tmp_path: Path, classes: str) -> None:
    with pytest.raises(InputError, match=r"--masks: '.*/masks/classes.json' does not name ids"):
        source(tmp_path, png(IDS), classes)


def test_decoding_keeps_numbers_of_the_palette() -> None:
    assert (decoded(png(IDS, "P"), coloured=False) == IDS).all()
