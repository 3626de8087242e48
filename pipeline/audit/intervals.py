"""Intervals, tests and sizes of effects; what is not defined comes out as NaN, never as a warning or an error.

All functions broadcast over arrays and return a number where they get numbers.
"""

from __future__ import annotations

import importlib
from statistics import NormalDist
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

Floats = npt.NDArray[np.float64]
#: A number, or an array of them.
Values = Any


def _stats() -> ModuleType:
    # Named by a string: Ray workers import this module's neighbours and need no scipy.
    try:
        return importlib.import_module("scipy.stats")
    except ImportError as error:
        raise InputError("the audit's tests need scipy; install it: pip install 'camlake[audit]'") from error


def wilson(hits: Values, n: Values, level: float = 0.95) -> tuple[Values, Values]:
    """Return the ends of Wilson's score interval of a rate (Wilson, JASA 1927).

    The ends are within [0, 1]; the lower one is 0 of no hits, the upper one 1 where all hit. NaN where ``n`` is 0.

    Raises:
        ValueError: there are more hits than n, or fewer than none.
    """
    hits, n = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    if (hits < 0).any() or (hits > n).any():
        raise ValueError("hits must be between 0 and n")
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    total = np.where(n > 0, n, np.nan)
    rate = hits / total
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(z2 * (rate * (1 - rate) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    # Rounding would leave 1e-17 where the ends are exact.
    low = np.where(hits == 0, np.where(n > 0, 0.0, np.nan), np.maximum(0.0, centre - half))
    high = np.where(hits == n, np.where(n > 0, 1.0, np.nan), np.minimum(1.0, centre + half))
    return low[()], high[()]


def benjamini_hochberg(p: npt.ArrayLike) -> Floats:
    """Return the false discovery rate at which each test is found (Benjamini and Hochberg, JRSS B 1995).

    NaNs are no tests: they do not count, and stay NaN. Any shape; all entries are one family.
    """
    p = np.asarray(p, np.float64)
    tested = np.isfinite(p)
    found = np.full(p.shape, np.nan)
    if tested.any():
        found[tested] = _stats().false_discovery_control(p[tested], method="bh")
    return found


def benjamini_bogomolov(p: Floats, family: npt.NDArray[Any], q: float) -> Floats:
    """Return adjusted p (n,) of tests in families, at the rate ``q``; below it a test is a discovery.

    A family is selected by Simes' p among all families, and its tests by the procedure of Benjamini and Hochberg at a
    rate that is lower by the share of families that are selected (Benjamini and Bogomolov, JRSS B 76, 2014). So one
    cause that many tests of its family find is one discovery, and does not lower the bar for others.

    Args:
        p: (n,) without NaN.
        family: (n,) of each test.
        q: rate at which families are selected.
    """
    names, code = np.unique(family, return_inverse=True)
    within = np.empty(len(p))
    for each in range(len(names)):
        within[code == each] = benjamini_hochberg(p[code == each])
    # Simes' p is the least of the adjusted ones.
    across = benjamini_hochberg(np.array([within[code == each].min() for each in range(len(names))]))
    selected = max(1, int((across < q).sum()))
    return np.maximum(across[code], np.minimum(1.0, within * len(names) / selected))


def welch(mean1: Values, var1: Values, n1: Values, mean2: Values, var2: Values, n2: Values) -> tuple[Any, Any, Any]:
    """Return (t, degrees of freedom, two-sided p) of Welch's test (Welch, Biometrika 1947) from means and variances.

    NaN where a side has fewer than two rows. Where neither side varies, p is 1 for equal means and 0 for others.

    Args:
        mean1: of one side.
        var1: unbiased variance of the rows (not of the mean).
        n1: rows.
        mean2: of the other side.
        var2: as ``var1``.
        n2: as ``n1``.
    """
    mean1, var1, n1, mean2, var2, n2 = _arrays(mean1, var1, n1, mean2, var2, n2)
    enough = (n1 >= 2) & (n2 >= 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        part1, part2 = np.where(enough, var1 / n1, np.nan), np.where(enough, var2 / n2, np.nan)
        error2, difference = part1 + part2, mean1 - mean2
        t = np.where((error2 == 0) & (difference == 0), 0.0, difference / np.sqrt(error2))
        freedom = np.where(error2 == 0, n1 + n2 - 2, error2**2 / (part1**2 / (n1 - 1) + part2**2 / (n2 - 1)))
    return t[()], freedom[()], two_sided(t, freedom)


def two_sided(t: Values, freedom: Values) -> Values:
    """Return the two-sided p of Student's t; NaN where either is NaN or there is no degree of freedom."""
    t, freedom = _arrays(t, freedom)
    defined = ~np.isnan(t) & (freedom > 0)
    p = np.full(t.shape, np.nan)
    if defined.any():
        p[defined] = np.minimum(1.0, 2 * _stats().t.sf(np.abs(t[defined]), freedom[defined]))
    return p[()]


def at_least_p(hits: Values, n: Values, rate: Values) -> Values:
    """Return the probability of so many hits or more among ``n`` at a rate (exact binomial test, one-sided)."""
    return _stats().binom.sf(np.asarray(hits) - 1, n, rate)


def cohens_d(mean1: Values, var1: Values, n1: Values, mean2: Values, var2: Values, n2: Values) -> Values:
    """Return the difference of means over the pooled standard deviation (Cohen 1988, section 2.2); arguments: `welch`.

    NaN where a side has fewer than two rows. Where neither side varies: 0 for equal means, else infinite.
    """
    mean1, var1, n1, mean2, var2, n2 = _arrays(mean1, var1, n1, mean2, var2, n2)
    enough = (n1 >= 2) & (n2 >= 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt(((n1 - 1) * var1 + (n2 - 1) * var2) / np.where(enough, n1 + n2 - 2, np.nan))
        difference = mean1 - mean2
        return np.where((pooled == 0) & (difference == 0), 0.0, difference / pooled)[()]


def percentile_interval(resampled: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """Return the ends of the bootstrap's percentile interval (Efron 1981) over the last axis.

    Resamples that are NaN (nothing was drawn) are left out; with fewer than two others both ends are NaN.
    """
    resampled = np.asarray(resampled, np.float64)
    flat = resampled.reshape(-1, resampled.shape[-1])
    ends = np.full((len(flat), 2), np.nan)
    enough = np.flatnonzero((~np.isnan(flat)).sum(1) >= 2)
    if len(enough):
        shares = ((1 - level) / 2, (1 + level) / 2)
        ends[enough] = np.nanquantile(flat[enough], shares, axis=1).T
    ends = ends.reshape(*resampled.shape[:-1], 2)
    return ends[..., 0][()], ends[..., 1][()]


def bootstrap_error(resampled: npt.ArrayLike) -> Values:
    """Return the bootstrap's standard error over the last axis; NaNs are left out, below two others it is NaN."""
    resampled = np.asarray(resampled, np.float64)
    defined = ~np.isnan(resampled)
    n = defined.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(defined, resampled, 0).sum(-1) / n
        squares = np.where(defined, (resampled - mean[..., None]) ** 2, 0).sum(-1)
        return np.where(n >= 2, np.sqrt(squares / (n - 1)), np.nan)[()]


def bootstrap_p(estimate: Values, resampled: npt.ArrayLike, freedom: Values) -> Values:
    """Return the two-sided p of a difference that would be 0, from its bootstrap.

    The share of resamples beyond 0 is never below 1 / B, which thousands of tests at once need; so the difference over
    its bootstrap error is taken as Student's t (Efron and Tibshirani 1993, section 12.4).

    Args:
        estimate: difference in the data.
        resampled: differences over the resamples, last axis.
        freedom: degrees of freedom, at most resamples - 1: the error is itself an estimate. See `effective_number`.

    Returns:
        NaN where ``estimate``, the error or the degrees of freedom are not defined. An error of 0: 1 for a difference
        of 0, else 0.
    """
    resampled = np.asarray(resampled, np.float64)
    estimate, error, freedom = _arrays(estimate, bootstrap_error(resampled), freedom)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((error == 0) & (estimate == 0), 0.0, estimate / error)
    return two_sided(t, np.minimum(freedom, (~np.isnan(resampled)).sum(-1) - 1))


def effective_number(n: Values, drawn: npt.ArrayLike) -> Values:
    """Return how many equally large clusters would vary as the rows do (Kish, Survey Sampling 1965, section 8.2).

    Clusters of sizes m are drawn Poisson(1) times each, so the number of rows drawn has the variance sum m^2, and
    (sum m)^2 / sum m^2 is the effective number of clusters. It is near ``n`` where each row is its own cluster, 1 where
    all rows are one.

    Args:
        n: rows.
        drawn: rows drawn in each resample, last axis.
    """
    n, error = _arrays(n, bootstrap_error(drawn))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 0, np.minimum(n, n**2 / error**2), np.nan)[()]


def _arrays(*values: Values) -> tuple[Floats, ...]:
    return tuple(np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))
