"""The folder that trainers of segmentation take: pictures beside masks, lists, class table and COCO annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.audit.progress import Progression
from pipeline.lake.new_folder import new_folder, require_free
from pipeline.lake.originals import Originals
from pipeline.pseudolabels.classes import manifest_classes
from pipeline.pseudolabels.coco_json import CocoWriter
from pipeline.pseudolabels.collection import Item, LabelLake
from pipeline.pseudolabels.documents import label_documents
from pipeline.pseudolabels.png import decode_index
from pipeline.pseudolabels.rle import encode_labels
from pipeline.pseudolabels.shown import Layout, Pictures, Shown, shown_picture
from pipeline.pseudolabels.split import is_drawn
from schemas import layout
from schemas.errors import CamlakeError, InputError, LakeError
from schemas.pseudolabels import BACKGROUND_ID


class Places(NamedTuple):
    """Where a layout has its files, relative to the folder."""

    pictures: str
    masks: str
    lists: str
    everything: str


PLACES: dict[Layout, Places] = {
    "folder": Places("images", "masks", "splits", "all"),
    "voc": Places(
        "VOCdevkit/VOC2012/JPEGImages",
        "VOCdevkit/VOC2012/SegmentationClass",
        "VOCdevkit/VOC2012/ImageSets/Segmentation",
        "trainval",
    ),
}
ANNOTATIONS, METADATA, CARD = "annotations.json", "metadata.jsonl", "README.md"

# Hugging Face's `datasets` reads its head. Without it, it would take the lists for splits and find no picture in them.
_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: ["metadata.jsonl", "images/**"]
---

Pseudo-labels for segmentation: `images/NAME.*` beside `masks/NAME.png` (0 background, {ignore} ignore, else the ids of
`classes.json`), names in `splits/`, the same labels as COCO annotations in `annotations.json`. How they were made
stands in `provenance.json`. `datasets.load_dataset("THIS/FOLDER")` gives the columns image, mask, image_id and split.
"""

_FAULTS = (CamlakeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass
class Exported:
    """What was written.

    ``suffixes`` counts pictures by suffix, ``encoded`` those that had to be encoded anew, ``missing`` images that were
    left out since their picture cannot be had, ``reason`` why, of the first of them.
    """

    folder: Path
    images: int = 0
    validation: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    encoded: int = 0
    missing: int = 0
    reason: str = ""

    def leave_out(self, reason: str) -> None:
        """Count an image that cannot be had."""
        self.missing += 1
        self.reason = self.reason or reason


def export_trainset(
    labels: LabelLake,
    output: Path,
    *,
    arrangement: Layout = "folder",
    pictures: Pictures = "copy",
    validation: float = 0.1,
    seed: int = 0,
    source_options: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> Exported:
    """Write the labelled images of a lake as a folder for trainers.

    Args:
        labels: the lake.
        output: folder; new, or empty. It appears when it is complete.
        arrangement: ``folder`` (images, masks, splits), or ``voc``, that of Pascal VOC 2012, where every picture is a
            JPEG.
        pictures: ``copy`` them, ``link`` to files on this machine, or write ``none``.
        validation: share of the images that are listed for validation, by hash of their id.
        seed: of the hash.
        source_options: of the pictures' file system. Default: the lake's, where both are of one kind.
        stream: where progress goes (default: stderr).

    Raises:
        InputError: the folder is not empty, or cannot be written; pictures cannot be linked.
        LakeError: the lake is damaged, or no picture can be had.
    """
    require_free(output)
    found = Exported(output)
    total = sum(commit.images.get("ok", 0) for commit in labels.lake.commits.values())
    originals = Originals(labels.lake, source_options, most_read=None)
    with new_folder(output) as folder, _Writer(labels, folder, arrangement, found) as writer:
        with Progression(total, 0, stream, what="images") as progress:
            for unit in labels.lake.commits:
                for item, row, picture in _unit(labels, unit, originals if pictures == "copy" else None):
                    try:
                        if isinstance(picture, CamlakeError):
                            raise picture
                        shown = shown_picture(labels, row, picture, pictures, arrangement)
                    except _FAULTS as error:
                        if isinstance(error, InputError):
                            raise
                        found.leave_out(str(error) or type(error).__name__)
                        continue
                    writer.add(unit, item, row, shown, is_drawn(item.image_id, validation, seed))
                    progress.done(1)
        if not found.images and not found.missing:
            raise LakeError(f"{labels.store.uri} holds no labelled image (yet); look at: camlake status")
        if not found.images:
            raise LakeError(
                f"{labels.store.uri}: none of the {found.missing} pictures can be had ({found.reason}); the source's "
                "options are given with --source-storage"
            )
    return found


def _unit(
    labels: LabelLake, unit: str, originals: Originals | None
) -> Iterator[tuple[Item, Mapping[str, Any], bytes | CamlakeError]]:
    items = {item.image_id: item for item in labels.unit_items(unit)}
    rows = {row["image_id"]: row for row in labels.lake.unit_images(unit).to_pylist() if row["image_id"] in items}
    if originals is not None:
        for row, data in originals.stream(rows.values()):
            yield items[row["image_id"]], row, data
    else:
        for image_id, item in items.items():
            yield item, rows[image_id], b""


class _Writer:
    """Writes the files of the folder, image by image."""

    def __init__(self, labels: LabelLake, folder: Path, arrangement: Layout, found: Exported) -> None:
        self._labels, self._folder, self._found = labels, folder, found
        self._places = PLACES[arrangement]
        self._plain = arrangement == "folder"
        self._tables: tuple[str, dict[str, list[dict[str, Any]]]] = ("", {})
        self._stack = ExitStack()

    def __enter__(self) -> _Writer:
        classes = self._labels.classes or {}
        lists = self._folder / self._places.lists
        lists.mkdir(parents=True)
        self._lists = {
            name: self._stack.enter_context((lists / f"{name}.txt").open("w", encoding="utf-8"))
            for name in (self._places.everything, "train", "val")
        }
        info = {"description": f"pseudo-labels of {self._labels.store.uri}"}
        self._coco = self._stack.enter_context(CocoWriter(self._folder / ANNOTATIONS, classes, info))
        self._metadata = None
        if self._plain:
            ignore = manifest_classes(self._labels.lake.manifest).ignore
            (self._folder / CARD).write_text(_CARD.format(ignore=ignore), encoding="utf-8")
            self._metadata = self._stack.enter_context((self._folder / METADATA).open("w", encoding="utf-8"))
        table = {str(BACKGROUND_ID): "background"} | {str(number): name for number, name in sorted(classes.items())}
        (self._folder / layout.CLASSES).write_text(
            json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        origin = label_documents(self._labels.lake.manifest, ())[layout.PROVENANCE]
        (self._folder / layout.PROVENANCE).write_bytes(origin)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, unit: str, item: Item, row: Mapping[str, Any], shown: Shown, validation: bool) -> None:
        """Write an image with all that belongs to it."""
        mask = self._labels.store.get(item.mask)
        self._put(f"{self._places.masks}/{item.name}.png", mask)
        file_name = f"{item.name}{shown.suffix or '.jpg'}"
        if shown.target is not None:
            place = self._folder / self._places.pictures / file_name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(shown.target)
        elif shown.data is not None:
            self._put(f"{self._places.pictures}/{file_name}", shown.data)
        for name in (self._places.everything, "val" if validation else "train"):
            self._lists[name].write(f"{item.name}\n")
        if self._metadata is not None and (shown.target or shown.data) is not None:
            entry = {
                "file_name": f"{self._places.pictures}/{file_name}",
                "mask_file_name": f"{self._places.masks}/{item.name}.png",
                "image_id": item.image_id,
                "split": "val" if validation else "train",
            }
            self._metadata.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._coco.add(file_name, row["width"], row["height"], self._rows(unit, item, mask))
        self._found.images += 1
        self._found.validation += validation
        self._found.encoded += shown.encoded
        if shown.target is not None or shown.data is not None:
            self._found.suffixes[shown.suffix] += 1

    def _put(self, path: str, data: bytes) -> None:
        place = self._folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def _rows(self, unit: str, item: Item, mask: bytes) -> list[dict[str, Any]]:
        """Return the rows of the labels table of an image, with codes where the lake has none."""
        if self._tables[0] != unit:
            path = layout.labels(unit, self._labels.lake.commits[unit].attempt)
            table = pq.read_table(pa.BufferReader(self._labels.store.get(path)))
            found: dict[str, list[dict[str, Any]]] = {}
            for each in table.to_pylist():
                found.setdefault(each["image_id"], []).append(each)
            self._tables = unit, found
        rows = self._tables[1].get(item.image_id, [])
        if all(row["rle_counts"] is not None for row in rows):
            return rows
        coded = encode_labels(decode_index(mask).astype("int32"))
        return [{**row, "rle_counts": coded[row["label_id"]].counts} for row in rows if row["area"]]
