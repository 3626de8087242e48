"""Second looks at a difference, on the sample: does it hold in both halves, and among objects of one size?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.intervals import cohens_d, percentile_interval
from pipeline.audit.keys import Keys, poisson_weights

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Strata of equal numbers of maps by object area: at most this many, of at least twice so many maps on either side.
_STRATA = 10
_PER_STRATUM = 10


def standardised(values: Floats, mine: Mask) -> float:
    """Return Cohen's d of values (T,) of one side against the other; NaNs are left out."""
    own, other = (values[side & ~np.isnan(values)] for side in (mine, ~mine))
    if len(own) < 2 or len(other) < 2:
        return float("nan")
    return float(cohens_d(own.mean(), own.var(ddof=1), len(own), other.mean(), other.var(ddof=1), len(other)))


def split_half(halves: tuple[Floats, Floats], mine: tuple[Mask, Mask], floor: float, least: int) -> dict[str, Any]:
    """Look whether a difference that was chosen on half 0 holds on half 1: the sign, and |d| >= ``floor`` in both.

    Args:
        halves: the values (T0,) and (T1,) of the halves.
        mine: which of them are on the one side.
        floor: least |d|.
        least: maps on either side of either half below which nothing is said.

    Returns:
        ``held`` (True, False, or None: too few maps), ``d`` and ``n`` of the halves.
    """
    n = [
        int((side & ~np.isnan(values)).sum()) for values, own in zip(halves, mine, strict=True) for side in (own, ~own)
    ]
    if min(n) < least:
        return {"held": None, "n": n, "why": f"fewer than {least} maps in a half of the sample"}
    d = [standardised(values, own) for values, own in zip(halves, mine, strict=True)]
    return {"held": min(map(abs, d)) >= floor and d[0] * d[1] > 0, "d": d, "n": n}


def area_controlled(values: Floats, mine: Mask, area: Floats, floor: float, least: int) -> dict[str, Any] | None:
    """Compare objects of like size: the difference within strata of the object's area.

    Strata hold equal numbers of maps. Their differences are averaged with the weights n1 n2 / (n1 + n2), which an
    additive model would give them, and standardised by the deviation within strata and sides.

    Returns:
        None where no area is known. Otherwise ``held``: |d| >= ``floor`` with the sign of the difference as it is
        without control (None: too few maps), ``d``, ``strata``.
    """
    if np.isnan(area).all():
        return None
    known = ~np.isnan(values) & ~np.isnan(area)
    values, mine, area = values[known], mine[known], area[known]
    smaller = int(min(mine.sum(), (~mine).sum()))
    if smaller < least:
        return {"held": None, "why": f"fewer than {least} maps with a known object in the sample"}
    strata = int(np.clip(smaller // (2 * _PER_STRATUM), 1, _STRATA))
    edges = np.quantile(area, np.arange(1, strata) / strata)
    stratum = np.searchsorted(edges, area, side="right")
    n1, n2 = (np.bincount(stratum[side], minlength=strata).astype(np.float64) for side in (mine, ~mine))
    sums = [np.bincount(stratum[side], values[side], minlength=strata) for side in (mine, ~mine)]
    mean1, mean2 = (total / np.maximum(n, 1) for total, n in zip(sums, (n1, n2), strict=True))
    weight = n1 * n2 / np.maximum(n1 + n2, 1)
    if weight.sum() == 0:
        return {"held": None, "why": "no objects of like size on both sides"}
    residual = values - np.where(mine, mean1[stratum], mean2[stratum])
    deviation = float(np.sqrt((residual**2).sum() / max(1, len(values) - int((n1 > 0).sum() + (n2 > 0).sum()))))
    difference = float((weight * (mean1 - mean2)).sum() / weight.sum())
    d = difference / deviation if deviation > 0 else float(np.copysign(np.inf, difference)) if difference else 0.0
    held = abs(d) >= floor and d * (float(values[mine].mean()) - float(values[~mine].mean())) > 0
    return {"held": held, "d": d, "strata": strata}


def difference_interval(values: Floats, mine: Mask, keys: Keys, resamples: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two means of values (T,), by a Poisson bootstrap by their keys."""
    weights = poisson_weights(keys, resamples).astype(np.float64).T
    means = []
    for side in (mine, ~mine):
        n = weights[:, side].sum(1)
        means.append(weights[:, side] @ values[side] / np.where(n > 0, n, np.nan))
    return percentile_interval(means[0] - means[1])
