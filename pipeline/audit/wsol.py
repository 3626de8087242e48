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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.components import LEVELS, Components, boxes_of, components, overlap, scores
from pipeline.audit.fixed import SCALAR_BITS, Integers, fixed, floating
from pipeline.audit.frame import Frame
from pipeline.audit.keys import keys_of
from pipeline.audit.localisation import Floats, bell, localise
from pipeline.audit.regions.base import PIXELS, Mask, Region, RegionSource, in_parts
from pipeline.audit.unit import counted
from pipeline.lake import Lake
from pipeline.lake.reader import view_of
from schemas.view import View

#: Overlaps (intersection over union) from which a box counts as found, in MaxBoxAccV2; MaxBoxAcc takes the second.
DELTAS = (0.3, 0.5, 0.7)
#: Bins of the histogram of scores.
BINS = 1000

#: What is averaged over maps, beside the pointing game, which is averaged over classes.
_MEANS = ("energy", "area", "enrichment", "rank_accuracy", "skill")
_BASELINE = "centre_gaussian"

#: One row per method and layer, and one of a centred Gaussian in place of each map (``centre_gaussian``).
LOCALISATION = pa.schema(
    [
        pa.field("method", pa.string(), False),
        pa.field("layer", pa.string(), False),
        pa.field("maps", pa.int64(), False),
        pa.field("classes", pa.int64(), False),
        pa.field("pointing", pa.float64()),
        *(pa.field(name, pa.float64()) for name in _MEANS),
        pa.field("max_box_acc", pa.float64()),
        pa.field("max_box_acc_v2", pa.float64()),
        *(pa.field(f"max_box_acc_v2_{round(100 * delta)}", pa.float64()) for delta in DELTAS),
        pa.field("px_ap", pa.float64()),
    ]
)


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
    totals: dict[str, Integers] = field(default_factory=lambda: {name: np.zeros(2, np.int64) for name in _MEANS})

    def add(
        self,
        maps: npt.NDArray[np.floating[Any]],
        masks: Sequence[Mask],
        boxes: Sequence[Floats],
        classes: Sequence[int],
        parts: Components | None = None,
    ) -> None:
        """Add maps (T, h, w) with their regions, objects' boxes (n, 4) and classes; ``parts`` where all are known."""
        measured = localise(maps, masks)
        for name in _MEANS:
            values = measured[name]
            self.totals[name] += [int(fixed(values, SCALAR_BITS).sum()), int(np.isfinite(values).sum())]
        for each, hit in zip(classes, measured["pointing"].tolist(), strict=True):
            if np.isfinite(hit):
                self.hits[each] = self.hits.get(each, np.zeros(2, np.int64)) + np.array([int(hit), 1])
        for row, (mask, truth) in enumerate(zip(masks, boxes, strict=True)):
            score = scores(maps[row : row + 1])[0]
            bins = np.floor(score * BINS).astype(np.int64)
            held = np.bincount(bins[mask], minlength=BINS + 1)
            self.inside += held
            self.outside += np.bincount(bins.ravel(), minlength=BINS + 1) - held
            self.maps += 1
            if len(truth):
                self.boxed += 1
                self._add_boxes(components(score) if parts is None else parts, truth)

    def _add_boxes(self, parts: Components, truth: Floats) -> None:
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
        """Return the columns of :data:`LOCALISATION` but for the names; shares are in [0, 1], None of nothing."""
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


# Over a lake ------------------------------------------------------------------------------------------------------


def localisation_table(lake: Lake, frame: Frame, regions: RegionSource, most_images: int = 1000) -> pa.Table:
    """Return how well each method finds the objects, on a sample of images whose objects are known.

    The maps are those that the settings choose: ``targets="label"`` gives what the literature calls GT-known. Images
    are chosen by the hash of their ids, so that the sample is the same for the same lake and seed.

    Args:
        lake: the lake.
        frame: the audit's settings, resolved.
        regions: where the objects are.
        most_images: size of the sample; of smaller lakes, all.

    Returns:
        :data:`LOCALISATION`; no row where no object is known.

    Raises:
        InputError: what is said about an image makes no sense, or scipy is missing.
        LakeError: an object of the lake is missing or damaged.
    """
    found = [Found() for _ in frame.series]
    baseline = Found()
    units = sorted(lake.commits)
    units = [units[place] for place in np.argsort(keys_of(units, frame.settings.seed), kind="stable").tolist()]
    wanted = min(len(units), max(64, most_images // 16))
    each = -(-most_images // max(1, wanted))
    taken = 0
    # Where objects are known of few images only, the search ends some time.
    for unit_id in units[: 4 * wanted]:
        if taken >= most_images:
            break
        taken += _add_unit(lake, frame, regions, unit_id, min(each, most_images - taken), found, baseline)
    names = [(each.method, each.layer) for each in frame.series] + [(_BASELINE, "")]
    rows = [
        {"method": method, "layer": layer} | sums.row()
        for (method, layer), sums in zip(names, [*found, baseline], strict=True)
        if sums.maps
    ]
    return pa.Table.from_pylist(rows, schema=LOCALISATION)


class _Known(NamedTuple):
    """Maps of a unit whose regions are known: rows of its maps table, by series alike."""

    rows: list[int]
    masks: list[Mask]
    boxes: list[Floats]
    classes: list[int]


def _add_unit(
    lake: Lake, frame: Frame, regions: RegionSource, unit_id: str, most: int, found: list[Found], baseline: Found
) -> int:
    """Add up to ``most`` images of a unit; return how many were added."""
    maps = lake.unit_maps(unit_id)
    maps = maps.filter(counted(maps, frame.settings.targets))
    parts = [
        maps.filter((pc.field("method") == series.method) & (pc.field("layer") == series.layer))
        for series in frame.series
    ]
    known, taken = _known_maps(lake.unit_images(unit_id), parts[frame.primary], frame, regions, most)
    if taken:
        # Methods have the same targets, row by row, which the audit's pass over all units has seen to.
        for part, sums in zip(parts, found, strict=True):
            stored = lake.stored_maps(part.take(pa.array(known.rows)), scaled=True)
            sums.add(stored, known.masks, known.boxes, known.classes)
        prior = np.broadcast_to(_prior(), (len(known.rows), PIXELS, PIXELS))
        baseline.add(prior, known.masks, known.boxes, known.classes, _prior_parts())
    return taken


def _known_maps(images: pa.Table, part: pa.Table, frame: Frame, regions: RegionSource, most: int) -> tuple[_Known, int]:
    """Return the maps of up to ``most`` images whose objects are known, and how many images they are of."""
    rows: dict[str, list[int]] = {}
    for row, image_id in enumerate(part["image_id"].to_pylist()):
        rows.setdefault(image_id, []).append(row)
    ids, targets = images["image_id"].to_pylist(), part["target_class"].to_pylist()
    known, taken = _Known([], [], [], []), 0
    for place in np.argsort(keys_of(ids, frame.settings.seed), kind="stable").tolist():
        if taken == most:
            break
        if ids[place] not in rows:
            continue
        image = images.slice(place, 1).to_pylist()[0]
        view, before = view_of(image), len(known.rows)
        for row in rows[ids[place]]:
            name = None if frame.class_names is None else frame.name(targets[row])
            region = regions.region(image, targets[row], name)
            if region is None or not (mask := region.in_view(view)).any():
                continue
            known.rows.append(row)
            known.masks.append(mask)
            known.boxes.append(outlines(region, view))
            known.classes.append(targets[row])
        taken += len(known.rows) > before
    return known, taken


def _prior() -> Floats:
    return np.outer(bell(), bell())


@cache
def _prior_parts() -> Components:
    return components(scores(_prior()[None])[0])
