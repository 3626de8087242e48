"""How well maps find objects, as detectors are measured: MaxBoxAcc, MaxBoxAccV2 and PxAP.

The definitions are those of Choe et al. ("Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020)
and their wsolevaluation. A score map is the stored map, enlarged bilinearly to the view (there: bicubically) and
brought to [0, 1] by its own minimum and maximum; maps that are constant or not finite become 0 and are misses. Pixel i
is the interval [i, i + 1) (there: the point i, with 1 added to each length). Holes make no boxes of their own (there
they do), and the largest part is the one of most pixels (there: of the largest area within its contour).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.components import LEVELS, Components, boxes_of, components, overlap, scores
from pipeline.audit.fixed import SCALAR_BITS, Integers, fixed, floating
from pipeline.audit.localisation import Floats, bell, localise, localise_prior
from pipeline.audit.regions.base import PIXELS, Mask, Region, in_parts
from schemas.view import View

#: Overlaps (intersection over union) from which a box counts as found, in MaxBoxAccV2; MaxBoxAcc takes the second.
DELTAS = (0.3, 0.5, 0.7)
#: Bins of the histogram of scores.
BINS = 1000

#: What is averaged over maps, beside the pointing game, which is averaged over classes.
MEANS = ("energy", "area", "enrichment", "rank_accuracy", "skill")


def outlines(region: Region, view: View) -> Floats:
    """Return the boxes (n, 4) of a region's objects in pixels of the view, clipped to it; those outside are left out.

    Where a region has no boxes, each connected part of it is an object.
    """
    around = region.outlines or region.boxes
    if not around:
        return boxes_of(region.in_view(view))[0].astype(np.float64)
    corners = np.asarray(around, np.float64).reshape(-1, 2)
    boxes = np.clip(in_parts(corners, view, PIXELS), 0, PIXELS).reshape(-1, 4)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@dataclass
class Found:
    """Sums over maps of one kind, all integers: they merge in any order.

    ``maps``; ``boxed`` of them with boxes; ``best`` (deltas, levels) and ``largest`` (levels,): maps of which any part,
    the largest part, overlaps an object enough; ``inside`` and ``outside`` (BINS + 1,): pixels by score; ``hits``
    class -> [hits, maps with a peak]; ``totals`` measure -> [sum, maps].
    """

    maps: int = 0
    boxed: int = 0
    best: Integers = field(default_factory=lambda: np.zeros((len(DELTAS), LEVELS), np.int64))
    largest: Integers = field(default_factory=lambda: np.zeros(LEVELS, np.int64))
    inside: Integers = field(default_factory=lambda: np.zeros(BINS + 1, np.int64))
    outside: Integers = field(default_factory=lambda: np.zeros(BINS + 1, np.int64))
    hits: dict[int, Integers] = field(default_factory=dict)
    totals: dict[str, Integers] = field(default_factory=lambda: {name: np.zeros(2, np.int64) for name in MEANS})

    def add(
        self,
        maps: npt.NDArray[np.floating[Any]],
        masks: Sequence[Mask],
        boxes: Sequence[Floats],
        classes: Sequence[int],
    ) -> None:
        """Add maps (T, h, w) with their regions, none empty, objects' boxes (n, 4) and classes."""
        self._add_measures(localise(maps, masks), classes)
        for row, (mask, truth) in enumerate(zip(masks, boxes, strict=True)):
            score = scores(maps[row : row + 1])[0]
            self._add_pixels(binned(score), mask)
            if len(truth):
                self._add_boxes(components(score), truth)

    def add_prior(self, masks: Sequence[Mask], boxes: Sequence[Floats], classes: Sequence[int]) -> None:
        """Add the centred Gaussian in place of each map."""
        self._add_measures(localise_prior(masks), classes)
        bins, parts = _prior()
        for mask, truth in zip(masks, boxes, strict=True):
            self._add_pixels(bins, mask)
            if len(truth):
                self._add_boxes(parts, truth)

    def _add_measures(self, measured: dict[str, Floats], classes: Sequence[int]) -> None:
        for name in MEANS:
            values = measured[name]
            self.totals[name] += [int(fixed(values, SCALAR_BITS).sum()), int(np.isfinite(values).sum())]
        for each, hit in zip(classes, measured["pointing"].tolist(), strict=True):
            if np.isfinite(hit):
                self.hits[each] = self.hits.get(each, np.zeros(2, np.int64)) + np.array([int(hit), 1])

    def _add_pixels(self, bins: Integers, mask: Mask) -> None:
        self.maps += 1
        held = np.bincount(bins[mask], minlength=BINS + 1)
        self.inside += held
        self.outside += np.bincount(bins.ravel(), minlength=BINS + 1) - held

    def _add_boxes(self, parts: Components, truth: Floats) -> None:
        self.boxed += 1
        overlaps = overlap(parts.boxes, truth).max(1)
        best = np.zeros(LEVELS)
        np.maximum.at(best, parts.level, overlaps)
        self.best += best >= np.array(DELTAS)[:, None]
        self.largest[parts.level[parts.largest]] += overlaps[parts.largest] >= DELTAS[1]

    def merge(self, other: Found) -> None:
        """Add another's sums."""
        self.maps += other.maps
        self.boxed += other.boxed
        for name in ("best", "largest", "inside", "outside"):
            np.add(getattr(self, name), getattr(other, name), out=getattr(self, name))
        for name, total in other.totals.items():
            self.totals[name] += total
        for target, hits in other.hits.items():
            self.hits[target] = self.hits.get(target, np.zeros(2, np.int64)) + hits

    def row(self) -> dict[str, int | float | None]:
        """Return the columns of :data:`schemas.audit.LOCALISATION` but for the names; None where there is nothing."""
        v2 = [_share(int(each.max()), self.boxed) for each in self.best]
        found: dict[str, int | float | None] = {"maps": self.maps, "classes": len(self.hits)}
        rates = [hits / maps for _, (hits, maps) in sorted(self.hits.items())]
        found["pointing"] = float(np.mean(rates)) if rates else None
        for name, (total, count) in self.totals.items():
            found[name] = _share(float(floating(total, SCALAR_BITS)), int(count))
        found["max_box_acc"] = _share(int(self.largest.max()), self.boxed)
        found["max_box_acc_v2"] = None if not self.boxed else float(np.mean(np.array(v2, np.float64)))
        found |= {f"max_box_acc_v2_{round(100 * delta)}": each for delta, each in zip(DELTAS, v2, strict=True)}
        return found | {"px_ap": self.px_ap()}

    def px_ap(self) -> float | None:
        """Return the area under precision and recall of pixels over all thresholds; None without a pixel inside."""
        true, false = (np.cumsum(each[::-1]).astype(np.float64) for each in (self.inside, self.outside))
        if not true[-1]:
            return None
        precision = true / np.maximum(true + false, 1)
        return float((precision * np.diff(true / true[-1], prepend=0.0)).sum())


def _share(total: float, count: int) -> float | None:
    return total / count if count else None


def binned(score: Floats) -> Integers:
    """Return the bin of each pixel of a score map."""
    return np.floor(score * BINS).astype(np.int64)


@cache
def _prior() -> tuple[Integers, Components]:
    """Return bins and parts of the centred Gaussian as a score map."""
    score = scores(np.outer(bell(), bell())[None])[0]
    return binned(score), components(score)
