"""Collections of index images: a lake of labels, or a plain folder of PNGs. Opened for reading, part by part."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.lake import Lake, LakeStore, MissingObjectError
from pipeline.pseudolabels.classes import manifest_classes
from pipeline.pseudolabels.confusion import IGNORED, Ids
from pipeline.pseudolabels.names import mask_names, mirrors
from pipeline.pseudolabels.png import decode_index, ignore_value
from pipeline.pseudolabels.soft import decode_soft
from schemas import layout
from schemas.errors import InputError, LakeError
from schemas.job import Source
from schemas.pseudolabels import BACKGROUND_ID, PseudoLabels

_FOLDER_PART = 256


class Item(NamedTuple):
    """An image: its id, the name of its files without suffix, and where they are, relative to the store; its unit."""

    image_id: str
    name: str
    mask: str
    soft: str | None
    unit: str | None = None


class Collection(ABC):
    """Index images with their class table; pickles for workers.

    ``classes`` gives names by id, the background's left out; None where no table is there.
    """

    store: LakeStore
    classes: dict[int, str] | None

    @abstractmethod
    def parts(self) -> Iterator[list[Item]]:
        """Yield the images, a bounded number at a time."""

    def read(self, path: str, ignore: int | None = None) -> Ids:
        """Return the ids (H, W) int32 of an index image, with ``IGNORED`` where it holds the ignore value.

        Args:
            path: of the image.
            ignore: the ignore value. Default: 255 of images of 8 bits, 65535 of 16.

        Raises:
            InputError: it is no index image.
            LakeError: it cannot be read.
        """
        data = self.store.get(path)
        try:
            index = decode_index(data)
        except (OSError, ValueError, SyntaxError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"'{self.store.where(path)}' is no index image ({reason}); write ids as PNG of mode L, P or I;16"
            ) from error
        ids = index.astype(np.int32)
        ids[index == (ignore_value(index.dtype) if ignore is None else ignore)] = IGNORED
        return ids

    def scores(self, path: str) -> tuple[Any, tuple[int, ...]]:
        """Return the classes' scores (K, H, W) float32 of an image, without the background's, and their ids.

        Raises:
            LakeError: it cannot be read, or is no archive of scores.
        """
        try:
            scores, ids = decode_soft(self.store.get(path))
        except ValueError as error:
            raise LakeError(f"'{self.store.where(path)}' holds no scores ({error}); run 'camlake verify'") from error
        return scores[1:], ids


class LabelLake(Collection):
    """What ``camlake pseudo-labels`` wrote."""

    def __init__(self, lake: Lake) -> None:
        if lake.manifest.kind != "labels":
            raise InputError(
                f"{lake.store.uri} is a lake of heatmaps, not of labels; run 'camlake pseudo-labels' first"
            )
        self.lake = lake
        self.store = lake.store
        self.classes = {each.label_id: each.name for each in manifest_classes(lake.manifest).classes}
        self._mirrored = mirrors(Source.model_validate(lake.manifest.job["source"]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to workers as what it was made of: caches and connections are each process's own."""
        return _open_label_lake, (self.store,)

    @property
    def settings(self) -> PseudoLabels:
        """The job's section ``pseudo_labels``."""
        return PseudoLabels.model_validate(self.lake.manifest.job["pseudo_labels"])

    def parts(self) -> Iterator[list[Item]]:
        """Yield the labelled images of one unit after another."""
        for unit in self.lake.commits:
            yield self.unit_items(unit)

    def unit_items(self, unit: str) -> list[Item]:
        """Return the labelled images of a unit, in its order."""
        written = {info.path for info in self.lake.commits[unit].objects}
        rows = self.lake.unit_images(unit)
        ids = rows["image_id"].to_pylist()
        found = []
        for image_id, name in zip(ids, mask_names(ids, mirrored=self._mirrored), strict=True):
            if name.stem is None or layout.mask(name.stem) not in written:
                continue
            soft = layout.soft(name.stem)
            found.append(Item(image_id, name.stem, layout.mask(name.stem), soft if soft in written else None, unit))
        return found


def _open_label_lake(store: LakeStore) -> LabelLake:
    return LabelLake(Lake(store))


class LabelFolder(Collection):
    """``FOLDER/NAME.png``, at any depth, with ``classes.json`` in the folder or the one above, if anywhere."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.store = LakeStore(uri, storage_options)
        self.classes = read_classes(self.store)
        above, _, last = self.store.uri.rpartition("/")
        if self.classes is None and above and last:
            try:
                self.classes = read_classes(LakeStore(above, storage_options))
            except InputError:
                self.classes = None  # above a bucket is no folder

    def parts(self) -> Iterator[list[Item]]:
        """Yield the PNGs, as the store lists them."""
        part: list[Item] = []
        for entry in self.store.list():
            if not entry.path.endswith(".png"):
                continue
            stem = entry.path.removesuffix(".png")
            part.append(Item(stem, stem, entry.path, None))
            if len(part) == _FOLDER_PART:
                yield part
                part = []
        if part:
            yield part


def open_labels(uri: str, storage_options: Mapping[str, Any] | None = None) -> Collection:
    """Open a lake of labels, or a folder of index PNGs.

    Raises:
        InputError: neither is there, or it is a lake of heatmaps.
        LakeError: the lake is damaged.
    """
    store = LakeStore(uri, storage_options)
    if store.exists(layout.MANIFEST):
        return LabelLake(Lake(store))
    folder = LabelFolder(uri, storage_options)
    if next(folder.parts(), None) is None:
        raise InputError(f"'{uri}' holds neither a lake of labels nor index images (*.png); check the URI")
    return folder


def read_classes(store: LakeStore) -> dict[int, str] | None:
    """Return the class table of a folder (``{"1": "cat", ...}``) without the background; None where there is none.

    Raises:
        InputError: it is no such table.
    """
    try:
        data = store.get(layout.CLASSES)
    except MissingObjectError:
        return None
    try:
        found = {int(each): str(name) for each, name in json.loads(data).items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f'\'{store.where(layout.CLASSES)}\' does not name ids ({error}); write {{"1": "cat", "2": "dog"}}'
        ) from error
    return {each: name for each, name in found.items() if each != BACKGROUND_ID}
