"""The objects of a lake of labels: files named by their image, and two tables per unit, named by their attempt."""

from __future__ import annotations

import io
import re
from collections.abc import Container, Iterable
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake.contents import Contents
from pipeline.lake.plan import read_plan
from pipeline.lake.store import LakeStore
from pipeline.lake.verify_unit import UnitCheck, hash_id
from pipeline.pseudolabels.documents import label_documents
from pipeline.pseudolabels.names import folder_images, mask_name, mirrors
from pipeline.pseudolabels.verify import check_unit
from schemas import layout
from schemas.documents import Commit, Manifest
from schemas.errors import LakeError
from schemas.job import Source

_TABLE = re.compile(rf"^(?:{layout.IMAGES}|{layout.LABELS})/(?P<table>[^/]+)\.parquet$")
_FILE = re.compile(
    rf"^(?:(?:{layout.MASKS}|{layout.CONFIDENCE})/(?P<png>.+)\.png|{layout.SOFT}/(?P<npz>.+)\.npz)$", re.DOTALL
)
_DOCUMENTS = frozenset([layout.CLASSES, layout.SPLIT_ALL, layout.PROVENANCE])


def image_name(path: str) -> str | None:
    """Return the name of the image that a file is of, or None where it is none of an image's files."""
    match = _FILE.match(path)
    return None if match is None else match["png"] or match["npz"]


class _Seen(NamedTuple):
    """The unit of each image that is known, by the hash of its name, and the units whose images nothing tells."""

    units: dict[int, str]
    blind: list[str]


class LabelContents(Contents):
    """Masks and their companions, the images table and the labels table; and what finalize adds."""

    def __init__(self, store: LakeStore, manifest: Manifest) -> None:
        super().__init__(store, manifest)
        # By hash, as the paths of millions of images would be much to hold.
        self._files: set[int] = set()
        self._names: list[str] = []

    def note(self, commit: Commit) -> None:
        """Take a unit's commit into account."""
        super().note(commit)
        for info in commit.objects:
            name = image_name(info.path)
            if name is not None:
                self._files.add(hash_id(info.path))
                if info.path == layout.mask(name):
                    self._names.append(name)

    def owner(self, path: str) -> tuple[str, str] | None:
        """Return (unit id, attempt) of a table by its name, or None."""
        match = _TABLE.match(path)
        if match is None:
            return None
        unit, dash, attempt = match["table"].rpartition("-")
        return (unit, attempt) if dash else None

    def is_named(self, path: str) -> bool:
        """Say whether a commit names an object, or finalize adds it."""
        if image_name(path) is not None:
            return hash_id(path) in self._files
        return path in _DOCUMENTS or super().is_named(path)

    def is_leftover(self, path: str, units: Container[str]) -> bool:
        """Say whether an attempt at one of ``units`` left an object; of images' files tables and plan tell."""
        name = image_name(path)
        if name is None:
            return super().is_leftover(path, units)
        return self._seen.units.get(hash_id(name)) in units

    def riddle(self, path: str, units: Container[str]) -> str | None:
        """Return one of ``units`` whose images nothing names, where a file is an image's of which nothing tells."""
        if image_name(path) is None:
            return None
        return next((unit for unit in self._seen.blind if unit in units), None)

    @cached_property
    def _seen(self) -> _Seen:
        """Which images are of which unit; read where files are left over.

        The images table is written before the first file of an attempt, so it tells of all; where it was lost, the
        labels table tells of those that have a class, and of a folder the plan tells of all.
        """
        source = Source.model_validate(self.manifest.job["source"])
        mirrored = mirrors(source)
        found: dict[int, str] = {}
        planned: set[str] = set()
        clear: set[str] = set()

        def add(unit: str, image_ids: Iterable[str]) -> None:
            for image_id in image_ids:
                stem = mask_name(image_id, mirrored=mirrored).stem
                if stem is not None:
                    found.setdefault(hash_id(stem), unit)

        for folder in (layout.IMAGES, layout.LABELS):
            for entry in self.store.list(folder):
                owner = self.owner(entry.path)
                if owner is None:
                    continue
                try:
                    table = pq.read_table(io.BytesIO(self.store.get(entry.path)), columns=["image_id"])
                except (pa.ArrowException, OSError):
                    continue  # damaged: if a commit names it, that is a problem of its own
                add(owner[0], table["image_id"].to_pylist())
                if folder == layout.IMAGES:
                    clear.add(owner[0])
        for unit in read_plan(self.store, self.manifest):
            planned.add(unit.unit_id)
            if mirrored:
                add(unit.unit_id, (image_id for image_id, _ in folder_images(unit, source)))
                clear.add(unit.unit_id)
        return _Seen(found, sorted(planned - clear))

    def documents(self) -> dict[str, bytes]:
        """Return the class table, the list of images and the provenance.

        Raises:
            LakeError: two images have one mask.
        """
        names = sorted(self._names)
        for first, second in pairwise(names):
            if first == second:
                raise LakeError(
                    f"{self.store.where(layout.mask(first))} is the mask of two images; ids must be unique over all "
                    "units: set source.id, and write to another output.uri"
                )
        return label_documents(self.manifest, names)

    def check_unit(self, commit: Commit) -> UnitCheck:
        """Check files and tables against the commit, the manifest and each other."""
        return check_unit(self.store, self.manifest, commit)


CONTENTS = LabelContents
