"""Every measure of two lakes, class by class: means, differences, intervals and tests.

The bootstrap's weights are hashes of the image's id (or of the cluster's name), the same in both lakes. So images that
are in both are drawn together, and the difference of the resampled means is paired as far as the lakes share images:
what the images have in common cancels. Images of one lake only are drawn independently of the other's, and so are ids
that name other images there, since what has nothing in common does not correlate, whatever the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import EVERYTHING, Cell
from pipeline.audit.compare_pair import ClassPair
from pipeline.audit.contrast import Contrast, Sums, by_group
from pipeline.audit.findings.group_tests import RATIOS, SHARES
from pipeline.audit.intervals import percentile_interval
from pipeline.audit.state import Gathered
from schemas.audit import MEASURE_INDEX, MEASURES, Settings

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
#: class -> its cells of the compared series, one per outcome.
CellsByClass = Mapping[int, Sequence[Cell]]

#: Classes whose resamples are in memory at a time.
_CLASSES = 128

#: Factors that make the difference of a measure a share of the picture or of the mass; 0 where it is none.
_FACTORS = np.array([SHARES.get(measure.name, 1.0) for measure in MEASURES])
_IS_RATIO = np.array([measure.name in RATIOS for measure in MEASURES])


def cells_by_class(state: Gathered) -> CellsByClass:
    """Return the cells of the compared series, all groups together."""
    found = by_group(state.maps, state.frame.primary)
    return {target: values[""] for (attribute, target), values in found.items() if attribute == EVERYTHING}


@dataclass(frozen=True)
class Drift:
    """K classes over M = ``len(MEASURES)`` measures.

    Attributes:
        n: (K, M, 2) maps for which the measure is defined, of A and B.
        mean: (K, M, 2); NaN of nothing.
        std: (K, M, 2) standard deviation over maps.
        difference: (K, M) B's mean - A's; ``low`` and ``high`` are the ends of its 95% interval.
        d: (K, M) difference over the pooled standard deviation of the maps (not of paired differences: a model that
            moved all maps by a hair is no drift).
        p: (K, M) two-sided; NaN where a side has too few maps, or the measure cannot be compared.
        passed: (K, M) whether the floors of the settings are passed.
        independent: (K,) effective clusters over maps, of the side that has less; 1 where each image is its own.
    """

    n: npt.NDArray[np.int64]
    mean: Floats
    std: Floats
    difference: Floats
    low: Floats
    high: Floats
    d: Floats
    p: Floats
    passed: Mask
    independent: Floats


def measure_drift(
    a: CellsByClass, b: CellsByClass, classes: Sequence[ClassPair], settings: Settings, skipped: Sequence[str]
) -> Drift:
    """Compare all measures of classes that have maps in both lakes.

    Args:
        a: sums of lake A.
        b: sums of lake B.
        classes: that are compared.
        settings: whose thresholds count.
        skipped: measures that are not tested.
    """
    parts = [
        _drift(a, b, classes[start : start + _CLASSES], settings, skipped) for start in range(0, len(classes), _CLASSES)
    ]
    return Drift(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Drift)})


def _drift(
    a: CellsByClass, b: CellsByClass, classes: Sequence[ClassPair], settings: Settings, skipped: Sequence[str]
) -> Drift:
    columns = range(len(MEASURES))
    before = Sums.of([a[each.a] for each in classes], columns)
    after = Sums.of([b[each.b] for each in classes], columns)
    contrast = Contrast(after, before)
    p = contrast.p(max(settings.flagged_from, settings.interval_from))
    p[:, [MEASURE_INDEX[name] for name in skipped]] = np.nan
    low, high = percentile_interval(after.resampled - before.resampled)
    shares = [np.where(sums.count > 0, sums.clusters / np.maximum(sums.count, 1), 0).max(1) for sums in (before, after)]
    return Drift(
        np.stack([before.count, after.count], -1),
        np.stack([before.mean, after.mean], -1),
        np.sqrt(np.stack([before.variance, after.variance], -1)),
        contrast.difference,
        low,
        high,
        contrast.d,
        p,
        _floors(contrast, settings),
        np.minimum(1.0, np.minimum(*shares)),
    )


def _floors(contrast: Contrast, settings: Settings) -> Mask:
    """Return which differences (K, M) are as large as the settings ask."""
    share = np.abs(contrast.difference) * _FACTORS
    ratio = (contrast.ratio >= settings.effect_ratio) | (contrast.ratio <= 1 / settings.effect_ratio)
    return np.asarray(
        (np.abs(contrast.d) >= settings.effect_d)
        & ((_FACTORS == 0) | (share >= settings.effect_energy))
        & (ratio | ~_IS_RATIO)
    )
