"""The causal check of the stickers themselves, whatever the findings: the same question of any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from benchmarks.sticker_networks import PLAIN
from jobs.demo.scenes import Scene
from pipeline.audit.causal import judged, measure
from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.frame import make_frame
from pipeline.audit.model import load_model
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, Settings


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
    lake = open_lake(lake_uri)
    frame = make_frame(lake, Settings())
    state = State(frame)
    for unit_id in lake.commits:
        add_unit(state, lake, unit_id, None)
    sample = state.sample.table
    mine = sample.filter(pc.equal(sample["target_class"], PLAIN.sticker_class))
    marked = [scene_of(image, scenes).sticker is not None for image in mine["image_id"].to_pylist()]
    references = image_refs(mine.filter(marked), most=images)
    odds, _ = measure(
        Evidence(frame, state, lake, sample),
        load_model(lake),
        references,
        lambda reference, density: cells_of(scene_of(reference.image_id, scenes)),
    )
    if odds is None:
        return None
    finding = Finding(finding_id="x", kind="shortcut", title="Sticker", sentence="It is there.", severity=50, n=images)
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
