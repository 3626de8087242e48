"""Each output is opened by the reader that it is made for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, VOCSegmentation, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from pipeline.lake import Lake
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.trainset import Exported, export_trainset
from schemas.errors import InputError, LakeError
from tests.pipeline.pseudolabels.conftest import SETTINGS, index_of, label_lake, table_of

NAMES = ["one/0", "one/2", "one/4", "one/6", "two/1", "two/3", "two/turned"]


@pytest.fixture(scope="module")
def folder(labels: Lake, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_trainset(LabelLake(labels), tmp_path_factory.mktemp("set") / "folder", validation=0.3, seed=1)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_lake_itself_is_a_folder_of_masks(labels: Lake) -> None:
    uri = Path(labels.store.uri)
    assert (uri / "splits" / "all.txt").read_text().splitlines() == NAMES
    assert table_of(labels) == {"0": "background", "3": "eins", "7": "zwei"}
    sizes = {
        row["image_id"].rpartition(".")[0]: (row["height"], row["width"])
        for row in labels.images.to_table().to_pylist()
    }
    for name in NAMES:
        index = index_of(labels, name)
        assert index.dtype == np.uint8 and index.shape == sizes[name]
        assert set(np.unique(index)) <= {0, 3 if name.startswith("one") else 7}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with NumPy 2
@pytest.mark.parametrize("rle", ["class", "component"])
def test_coco(labels: Lake, folder: Exported, pictures: Path, tmp_path: Path, rle: str) -> None:
    if rle == "component":
        lake = label_lake(pictures, tmp_path / "lake", **{**SETTINGS, "files": {"rle": rle}})
        folder = export_trainset(LabelLake(lake), tmp_path / "set")
    coco = COCO(str(folder.folder / "annotations.json"))
    assert {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())} == {3: "eins", 7: "zwei"}
    assert len(coco.getImgIds()) == len(NAMES)
    counts = []
    for entry in coco.loadImgs(coco.getImgIds()):
        name = entry["file_name"].rpartition(".")[0]
        index = read(folder.folder / "masks" / f"{name}.png")
        drawn = np.zeros_like(index)
        annotations = coco.loadAnns(coco.getAnnIds(entry["id"]))
        for each in annotations:
            mask = coco.annToMask(each).astype(bool)
            assert not drawn[mask].any() and mask.sum() == each["area"]
            drawn[mask] = each["category_id"]
            x, y, width, height = each["bbox"]
            assert mask[y : y + height, x : x + width].sum() == each["area"] and 0 < each["score"] <= 1
        np.testing.assert_array_equal(drawn, index)
        counts.append(len(annotations))
    assert max(counts) == 1 if rle == "class" else max(counts) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchvision_coco_detection(folder: Exported) -> None:
    data = CocoDetection(folder.folder / "images", folder.folder / "annotations.json")
    data = wrap_dataset_for_transforms_v2(data, target_keys=("masks", "labels"))
    image, target = data[0]
    assert target["masks"].shape[1:] == (image.height, image.width) and target["labels"].tolist() == [3]


def test_torchvision_voc_segmentation(labels: Lake, tmp_path: Path) -> None:
    found = export_trainset(LabelLake(labels), tmp_path / "voc", arrangement="voc", validation=0.3, seed=1)
    assert found.suffixes == {".jpg": 7} and found.encoded == 2  # the PNG, and the picture on its side
    data = {name: VOCSegmentation(tmp_path / "voc", image_set=name) for name in ("train", "val", "trainval")}
    assert len(data["trainval"]) == 7 and len(data["val"]) == found.validation == 7 - len(data["train"]) > 0
    transform = v2.Compose(
        [v2.ToImage(), v2.RandomHorizontalFlip(1.0), v2.Resize((64, 64)), v2.ToDtype(torch.float32, scale=True)]
    )
    wrapped = wrap_dataset_for_transforms_v2(
        VOCSegmentation(tmp_path / "voc", image_set="trainval", transforms=transform)
    )
    batch = next(iter(torch.utils.data.DataLoader(wrapped, batch_size=7)))
    assert batch[0].shape == (7, 3, 64, 64) and batch[1].shape[-2:] == (64, 64)
    assert isinstance(wrapped[0][1], tv_tensors.Mask) and set(torch.unique(batch[1]).tolist()) <= {0, 3, 7}
    for (picture, mask), name in zip(data["trainval"], NAMES, strict=True):
        assert picture.size == mask.size
        np.testing.assert_array_equal(np.asarray(mask), index_of(labels, name))


def test_hugging_face_datasets(folder: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(str(folder.folder), split="train", cache_dir=str(tmp_path))
    assert len(data) == 7 and set(data.column_names) >= {"image", "mask", "image_id", "split"}
    assert sum(row["split"] == "val" for row in data) == folder.validation > 0
    by_id = {row["image_id"]: row for row in data}
    for name in NAMES:
        row = by_id[f"{name}.png" if name == "one/2" else f"{name}.jpg"]
        assert row["image"].size == row["mask"].size
        np.testing.assert_array_equal(np.asarray(row["mask"]), read(folder.folder / "masks" / f"{name}.png"))


def test_mmsegmentation_layout(folder: Exported) -> None:
    """MMSegmentation's BaseSegDataset: the list's lines are stems; img_path/STEM + img_suffix, and the masks alike."""
    root = folder.folder
    for split in ("all", "train", "val"):
        stems = [line.strip() for line in (root / "splits" / f"{split}.txt").read_text().splitlines()]
        for stem in stems:
            suffix = ".png" if stem == "one/2" else ".jpg"
            picture, mask = root / "images" / f"{stem}{suffix}", root / "masks" / f"{stem}.png"
            assert read(picture).shape[:2] == read(mask).shape
    assert (
        sorted(line for split in ("train", "val") for line in (root / f"splits/{split}.txt").read_text().split())
        == NAMES
    )
    # Without a list it pairs what it finds by suffix, in any folder below.
    masks = {path.relative_to(root / "masks").with_suffix("") for path in (root / "masks").rglob("*.png")}
    shown = {path.relative_to(root / "images").with_suffix("") for path in (root / "images").rglob("*.*g")}
    assert masks == shown == {Path(name) for name in NAMES}


def test_pictures_lie_under_their_masks(folder: Exported, pictures: Path) -> None:
    assert folder.suffixes == {".jpg": 6, ".png": 1} and folder.encoded == 1
    plain = folder.folder / "images" / "one" / "0.jpg"
    assert plain.read_bytes() == (pictures / "images" / "one" / "0.jpg").read_bytes()
    with Image.open(folder.folder / "images" / "two" / "turned.jpg") as picture:
        assert not picture.getexif()
        turned = np.asarray(picture, np.int16)
    with Image.open(pictures / "images" / "two" / "turned.jpg") as original:
        assert original.getexif()[0x0112] == 6
        assert np.abs(np.asarray(original, np.int16) - turned).mean() < 3  # the model saw it so


def test_links_and_none(labels: Lake, tmp_path: Path, pictures: Path) -> None:
    found = export_trainset(LabelLake(labels), tmp_path / "link", pictures="link")
    link = tmp_path / "link" / "images" / "one" / "2.png"
    assert link.is_symlink() and link.resolve() == (pictures / "images" / "one" / "2.png").resolve()
    assert not (tmp_path / "link" / "images" / "two" / "turned.jpg").is_symlink() and found.encoded == 1
    found = export_trainset(LabelLake(labels), tmp_path / "none", pictures="none")
    assert not (tmp_path / "none" / "images").exists() and not found.suffixes and found.images == 7
    assert (tmp_path / "none" / "metadata.jsonl").read_text() == ""


def test_codes_are_made_where_the_lake_has_none(labels: Lake, pictures: Path, tmp_path: Path, folder: Exported) -> None:
    lake = label_lake(pictures, tmp_path / "lake", **{**SETTINGS, "files": {"rle": "none"}})
    found = export_trainset(LabelLake(lake), tmp_path / "set", pictures="none")
    ours, theirs = (
        json.loads((each / "annotations.json").read_text())["annotations"] for each in (found.folder, folder.folder)
    )
    assert [each["segmentation"] for each in ours] == [each["segmentation"] for each in theirs]


def test_what_cannot_be_had(labels: Lake, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="is there already"):
        export_trainset(LabelLake(labels), tmp_path / "full")
    hidden = pictures / "images" / "one"
    hidden.rename(pictures / "away")
    try:
        found = export_trainset(LabelLake(labels), tmp_path / "some")
        assert found.missing == 4 and found.images == 3 and "one/" in found.reason
        assert (tmp_path / "some" / "splits" / "all.txt").read_text().split() == NAMES[4:]
        with pytest.raises(InputError, match="is no whole file on this machine"):
            export_trainset(LabelLake(labels), tmp_path / "link", pictures="link")
        (pictures / "images" / "two").rename(pictures / "away2")
        with pytest.raises(LakeError, match="none of the 7 pictures can be had"):
            export_trainset(LabelLake(labels), tmp_path / "nothing")
    finally:
        (pictures / "away").rename(hidden)
        if (pictures / "away2").exists():
            (pictures / "away2").rename(pictures / "images" / "two")
    assert not (tmp_path / "nothing").exists() and not list(tmp_path.glob(".*partial"))
