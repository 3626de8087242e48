"""Verification of one unit of a lake of labels: files, tables and commit agree."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.lake.store import LakeStore
from pipeline.lake.verify_unit import UnitCheck, check_images, read_table, sound_bytes
from pipeline.lake.writer import OK
from pipeline.pseudolabels.classes import LabelClasses, manifest_classes
from pipeline.pseudolabels.names import mask_names, mirrors
from pipeline.pseudolabels.png import Index, decode_index
from pipeline.pseudolabels.rle import decode_mask
from pipeline.pseudolabels.soft import decode_soft
from schemas import layout
from schemas.documents import Commit, Manifest, ObjectInfo
from schemas.job import Source
from schemas.pseudolabels import BACKGROUND_ID, LABELS, LabelFiles
from schemas.tables import images_schema


def check_unit(store: LakeStore, manifest: Manifest, commit: Commit) -> UnitCheck:
    """Check every object of a commit and how they fit together, one image at a time.

    A damaged object is named once; what follows from it is not.
    """
    check = UnitCheck(commit)
    unit, attempt = commit.unit_id, commit.attempt
    named = {info.path: info for info in commit.objects}
    paths = layout.images(unit, attempt), layout.labels(unit, attempt)
    data = {
        path: content
        for path in paths
        if path in named and (content := sound_bytes(check, store, named[path])) is not None
    }
    count = sum(commit.images.values())
    images = read_table(check, store, data, paths[0], images_schema(manifest.attributes), count)
    labels = read_table(check, store, data, paths[1], LABELS, commit.maps)
    if images is None or labels is None:
        for path, info in named.items():
            if path not in paths:
                sound_bytes(check, store, info)
        return check
    check_images(check, store, images)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in labels.to_pylist():
        rows[row["image_id"]].append(row)
    expected = _Files(store, manifest, check, named)
    for image, stem in zip(images.to_pylist(), _stems(images, manifest), strict=True):
        mine = rows.pop(image["image_id"], [])
        if image["status"] == OK and stem is not None:
            expected.check_image(image, stem, mine)
        elif mine:
            where = store.where(paths[1])
            check.add("rows", paths[1], f"{where}: image '{image['image_id']}' has labels, but no status '{OK}'")
    for image_id in rows:
        where = store.where(paths[1])
        check.add("rows", paths[1], f"{where}: image '{image_id}' has labels, but no row in the images table")
    for path in set(named) - set(paths) - expected.seen:
        check.add("commit", path, f"the commit names {store.where(path)}, which no labelled image has")
    return check


def _stems(images: pa.Table, manifest: Manifest) -> list[str | None]:
    mirrored = mirrors(Source.model_validate(manifest.job["source"]))
    return [name.stem for name in mask_names(images["image_id"].to_pylist(), mirrored=mirrored)]


class _Files:
    """The files of a unit's images, checked one by one."""

    def __init__(self, store: LakeStore, manifest: Manifest, check: UnitCheck, named: dict[str, ObjectInfo]) -> None:
        self._store = store
        self._check = check
        self._named = named
        self._files = LabelFiles.model_validate(manifest.job["pseudo_labels"]["files"])
        self._classes: LabelClasses = manifest_classes(manifest)
        self.seen: set[str] = set()

    def _bytes(self, path: str) -> bytes | None:
        self.seen.add(path)
        if path not in self._named:
            where = layout.commit(self._check.commit.unit_id)
            self._check.add("commit", where, f"the commit does not name {self._store.where(path)}")
            return None
        return sound_bytes(self._check, self._store, self._named[path])

    def check_image(self, image: dict[str, Any], stem: str, rows: list[dict[str, Any]]) -> None:
        """Check the files of an image, and that its rows of the labels table say what its mask shows."""
        size = (image["height"], image["width"])
        path = layout.mask(stem)
        data = self._bytes(path)
        if data is not None:
            try:
                index = decode_index(data)
            except (OSError, ValueError, SyntaxError) as error:
                self._add(path, f"is no index image ({error})")
            else:
                self._check_index(path, index, size, rows)
        if self._files.confidence:
            self._check_confidence(layout.confidence(stem), size)
        if self._files.soft:
            self._check_soft(layout.soft(stem), size, {row["label_id"] for row in rows})

    def _add(self, path: str, message: str) -> None:
        self._check.add("mask", path, f"{self._store.where(path)} {message}")

    def _check_index(self, path: str, index: Index, size: tuple[int, int], rows: list[dict[str, Any]]) -> None:
        if index.shape != size or index.dtype != self._classes.dtype:
            self._add(path, f"has {index.shape} pixels of {index.dtype}, not {size} of {self._classes.dtype}")
            return
        known = {row["label_id"] for row in rows}
        found = set(np.unique(index).tolist()) - {BACKGROUND_ID, self._classes.ignore}
        if found - known:
            self._add(path, f"shows class {min(found - known)}, of which the labels table has no row")
        for label_id in known:
            mine = [row for row in rows if row["label_id"] == label_id]
            shown = index == label_id
            if sum(row["area"] for row in mine) != int(shown.sum()):
                self._add(
                    path, f"shows {int(shown.sum())} pixels of class {label_id}, and the labels table another area"
                )
                continue
            codes = [row["rle_counts"] for row in mine]
            if None not in codes:
                masks = [decode_mask(code, *size) for code in codes]
                if not np.array_equal(np.any(masks, axis=0), shown):
                    self._add(path, f"differs from the run-length codes of class {label_id}")

    def _check_confidence(self, path: str, size: tuple[int, int]) -> None:
        data = self._bytes(path)
        if data is None:
            return
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                if (picture.height, picture.width) != size or picture.mode != "L":
                    self._add(path, f"is {picture.width} x {picture.height} of mode {picture.mode}, not {size} of L")
        except (OSError, ValueError, SyntaxError) as error:
            self._add(path, f"does not open as PNG ({error})")

    def _check_soft(self, path: str, size: tuple[int, int], known: set[int]) -> None:
        data = self._bytes(path)
        if data is None:
            return
        try:
            scores, ids = decode_soft(data)
        except ValueError as error:
            self._add(path, f"holds no scores ({error})")
            return
        if scores.shape[1:] != size or set(ids) != known:
            self._add(
                path, f"holds scores of {scores.shape[1:]} pixels for {list(ids)}, not {size} for {sorted(known)}"
            )
