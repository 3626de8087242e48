"""The pictures behind findings and classes: small, within a bound in bytes, the most important ones first."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features

from pipeline.audit.findings.base import Evidence
from pipeline.audit.report.pack import clean
from pipeline.lake.enlarge import resize
from pipeline.lake.overlay import colourise, overlay
from pipeline.lake.parallel import ahead
from pipeline.lake.reader import view_of
from pipeline.lake.sheet import Fetch
from schemas.audit import ImageRef
from schemas.errors import CamlakeError, LakeError
from schemas.view import View

#: Pixels of a picture's longer side.
SIDE = 160
#: Opacity of the colours over a picture, where there is most evidence.
ALPHA = 0.6
#: Where the first so many pictures cannot be had, no other is asked for.
PROBE = 12

Key = tuple[str, str | None, int | None]


def key_of(reference: ImageRef) -> Key:
    """Return what tells a picture from others: the image, and the map that is laid over it."""
    return reference.image_id, reference.store_path, reference.store_row


@dataclass
class Montage:
    """Pictures of the page.

    Attributes:
        entries: one per picture, as it lies in the page: ``overlay`` and ``plain`` are data URIs (``plain`` only where
            there was room), ``kind`` is ``overlay``, ``heatmap`` (the picture could not be had), ``picture`` (there is
            no map) or ``none``.
        places: picture -> its place among the entries.
        missing: pictures that could not be had.
        reason: why not, of the first of them.
        left_out: references that the bound leaves out.
        used: bytes of the entries as JSON.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    places: dict[Key, int] = field(default_factory=dict)
    missing: int = 0
    reason: str = ""
    left_out: int = 0
    used: int = 0


def montage(
    evidence: Evidence,
    wanted: Iterable[ImageRef],
    *,
    most_bytes: int,
    most: int,
    fetch: Fetch | None = None,
) -> Montage:
    """Make the pictures of references, in their order, until a bound is met.

    Args:
        evidence: of the audit; its lake says where the pictures lie.
        wanted: references, the most important ones first; each picture is made once.
        most_bytes: of all entries together, as they lie in the page.
        most: pictures.
        fetch: returns the encoded bytes of an image, given its row of the images table. Default: the evidence's
            originals.
    """
    unique = list({key_of(reference): reference for reference in wanted}.values())
    if fetch is None:
        evidence.originals.hold((reference.image_id, reference.unit_id) for reference in unique[:most])
    maker = _Maker(evidence, fetch or evidence.originals.get)
    found = Montage()
    first, rest = unique[: min(PROBE, most)], unique[PROBE:most]
    if _fill(found, maker, first, most_bytes, ask=True):
        _fill(found, maker, rest, most_bytes, ask=found.missing < len(first))
    found.left_out = len(unique) - len(found.entries)
    return found


def _fill(found: Montage, maker: _Maker, part: list[ImageRef], most_bytes: int, *, ask: bool) -> bool:
    """Add pictures; return whether there was room for all."""
    made = ahead(lambda reference: maker.make(reference, ask), part)
    for reference, each in zip(part, made, strict=True):
        entry = each.entry(plain=found.used < most_bytes // 2)
        size = len(json.dumps(entry)) + 1
        if found.used + size > most_bytes:
            return False
        found.used += size
        found.places[key_of(reference)] = len(found.entries)
        found.entries.append(entry)
        if each.fault:
            found.missing += 1
            found.reason = found.reason or each.fault
    return True


@dataclass
class _Made:
    """One picture, encoded."""

    reference: ImageRef
    kind: str
    overlay: str
    plain: str
    size: tuple[int, int]
    fault: str
    about: dict[str, Any]

    def entry(self, plain: bool) -> dict[str, Any]:
        """Return it as it lies in the page."""
        return {
            "id": clean(self.reference.image_id, 160),
            "kind": self.kind,
            "overlay": self.overlay,
            "plain": self.plain if plain else "",
            "width": self.size[0],
            "height": self.size[1],
            **self.about,
        }


class _Maker:
    """Fetches, decodes and lays over; safe to share between threads."""

    def __init__(self, evidence: Evidence, fetch: Fetch) -> None:
        self._lake = evidence.lake
        self._fetch = fetch
        manifest = evidence.lake.manifest
        method = evidence.frame.series[evidence.frame.primary].method
        self._signed = next(info.signed for info in manifest.methods if info.key == method)
        self._exif = manifest.job.get("model", {}).get("preprocess", {}).get("exif", "ignore")

    def make(self, reference: ImageRef, ask: bool) -> _Made:
        """Return the picture of a reference; ``ask``: try to fetch the image."""
        about: dict[str, Any] = {}
        heat = self._heat(reference)
        picture: Image.Image | None = None
        fault = "" if ask else "the first pictures could not be had"
        view: View | None = None
        try:
            info = self._lake.image(reference.image_id, reference.unit_id)
            about = _about(info)
            if ask:
                picture, view = self._picture(info)
        except CamlakeError as error:
            fault = clean(str(error) or type(error).__name__, 300)
        if picture is not None and heat is not None and view is not None:
            laid = overlay(picture, heat, view, alpha=ALPHA, signed=self._signed, fade=True)
            return _Made(reference, "overlay", _uri(laid), _uri(picture, 55), laid.size, fault, about)
        if picture is not None:
            return _Made(reference, "picture", _uri(picture), "", picture.size, fault, about)
        if heat is not None:
            bare = Image.fromarray(colourise(resize(heat, SIDE, SIDE), self._signed))
            return _Made(reference, "heatmap", _uri(bare), "", bare.size, fault, about)
        return _Made(reference, "none", "", "", (SIDE, SIDE), fault, about)

    def _heat(self, reference: ImageRef) -> npt.NDArray[np.float32] | None:
        if reference.store_path is None or reference.store_row is None:
            return None
        # Only whether the largest value is a number matters to a scaled map.
        row = {"store_path": reference.store_path, "store_row": reference.store_row, "vmax": 1.0}
        try:
            return self._lake.heatmap(row, scaled=True)
        except CamlakeError:
            return None

    def _picture(self, info: dict[str, Any]) -> tuple[Image.Image, View | None]:
        """Return the picture at SIDE, and the view in its pixels."""
        try:
            picture = self._decoded(info)
        except CamlakeError:
            raise
        except Exception as error:  # stores and Pillow's plugins raise anything; one picture is no end
            raise LakeError(
                f"image '{info['image_id']}' cannot be read ({str(error) or type(error).__name__})"
            ) from error
        width, height = info["width"] or picture.width, info["height"] or picture.height
        if abs(picture.width * height - picture.height * width) > max(width, height) * 2:
            raise LakeError(
                f"image '{info['image_id']}' is {picture.size} pixels, and was {(width, height)} in the run; has its "
                "file changed?"
            )
        factor = SIDE / max(width, height)
        small = (max(1, round(width * factor)), max(1, round(height * factor)))
        picture = picture.convert("RGB").resize(small, Image.Resampling.LANCZOS)
        if info["view_x0"] is None:
            return picture, None
        view, x, y = view_of(info), small[0] / width, small[1] / height
        return picture, View(view.x0 * x, view.y0 * y, view.x1 * x, view.y1 * y)

    def _decoded(self, info: dict[str, Any]) -> Image.Image:
        with Image.open(io.BytesIO(self._fetch(info))) as opened:
            if opened.format == "JPEG":
                opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # decodes at a fraction of the size, many times faster
            opened.load()
            picture: Image.Image = opened.copy()
        return ImageOps.exif_transpose(picture) if self._exif == "apply" else picture


def _about(info: dict[str, Any]) -> dict[str, Any]:
    def name(kind: str, number: str) -> str:
        text = info[kind] if info[kind] is not None else info[number]
        return "" if text is None else clean(str(text), 80)

    probability = info["predicted_probability"]
    return {
        "label": name("label_name", "label"),
        "predicted": name("predicted_name", "predicted_class"),
        "probability": None if probability is None else round(float(probability), 3),
    }


def _uri(picture: Image.Image, quality: int = 68) -> str:
    buffer = io.BytesIO()
    kind = "webp" if features.check("webp") else "jpeg"
    picture.save(buffer, kind, quality=quality)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
