"""Drifts as sentences."""

from __future__ import annotations

import math

from pipeline.audit.compare_tables import Change, CompareManifest, PlaceChange
from pipeline.audit.contrast import strength_of_d
from pipeline.audit.findings.base import severity
from pipeline.audit.findings.samples import plural
from pipeline.audit.report.words import measure_label

PAIRING = (
    "The bootstrap draws images by a hash of their id (with --cluster: of the cluster's name), the same in both lakes. "
    "Images that both lakes hold under one id are therefore drawn together, and the difference is paired for them; "
    "others are drawn independently. Permutations of the location priors swap the two maps of one image content "
    "(SHA-256) and shuffle the rest."
)

#: Measures that are told in a sentence, at most.
_TOLD = 3
_WEIGHT = 0.8


def sentence(name: str, place: PlaceChange | None, measures: tuple[Change, ...]) -> str:
    """Return what drifted of a class, in a sentence."""
    parts = []
    if place is not None:
        parts.append(
            f"{place.distance:.0%} of the heatmaps' mass lies elsewhere than in A (chance alone: {place.chance:.0%}), "
            f"more of it {place.more}, less {place.less}"
        )
    parts += [_change(change) for change in measures[:_TOLD]]
    if len(measures) > _TOLD:
        parts.append(f"{plural(len(measures) - _TOLD, 'more measure')} differ{'s' * (len(measures) == _TOLD + 1)} too")
    sides = place or measures[0]
    return f"{name}: {'; '.join(parts)} ({sides.n_a:,} maps in A, {sides.n_b:,} in B)."


def _change(change: Change) -> str:
    what = measure_label(change.measure)
    return (
        f"{what[:1].lower()}{what[1:]} {'rises' if change.difference > 0 else 'falls'} from {number(change.mean_a)} "
        f"to {number(change.mean_b)} ({signed(change.difference)}, 95% interval {signed(change.low)} to "
        f"{signed(change.high)}; d {signed(change.d, 2)})"
    )


def severity_of(place: PlaceChange | None, measures: tuple[Change, ...]) -> float:
    """Return how much a class drifted, [0, 100]: half of 80 where the largest difference is one standard deviation."""
    largest = max([abs(each.d) for each in measures] + ([] if place is None else [abs(place.d)]))
    return severity(strength_of_d(largest), _WEIGHT)


def verdict(manifest: CompareManifest) -> str:
    """Return the outcome in a sentence."""
    drifts = len(manifest.drifts)
    if not manifest.tested:
        least = max(manifest.settings.flagged_from, manifest.settings.interval_from)
        return f"Nothing could be tested: no class has {least} maps in both lakes."
    if not drifts:
        return f"No drift above the thresholds in {_classes(manifest.tested)}."
    return f"{drifts:,} of {_classes(manifest.tested)} drifted."


def _classes(count: int) -> str:
    return "1 tested class" if count == 1 else f"{count:,} tested classes"


def number(value: float | None) -> str:
    """Return "0.123", or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Return "+0.123", "−0.3", "0"."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}g}".replace("-", "−") if value else "0"


def small(value: float | None) -> str:
    """Return a probability: "0.012", "< 0.001"."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
