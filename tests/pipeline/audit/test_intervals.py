"""Intervals and tests against scipy, or against all that can happen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.audit.intervals import (
    at_least_p,
    benjamini_bogomolov,
    benjamini_hochberg,
    bootstrap_error,
    bootstrap_p,
    cohens_d,
    effective_number,
    percentile_interval,
    two_sided,
    welch,
    wilson,
)
from pipeline.audit.keys import keys_of, poisson_weights


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_is_scipys_for_every_count(level: float) -> None:
    for n in (1, 2, 7, 30, 1000):
        hits = np.unique(np.linspace(0, n, 20).astype(int))
        low, high = wilson(hits, n, level)
        for place, k in enumerate(hits.tolist()):
            other = stats.binomtest(k, n).proportion_ci(level, method="wilson")
            assert low[place] == pytest.approx(other.low, abs=1e-12)
            assert high[place] == pytest.approx(other.high, abs=1e-12)


def test_wilson_of_nothing_and_of_nonsense() -> None:
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert all(map(math.isnan, wilson(0, 0)))
    assert isinstance(wilson(1, 3)[0], float)
    for hits, n in ((4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson(hits, n)


def test_benjamini_hochberg_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.random((5, 8)) ** 3, 2)  # with ties
    found = benjamini_hochberg(p)
    flat = np.sort(p.ravel())
    for value, q in zip(p.ravel(), found.ravel(), strict=True):
        rates = [len(flat) * other / (flat <= other).sum() for other in flat if other >= value]
        assert q == pytest.approx(min(1.0, *rates))


def test_benjamini_hochberg_leaves_out_what_is_no_test() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.5])
    assert np.array_equal(benjamini_hochberg(p)[[0, 2, 3]], benjamini_hochberg(p[[0, 2, 3]]))
    assert np.isnan(benjamini_hochberg(p)[1])
    assert benjamini_hochberg([]).shape == (0,)
    assert np.isnan(benjamini_hochberg([np.nan])).all()


def test_welch_and_d_of_samples() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.normal(0, 1, 12), rng.normal(0.7, 3, 40)
    parts = (one.mean(), one.var(ddof=1), 12, two.mean(), two.var(ddof=1), 40)
    t, freedom, p = welch(*parts)
    other = stats.ttest_ind(one, two, equal_var=False)
    assert (t, freedom, p) == pytest.approx((other.statistic, other.df, other.pvalue))
    pooled = math.sqrt((((one - one.mean()) ** 2).sum() + ((two - two.mean()) ** 2).sum()) / 50)
    assert cohens_d(*parts) == pytest.approx((one.mean() - two.mean()) / pooled)


def test_what_welch_and_d_cannot_say() -> None:
    assert np.isnan([*welch(1, 1, 1, 2, 1, 30), cohens_d(1, 1, 1, 2, 1, 30)]).all()
    assert np.isnan([*welch(1, np.nan, 9, 2, 1, 30), cohens_d(1, np.nan, 9, 2, 1, 30)]).all()
    assert welch(1, 0, 5, 1, 0, 6) == (0, 9, 1)
    assert welch(2, 0, 5, 1, 0, 6) == (math.inf, 9, 0)
    assert (cohens_d(1, 0, 5, 1, 0, 6), cohens_d(1, 0, 5, 2, 0, 6)) == (0, -math.inf)
    t, _, p = welch(np.array([1.0, 2.0]), 1, np.array([10, 1]), 0, 1, 10)
    assert t.shape == p.shape == (2,)
    assert np.isnan(p).tolist() == [False, True]


def test_at_least_p_is_the_binomial_test() -> None:
    p = at_least_p(np.array([0, 3, 10]), 10, np.array([0.2, 0.2, 1.0]))
    others = [stats.binomtest(k, 10, rate, "greater").pvalue for k, rate in ((0, 0.2), (3, 0.2), (10, 1.0))]
    assert p == pytest.approx(others)


def test_two_sided_is_students() -> None:
    assert two_sided(-2.5, 9) == pytest.approx(2 * stats.t.cdf(-2.5, 9))
    assert np.isnan([two_sided(np.nan, 9), two_sided(1, 0), two_sided(1, np.nan)]).all()


def test_percentile_interval_ignores_empty_resamples() -> None:
    rng = np.random.default_rng(2)
    resampled = rng.normal(size=(3, 2, 201))
    low, high = percentile_interval(resampled)
    assert np.allclose(low, np.quantile(resampled, 0.025, axis=-1))
    assert np.allclose(high, np.quantile(resampled, 0.975, axis=-1))
    holes = np.append(resampled[0, 0], [np.nan] * 5)
    assert percentile_interval(holes) == (low[0, 0], high[0, 0])
    one = np.array([[1.0, np.nan], [np.nan, np.nan]])
    assert np.isnan(percentile_interval(one)).all()
    assert bootstrap_error(holes) == pytest.approx(resampled[0, 0].std(ddof=1))
    assert np.isnan(bootstrap_error(one)).all()


def test_bootstrap_p_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.15, 1, 400)
    weights = poisson_weights(keys_of(map(str, range(400)), 0), 1000).astype(np.float64)
    p = bootstrap_p(values.mean(), (values @ weights) / weights.sum(0), 399)
    assert math.log10(p) == pytest.approx(math.log10(stats.ttest_1samp(values, 0).pvalue), abs=0.35)


def test_bootstrap_p_of_what_does_not_vary() -> None:
    still = np.zeros(50)
    assert bootstrap_p(0.0, still, 9) == 1
    assert bootstrap_p(0.5, still + 0.5, 9) == 0
    assert np.isnan(
        [bootstrap_p(np.nan, still, 9), bootstrap_p(0.3, still * np.nan, 9), bootstrap_p(0.3, still, 0)]
    ).all()


@pytest.mark.parametrize("size", [1, 5, 40])
def test_effective_number_counts_clusters(size: int) -> None:
    n = 400
    names = [f"patient {row // size}" for row in range(n)]
    weights = poisson_weights(keys_of(names, 0), 2000)
    assert effective_number(n, weights.sum(0)) == pytest.approx(n / size, rel=0.15)


def test_effective_number_of_nothing_is_undefined() -> None:
    assert math.isnan(effective_number(0, np.zeros(50)))


def test_families_share_the_rate() -> None:
    p = np.array([0.0001, 0.0002, 0.0003, 0.02, 0.012, 0.6, 0.3, 0.4])
    family = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    # By hand: within, 0.0004 (thrice) and 0.02; 0.024 and 0.6; 0.4 (twice). Simes' p 0.0004, 0.024 and 0.4 become
    # 0.0012, 0.036 and 0.4 among three families, of which two are selected at 0.05: a rate of two thirds within.
    expected = [0.0012, 0.0012, 0.0012, 0.03, 0.036, 0.9, 0.6, 0.6]
    assert benjamini_bogomolov(p, family, 0.05) == pytest.approx(expected)
    # Many tests of one cause do not lower the bar for another.
    assert benjamini_hochberg(p)[4] < 0.05
    assert benjamini_bogomolov(p, family, 0.01)[4] == pytest.approx(0.072)
