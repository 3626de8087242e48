"""The causal check of the stickers themselves, whatever the findings: the same question of any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from benchmarks.sticker_networks import PLAIN
from jobs.demo.scenes import Scene
from pipeline.audit.causal import area_of, judged, measure, zone_of
from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.frame import make_frame
from pipeline.audit.model import LakeModel, load_model
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, ImageRef, Settings

#: Share of a sticker's cells that a spot must cover to be on it.
_ON = 0.3


def verdict(lake_uri: str, scenes: Sequence[Scene], images: int = 64) -> dict[str, Any] | None:
    """Paint over the stickers of images with their class, and areas of the same form elsewhere.

    Args:
        lake_uri: of the lake of the scenes.
        scenes: in the order of the shards.
        images: looked at, at most.

    Returns:
        ``images`` looked at, ``used``, ``unused`` (as sure as the audit wants to be), ``change`` and ``control`` of the
        probability, and the interval ``low``, ``high`` of their difference; None of too few images.
    """
    evidence, model = _asked(lake_uri)
    sample = evidence.sample
    mine = sample.filter(pc.equal(sample["target_class"], PLAIN.sticker_class))
    marked = [scene_of(image, scenes).sticker is not None for image in mine["image_id"].to_pylist()]
    return _judged(evidence, model, image_refs(mine.filter(marked), most=images), scenes)


def verdict_where_shown(lake_uri: str, scenes: Sequence[Scene], finding: Finding) -> dict[str, Any] | None:
    """Ask the same of those images behind a finding whose spot, as the audit paints over it, lies on the sticker.

    A sticker that does nothing on average may do something in some images; these are they, if the maps are right.

    Args:
        lake_uri: of the lake of the scenes.
        scenes: in the order of the shards.
        finding: of a place.

    Returns:
        As :func:`verdict`, and ``behind``, the number of images behind the finding.
    """
    zone = zone_of(finding)
    if zone is None:
        return None
    evidence, model = _asked(lake_uri)
    shown: list[ImageRef] = []

    def area(reference: ImageRef, density: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        painted, sticker = area_of(density, zone), cells_of(scene_of(reference.image_id, scenes))
        if sticker.any() and (painted & sticker).sum() >= _ON * sticker.sum():
            shown.append(reference)
        return painted

    measure(evidence, model, finding.images, area)
    found = _judged(evidence, model, shown, scenes)
    return None if found is None else found | {"behind": len(finding.images)}


def _asked(lake_uri: str) -> tuple[Evidence, LakeModel]:
    lake = open_lake(lake_uri)
    frame = make_frame(lake, Settings())
    state = State(frame)
    for unit_id in lake.commits:
        add_unit(state, lake, unit_id, None)
    return Evidence(frame, state, lake, state.sample.table), load_model(lake)


def _judged(
    evidence: Evidence, model: LakeModel, references: Sequence[ImageRef], scenes: Sequence[Scene]
) -> dict[str, Any] | None:
    odds, _ = measure(
        evidence, model, references, lambda reference, density: cells_of(scene_of(reference.image_id, scenes))
    )
    if odds is None:
        return None
    finding = Finding(
        finding_id="x", kind="shortcut", title="Sticker", sentence="It is there.", severity=50, n=len(references)
    )
    checked = judged(finding, odds.before, odds.after, odds.control, odds.equal)
    assert checked.causal is not None
    known: dict[str, Any] = checked.causal.model_dump()
    return known | {"unused": checked.details["causal_unused"]}


def scene_of(image_id: str, scenes: Sequence[Scene]) -> Scene:
    """Return the scene of an image, whose id ends with its number."""
    return scenes[int(image_id.rsplit("-", 1)[1])]


def cells_of(scene: Scene) -> npt.NDArray[np.bool_]:
    """Return the cells (GRID, GRID) that a scene's sticker touches."""
    cells = np.zeros((GRID, GRID), np.bool_)
    if scene.sticker is not None:
        scale = GRID / len(scene.masks)
        x0, y0, x1, y1 = (each * scale for each in scene.sticker)
        cells[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return cells
