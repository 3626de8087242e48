"""Attention off the object: classes whose maps find their objects worse than other classes' maps do.

A map's energy on the object grows with the object, so classes are compared at equal area: the energy that is expected
of a class is what other classes' maps have on objects of the same size, weighed by the sizes of its own objects (direct
standardisation over the bins of the area's histogram).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.cells import Cell
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.intervals import (
    benjamini_hochberg,
    bootstrap_error,
    bootstrap_p,
    effective_number,
    percentile_interval,
    two_sided,
    wilson,
)
from schemas.audit import BINS, MEASURE_INDEX, Finding

_ENERGY, _AREA, _ENRICHMENT, _POINTING = (MEASURE_INDEX[name] for name in ("energy", "area", "enrichment", "pointing"))
#: Fewer maps of other classes in a bin say nothing; and the share of a class's maps that must lie in bins that speak.
_LEAST_IN_BIN = 5
_COVERED = 0.8
#: Standard errors on each side of an interval of 95%.
_Z = 1.959964
#: Objects that cover more of the view leave a map little room to be elsewhere.
_LARGE = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Comparison:
    """A class against the others at equal area; ``difference`` is energy minus ``expected``."""

    target_class: int
    cell: Cell
    energy: float
    area: float
    expected: float
    low: float
    high: float
    p: float
    reference_n: int

    @property
    def difference(self) -> float:
        return self.energy - self.expected

    @property
    def kept(self) -> float:
        """How much of the gain over chance that other classes have this one has, 1 where they have none."""
        usual = self.expected - self.area
        return (self.energy - self.area) / usual if usual > 0 else 1.0


class _Bins:
    """Energy by area of object in the sample: maps, sum and sum of squares, (classes, BINS)."""

    def __init__(self, sample: pa.Table) -> None:
        energy, area = (sample[name].to_numpy().astype(np.float64) for name in ("energy", "area"))
        sound = np.isfinite(energy) & np.isfinite(area)
        self.classes, codes = np.unique(sample["target_class"].to_numpy()[sound], return_inverse=True)
        place = codes * BINS + np.clip(np.floor(area[sound] * BINS), 0, BINS - 1).astype(np.int64)
        shape = (len(self.classes), BINS)

        def summed(weights: Floats) -> Floats:
            return np.bincount(place, weights, shape[0] * BINS).astype(np.float64).reshape(shape)

        self.count, self.total = summed(np.ones(len(place))), summed(energy[sound])
        self.square = summed(energy[sound] ** 2)
        # Once for all: of thousands of classes each would sum over all others.
        self.sums = [each.sum(0) for each in (self.count, self.total, self.square)]

    def others(self, target_class: int) -> tuple[Floats, Floats, Floats]:
        """Return (maps, mean, variance of the mean) of the other classes' energy in each bin (BINS,)."""
        own = np.flatnonzero(self.classes == target_class)
        count, total, square = (
            whole - part[own].sum(0)
            for whole, part in zip(self.sums, (self.count, self.total, self.square), strict=True)
        )
        some = np.maximum(count, 1)
        mean = total / some
        variance = np.maximum(square / some - mean**2, 0) * some / np.maximum(count - 1, 1)
        return count, mean, variance / some


class OffObject(FindingKind):
    """Classes, or the whole lake, whose maps lie off the objects."""

    name = "off_object"

    def find(self, evidence: Evidence) -> list[Finding]:
        """See :meth:`FindingKind.find`; nothing where no object's place is known."""
        settings = evidence.frame.settings
        bins = _Bins(evidence.sample)
        tested = [
            compared
            for target in evidence.classes
            if (cell := evidence.cell(target)) is not None and cell.count(_ENERGY) >= settings.flagged_from
            if (compared := _compare(target, cell, bins)) is not None
        ]
        found = _everywhere(evidence)
        for each, q in zip(tested, benjamini_hochberg([each.p for each in tested]).tolist(), strict=True):
            large = each.difference <= -settings.effect_energy and each.kept * settings.effect_ratio <= 1
            if large and q < settings.q:
                found.append(_finding(evidence, each, q))
        return found


def _compare(target: int, cell: Cell, bins: _Bins) -> _Comparison | None:
    """Return a class beside the others; None where they have no objects of such sizes."""
    count, means, variances = bins.others(target)
    speaks = count >= _LEAST_IN_BIN
    weights = cell.sums["histogram"][_AREA].astype(np.float64)
    if not weights.sum() or weights[speaks].sum() < _COVERED * weights.sum():
        return None
    weights /= weights.sum()
    centres = np.arange(BINS)
    # The few objects of sizes that others lack are held against the nearest sizes.
    expected = float(weights @ np.interp(centres, centres[speaks], means[speaks]))
    error = float(np.sqrt(weights[speaks] ** 2 @ variances[speaks]))
    energy, resampled = cell.mean(_ENERGY), cell.resampled_means(_ENERGY)
    low, high = percentile_interval(resampled)
    difference = energy - expected
    whole = float(np.hypot(bootstrap_error(resampled), error))
    freedom = min(effective_number(cell.count(_ENERGY), cell.sums["drawn"][:, _ENERGY]), len(resampled)) - 1
    return _Comparison(
        target,
        cell,
        energy,
        cell.mean(_AREA),
        expected,
        difference - float(np.hypot(energy - low, _Z * error)),
        difference + float(np.hypot(high - energy, _Z * error)),
        float(two_sided(difference / whole, freedom)) if whole else float(difference == 0),
        int(count.sum()),
    )


def _finding(evidence: Evidence, each: _Comparison, q: float) -> Finding:
    name = evidence.frame.name(each.target_class)
    # The least enrichment first: a low energy alone may be a small object's.
    rows = evidence.sample.filter(pc.equal(evidence.sample["target_class"], each.target_class))
    return Finding(
        finding_id=f"{OffObject.name}:{each.target_class}",
        kind=OffObject.name,
        title=f"Attention off the object: {name}",
        sentence=(
            f"Heatmaps of '{name}' have {each.energy:.0%} of their weight on the object, while those of other classes "
            f"have {each.expected:.0%} on objects of the same size: the model decides on '{name}' by what is around it "
            "more than it does elsewhere."
        ),
        remedy=(
            f"Look at the images: if something else is in most pictures of '{name}', collect some without it, or "
            "objects on other backgrounds."
        ),
        severity=severity(-each.difference / each.expected, 0.7),
        target_class=each.target_class,
        target_name=name,
        measure="energy",
        effect=each.difference,
        effect_name="difference",
        low=each.low,
        high=each.high,
        p=each.p,
        q=q,
        n=each.cell.count(_ENERGY),
        reference_n=each.reference_n,
        images=image_refs(_worst(rows), "little weight on the object"),
        details={"expected": each.expected, "share_of_usual_gain": each.kept} | _numbers(each.cell),
    )


def _everywhere(evidence: Evidence) -> list[Finding]:
    """Return a finding about the whole lake where its maps lie no more on the objects than uniform maps would."""
    settings, cell = evidence.frame.settings, evidence.cell()
    if cell is None or cell.count(_ENERGY) < settings.flagged_from or cell.mean(_AREA) > _LARGE:
        return []
    gain = cell.mean(_ENERGY) - cell.mean(_AREA)
    resampled = cell.resampled_means(_ENERGY) - cell.resampled_means(_AREA)
    low, high = percentile_interval(resampled)
    if not high < settings.effect_energy:
        return []
    floor = settings.effect_energy
    n = cell.count(_ENERGY)
    freedom = effective_number(n, cell.sums["drawn"][:, _ENERGY]) - 1
    p = float(bootstrap_p(gain - floor, resampled - floor, freedom))
    return [
        Finding(
            finding_id=f"{OffObject.name}:all",
            kind=OffObject.name,
            title="Heatmaps do not find the objects",
            sentence=(
                f"Over all classes, heatmaps have {cell.mean(_ENERGY):.0%} of their weight on the objects, which cover "
                f"{cell.mean(_AREA):.0%} of what the model sees: about what a map without any preference would have."
            ),
            remedy=(
                "Check first that boxes or masks fit the images; if they do, the model decides by the surroundings, or "
                "the layer and method show no places: try another."
            ),
            severity=severity(1 - max(0.0, gain) / max(floor, 1e-9), 0.7),
            measure="energy",
            effect=gain,
            effect_name="difference",
            low=float(low),
            high=float(high),
            p=p,
            q=p,
            n=n,
            images=image_refs(_worst(evidence.sample), "little weight on the object"),
            details=_numbers(cell),
        )
    ]


def _worst(rows: pa.Table) -> pa.Table:
    """Return the rows with a region, the least enrichment first."""
    rows = rows.filter(pc.is_finite(rows["enrichment"]))
    return rows.take(pc.sort_indices(rows, [("enrichment", "ascending"), ("image_id", "ascending")]))


def _numbers(cell: Cell) -> dict[str, Any]:
    n = cell.count(_POINTING)
    hits = round(cell.mean(_POINTING) * n) if n else 0
    low, high = wilson(hits, n)
    return {
        "energy": cell.mean(_ENERGY),
        "area": cell.mean(_AREA),
        "enrichment": cell.mean(_ENRICHMENT),
        "pointing": hits / n if n else None,
        "pointing_low": float(low) if n else None,
        "pointing_high": float(high) if n else None,
        "pointing_n": n,
    }


KIND = OffObject
