"""Images whose map is far from what is usual for its class: odd images, marks that only a few carry, wrong labels.

Of a map, the root of each cell's density is compared with the class's median there, in units of the class's spread:
1.4826 median absolute deviations, or what the upper 5% say where that is more (objects that wander leave a cell empty
most of the time), floored, since a cell that is always empty has none. The largest of these robust z-scores (Iglewicz
and Hoaglin 1993) says how unusual a map is. How large it gets among usual maps depends on the dataset, so what counts
is how far its logarithm lies from that of the sample's other maps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.parts import sample_maps
from pipeline.audit.places import where
from schemas.audit import GRID, Finding

Floats = npt.NDArray[np.float64]

MOST = 50
#: Least spread of a cell, as the root of a density whose mean is 1.
_FLOOR = 0.25
_TO_DEVIATION = 1.4826
_UPPER = 1.645  # standard deviations above the mean of a normal 95% quantile
#: Robust deviations of the logarithm from its median; its upper tail is longer than a normal one.
_BEYOND = 6.5
_LEAST_Z = 8.0


def unusual(
    maps: npt.NDArray[np.floating[Any]], target: npt.NDArray[np.int64], least: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the largest robust z (T,) of each map's cells, NaN for classes of fewer than ``least`` maps; and its cell.

    Args:
        maps: (T, GRID, GRID) of mean 1.
        target: (T,) classes.
        least: maps that a class must have.
    """
    found, cell = np.full(len(maps), np.nan), np.zeros(len(maps), np.int64)
    roots = np.sqrt(np.maximum(maps.reshape(len(maps), GRID**2), 0))
    order = np.argsort(target, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(target[order])) + 1):
        if len(rows) < least:
            continue
        mine = roots[rows]
        middle = np.median(mine, axis=0)
        upper = (np.quantile(mine, 0.95, axis=0) - middle) / _UPPER
        spread = np.maximum(np.maximum(_TO_DEVIATION * np.median(np.abs(mine - middle), axis=0), upper), _FLOOR)
        z = (mine - middle) / spread
        found[rows], cell[rows] = z.max(1), z.argmax(1)
    return found, cell


def threshold(z: Floats) -> float:
    """Return the z beyond which a map is an outlier among the others."""
    logs = np.log(np.maximum(z[np.isfinite(z)], 1e-3))
    if not len(logs):
        return float("inf")
    middle = np.median(logs)
    deviation = _TO_DEVIATION * np.median(np.abs(logs - middle))
    return max(_LEAST_Z, float(np.exp(middle + _BEYOND * deviation)))


class Novelty(FindingKind):
    """Images whose map is unlike the others of its class."""

    name = "novelty"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return one finding with the most unusual images, at most 50; none where nothing sticks out."""
        sample, settings = evidence.sample, evidence.frame.settings
        if not len(sample):
            return []
        maps = sample_maps(sample)
        z, cell = unusual(maps, sample["target_class"].to_numpy(), settings.interval_from)
        least = threshold(z)
        odd = np.flatnonzero(np.nan_to_num(z) > least)
        if not len(odd):
            return []
        odd = odd[np.argsort(-z[odd], kind="stable")]
        judged = int(np.isfinite(z).sum())
        shown = odd[:MOST]
        references = image_refs(sample.take(pa.array(shown)), most=MOST)
        share = len(odd) / judged
        return [
            Finding(
                finding_id="novelty",
                kind=self.name,
                title=f"{len(odd)} image{'s' if len(odd) > 1 else ''} looked at in an unusual place",
                sentence=(
                    f"In {len(odd)} of {judged} images the model looks where it hardly ever looks for the same class: "
                    "these may be odd or wrongly labelled images, or carry a mark that few others have."
                ),
                remedy="Look at them, the most unusual first; correct or remove what does not belong.",
                # There are always a few: it is the single image that is wrong, not the dataset.
                severity=severity(0.3 + 0.7 * min(1.0, 20 * share), 0.4),
                effect=float(len(odd)),
                effect_name="count",
                n=judged,
                images=tuple(
                    reference.model_copy(update={"note": _note(int(cell[row]), float(z[row]))})
                    for reference, row in zip(references, shown.tolist(), strict=True)
                ),
                details={"threshold": least, "share": share},
            )
        ]


def _note(cell: int, z: float) -> str:
    y, x = divmod(cell, GRID)
    place = where((y + 0.5) / GRID, (x + 0.5) / GRID)
    return f"looks at {place}, {z:.0f} deviations from usual"


KIND = Novelty
