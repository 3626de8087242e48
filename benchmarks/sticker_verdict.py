"""The causal check of stickers, whatever the findings: the same areas of the same images for any network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.inputs import say
from benchmarks.sticker_networks import PLAIN
from jobs.demo.scenes import Scene
from pipeline.audit.causal import check_findings
from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.frame import make_frame
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, Settings

_REACH = 4  # cells that a sticker in a corner reaches


def verdict(lake_uri: str, scenes: Sequence[Scene], images: int = 32) -> dict[str, Any]:
    """Check the corner that most stickers of a lake are in, on their images of the sticker's class.

    Args:
        lake_uri: of the lake of the scenes.
        scenes: in the order of the shards.
        images: looked at, at most.

    Returns:
        ``upper`` and ``left``: the corner; ``images`` looked at, ``used``, ``change`` and ``control`` of the
        probability, and the interval ``low``, ``high`` of their difference.
    """
    lake = open_lake(lake_uri)
    frame = make_frame(lake, Settings(method="grad_cam"))
    state = State(frame)
    for unit_id in lake.commits:
        add_unit(state, lake, unit_id, None)
    sample = state.sample.table
    mine = [
        _corner(scenes[int(image[-6:])]) if target == PLAIN.sticker_class else None
        for image, target in zip(sample["image_id"].to_pylist(), sample["target_class"].to_pylist(), strict=True)
    ]
    ((most, _),) = Counter(corner for corner in mine if corner).most_common(1)
    zone = np.zeros((GRID, GRID), np.int64)
    rows, columns = (slice(0, _REACH) if near else slice(GRID - _REACH, GRID) for near in most)
    zone[rows, columns] = 1
    references = image_refs(sample.filter(pa.array([corner == most for corner in mine])), most=images)
    finding = Finding(
        finding_id="sticker",
        kind="shortcut",
        title="The sticker",
        sentence="It is there.",
        severity=50.0,
        target_class=PLAIN.sticker_class,
        n=len(references),
        images=references,
        details={"zone": zone.tolist()},
    )
    (checked,) = check_findings(Evidence(frame, state, lake, sample), [finding], images=images, say=say)
    if checked.causal is None:
        return {"upper": most[0], "left": most[1], "images": 0, "used": False}
    found: dict[str, Any] = checked.causal.model_dump()
    return {"upper": most[0], "left": most[1]} | found


def _corner(scene: Scene) -> tuple[bool, bool] | None:
    """Return whether a scene's sticker is in the upper half, and in the left half."""
    if scene.sticker is None:
        return None
    x0, y0, x1, y1 = scene.sticker
    height, width = scene.masks.shape
    return y0 + y1 < height, x0 + x1 < width
