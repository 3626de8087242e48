"""The items of an export: maps and pictures of chosen images, unit by unit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from pipeline.audit.canonical import canonical
from pipeline.audit.exports.base import About, Item
from pipeline.audit.exports.choose import Choice
from pipeline.audit.localisation import localise
from pipeline.audit.objects import Objects
from pipeline.audit.unit import measures
from pipeline.lake import Lake
from pipeline.lake.originals import Originals
from pipeline.lake.reader import view_of
from schemas.audit import MEASURES, Finding
from schemas.errors import CamlakeError, LakeError

#: Where the first so many pictures cannot be had, no other is asked for.
PROBE = 12

_FAULTS = (CamlakeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
#: What every browser shows.
_PLAIN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_FLAGS = ("all_zero", "not_finite")


@dataclass
class Reading:
    """Reads items, and counts what could not be had.

    Attributes:
        lake: where maps and pictures are named.
        about: of the export.
        objects: where objects are.
        findings: by image.
        originals: the pictures.
        missing: images that are left out, since their picture or map cannot be had.
        reason: why, of the first of them.
        count: items so far.
    """

    lake: Lake
    about: About
    objects: Objects
    findings: Mapping[str, Sequence[Finding]]
    originals: Originals
    missing: int = 0
    reason: str = ""
    count: int = 0

    def items(self, choices: Sequence[Choice]) -> Iterator[Item]:
        """Yield the items of chosen images, in the order of units and of their tables.

        Raises:
            LakeError: a unit is damaged, or none of the first pictures can be had.
        """
        wanted: dict[str, dict[str, int | None]] = {}
        for choice in choices:
            wanted.setdefault(choice.unit_id, {})[choice.image_id] = choice.target_class
        for unit_id in sorted(wanted):
            if unit_id not in self.lake.commits:
                raise LakeError(
                    f"{self.lake.store.uri} holds no unit '{unit_id}' (any more); run the audit again with this lake"
                )
            yield from self._unit(unit_id, wanted[unit_id])

    def _unit(self, unit_id: str, wanted: Mapping[str, int | None]) -> Iterator[Item]:
        images = self.lake.unit_images(unit_id)
        images = images.filter(pc.field("image_id").isin(list(wanted)))
        rows = {row["image_id"]: row for row in images.to_pylist()}
        maps = self._maps(unit_id, wanted)
        if not len(maps):
            self._left_out(len(wanted), f"unit '{unit_id}' has no map of them by {self.about.series.method}")
            return
        stored = self.lake.stored_maps(maps, scaled=True)
        density = canonical(stored).astype(np.float32)
        values = self._measures(maps, stored, rows)
        parts = self.about.parts
        loadings = parts.load(np.nan_to_num(density)) if parts is not None else np.empty((len(maps), 0))
        heat = np.nan_to_num(stored, nan=0.0, posinf=0.0, neginf=0.0)
        places = {row["image_id"]: (number, row) for number, row in enumerate(maps.to_pylist())}
        self._left_out(len(wanted) - len(places), "they have no map that counts")
        for info, data in self.originals.stream([rows[image_id] for image_id in rows if image_id in places]):
            number, row = places[info["image_id"]]
            try:
                if isinstance(data, CamlakeError):
                    raise data
                shown, kind, picture = self._decoded(info, data)
            except _FAULTS as error:
                self._left_out(1, str(error) or type(error).__name__)
                if not self.count and self.missing >= PROBE:
                    raise LakeError(
                        f"none of the first {self.missing} pictures can be had ({self.reason}); the source's options "
                        "are given with --source-storage"
                    ) from error
                continue
            self.count += 1
            yield Item(
                place=self.count - 1,
                image=info,
                row=row,
                heat=heat[number],
                density=density[number],
                loadings=loadings[number].astype(np.float32),
                measures=values[number],
                findings=self.findings.get(info["image_id"], ()),
                data=shown,
                kind=kind,
                picture=picture,
            )

    def _left_out(self, count: int, reason: str) -> None:
        if count:
            self.missing += count
            self.reason = self.reason or reason

    def _maps(self, unit_id: str, wanted: Mapping[str, int | None]) -> pa.Table:
        """Return one row of the maps table per image: of the wanted class, of the predicted one, or the best scored."""
        series = self.about.series
        table = self.lake.unit_maps(unit_id)
        of_series = (pc.field("method") == series.method) & (pc.field("layer") == series.layer)
        table = table.filter(of_series & pc.field("image_id").isin(list(wanted)))
        found: dict[str, tuple[tuple[bool, bool, int], int]] = {}
        columns = zip(
            *(table[name].to_pylist() for name in ("image_id", "target_class", "is_predicted", "target_rank")),
            strict=True,
        )
        for number, (image_id, target, predicted, rank) in enumerate(columns):
            order = (target != wanted[image_id], not predicted, rank)
            if image_id not in found or order < found[image_id][0]:
                found[image_id] = order, number
        return table.take(pa.array(sorted(number for _, number in found.values()), pa.int64()))

    def _measures(self, maps: pa.Table, stored: Any, rows: Mapping[str, Any]) -> list[dict[str, float | None]]:
        values = measures(maps)
        source = self.objects.source
        if source is not None:
            masks = []
            for image_id, target in zip(maps["image_id"].to_pylist(), maps["target_class"].to_pylist(), strict=True):
                name = None if self.about.frame.class_names is None else self.about.frame.name(target)
                region = source.region(rows[image_id], target, name)
                masks.append(None if region is None else region.in_view(view_of(rows[image_id])))
            names = [measure.name for measure in MEASURES]
            for name, column in localise(stored, masks).items():
                values[:, names.index(name)] = column
        for flag in _FLAGS:
            values[maps[flag].to_numpy().astype(np.bool_)] = np.nan
        found = []
        for image_id, row in zip(maps["image_id"].to_pylist(), values.tolist(), strict=True):
            named = dict(zip((measure.name for measure in MEASURES), row, strict=True))
            named["severity"] = max((finding.severity for finding in self.findings.get(image_id, ())), default=np.nan)
            found.append({name: named[name] if np.isfinite(named[name]) else None for name in self.about.measures})
        return found

    def _decoded(self, info: Mapping[str, Any], data: bytes) -> tuple[bytes, str, Image.Image]:
        """Return the image as a browser shows it, its format, and its pixels."""
        with Image.open(io.BytesIO(data)) as opened:
            kind, mode = str(opened.format), opened.mode
            opened.load()
            picture: Image.Image = opened.copy()
        turned = info["exif_orientation"] not in (None, 1)
        if self.lake.manifest.job.get("model", {}).get("preprocess", {}).get("exif", "ignore") == "apply":
            picture, turned = ImageOps.exif_transpose(picture), False
        if picture.size != (info["width"], info["height"]):
            raise LakeError(
                f"image '{info['image_id']}' is {picture.size} pixels, and was {(info['width'], info['height'])} in "
                "the run; has its file changed?"
            )
        picture = picture.convert("RGB")
        if kind in _PLAIN and mode in _MODES and not turned:
            return data, kind, picture
        # A browser would not show it, or would turn it where the model did not, and the map would lie elsewhere.
        picture.info.clear()
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue(), "PNG", picture
