"""What an export is, and what it is told: one image after another, each with one heatmap."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.audit.frame import Frame, Series
from pipeline.audit.parts import Parts
from pipeline.lake.reader import view_of
from schemas.audit import Finding
from schemas.documents import Manifest
from schemas.view import View

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Item:
    """An image of the export, and the map that goes with it.

    Attributes:
        place: its number in the export, from 0, without gaps.
        image: its row of the images table.
        row: the map's row of the maps table.
        heat: (h, w) float32, the stored grid divided by its largest absolute value: in [0, 1], in [-1, 1] of a signed
            method. Zero throughout where the map is not finite.
        density: (GRID, GRID) float32 of mean 1, or NaN throughout where the map has no mass.
        loadings: (K,) float32, the share of the map that each part explains; (0,) where there are no parts.
        measures: by name (:data:`schemas.audit.MEASURES`), with an audit also ``severity``, that of the worst finding
            that names the image; None where a measure is not defined.
        findings: those that name the image, the worst first.
        data: the encoded image, as a browser shows it in the orientation of the images table.
        kind: its format as Pillow names it: JPEG, PNG, WEBP, GIF or BMP.
        picture: its pixels, RGB.
    """

    place: int
    image: Mapping[str, Any]
    row: Mapping[str, Any]
    heat: Floats
    density: Floats
    loadings: Floats
    measures: Mapping[str, float | None]
    findings: Sequence[Finding]
    data: bytes
    kind: str
    picture: Image.Image

    @property
    def view(self) -> View:
        """What the map covers, in pixels of the picture."""
        return view_of(self.image)

    @property
    def outcome(self) -> str:
        """Whether the prediction was right, as in :data:`schemas.audit.OUTCOMES`."""
        label, predicted = self.image["label"], self.image["predicted_class"]
        if label is None or predicted is None:
            return "unknown"
        return "right" if label == predicted else "wrong"

    @property
    def tags(self) -> list[str]:
        """Kinds of the findings that name the image, and what the map is flagged with; each once."""
        flags = [flag for flag in ("all_zero", "constant", "not_finite") if self.row[flag]]
        return list(dict.fromkeys([*(finding.kind for finding in self.findings), *flags]))

    def name(self, what: str) -> str | None:
        """Return the name of the image's ``label``, ``predicted`` class or the map's ``target``; its number without."""
        row = self.row if what == "target" else self.image
        number = row["label" if what == "label" else f"{what}_class"]
        found = row[f"{what}_name"]
        return found if found is not None else None if number is None else str(number)


@dataclass(frozen=True, eq=False)
class About:
    """What holds for all items of an export.

    Attributes:
        name: of the export: its folder's.
        lake: URI of the lake.
        manifest: of the lake.
        frame: which maps were looked at.
        measures: names of the measures that items have.
        columns: the columns that items have for attributes: attribute -> name that is taken by nothing else.
        parts: those that loadings are of; None: there are none.
        audit: URI of the audit, or None.
    """

    name: str
    lake: str
    manifest: Manifest
    frame: Frame
    measures: Sequence[str]
    columns: Mapping[str, str] = field(default_factory=dict)
    parts: Parts | None = None
    audit: str | None = None

    @property
    def series(self) -> Series:
        """Method and layer of the maps."""
        return self.frame.series[self.frame.primary]

    @property
    def signed(self) -> bool:
        """Whether maps may be negative."""
        return next(info.signed for info in self.manifest.methods if info.key == self.series.method)


class Export(ABC):
    """Writes a folder that another tool reads.

    Register the module in ``schemas.registries.EXPORTS``; it defines ``EXPORT``.
    """

    #: Columns of its own, which no attribute may take.
    reserved: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def write(self, items: Iterable[Item], about: About, folder: Path) -> None:
        """Write all items into an empty folder, one after another.

        Raises:
            InputError: a library is missing that the format needs.
            OSError: the folder cannot be written.
        """

    @abstractmethod
    def how_to_open(self, folder: Path) -> str:
        """Return what to type to look at the export in ``folder``."""


def column_names(attributes: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """Return a name of letters, digits and underscores for each attribute, which is not taken; most keep their own."""
    used, found = set(taken), {}
    for attribute in attributes:
        plain = re.sub(r"\W", "_", attribute, flags=re.ASCII)
        name = plain if re.match(r"[A-Za-z]", plain) and plain not in used else f"attribute_{plain}"
        stem, number = name, 2
        while name in used:
            name, number = f"{stem}_{number}", number + 1
        used.add(name)
        found[attribute] = name
    return found


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (width, height) brought to ``side`` pixels along the longer side, each at least 1."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def scaled(view: View, before: tuple[int, int], after: tuple[int, int]) -> View:
    """Return a view of a picture of (width, height) ``before`` in pixels of the same picture of size ``after``."""
    x, y = after[0] / before[0], after[1] / before[1]
    return View(view.x0 * x, view.y0 * y, view.x1 * x, view.y1 * y)
