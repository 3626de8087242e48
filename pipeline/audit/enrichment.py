"""Is a place looked at more often in one class, or group of it, than elsewhere? Chosen on half 0, tested on half 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.extras import extra
from pipeline.audit.places import CORNERS, LATTICE, NEAR_CORNERS, OF_PART, Bools, Place, along_edges, grown, mirrored
from schemas.audit import Settings

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: A map looks at a place if at least so much of its evidence is a spot there; which of these is chosen on half 0.
LEVELS = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
#: Places that are tested per class and per group; each further one costs power.
_MOST = 2
#: Least deviance on half 0 that makes a place worth a test (7: p of 0.004 one-sided), and maps behind a finding.
_WORTH = 7.0
_HITS = 5
#: Windows from where a class looks most, from which on a place is another one.
_APART = 3.0
#: Standard errors by which more is expected of the surroundings than they say.
_CAUTION = 0.5
#: Standard errors of the interval of a ratio.
_Z = 1.96
#: Spots of a class that tell how they spread.
_ENOUGH = 50


@dataclass(frozen=True)
class Enriched:
    """One test.

    ``hits`` of ``rows`` maps look at the place, and ``other_hits`` of ``other_rows`` of those that they are compared
    with; ``ratio`` is of the two rates, with its 95% interval. ``attribute`` is empty for a class against all others.
    """

    target_class: int
    attribute: str
    value: str
    place: int
    level: float
    hits: int
    rows: int
    other_hits: int
    other_rows: int
    ratio: float
    low: float
    high: float
    p: float


def count(loads: npt.NDArray[np.float32], codes: Counts, number: int) -> tuple[Counts, Counts]:
    """Return the maps of each code that look at each place at each level, (L, number, P), and all of them (number,).

    Args:
        loads: (T, P), see :func:`pipeline.audit.places.loads`.
        codes: (T,) in 0 .. number - 1.
        number: of codes.
    """
    rows = np.bincount(codes, minlength=number).astype(np.int64)
    hits = np.zeros((len(LEVELS), number, loads.shape[1]), np.int64)
    if (np.diff(codes) < 0).any():
        order = np.argsort(codes, kind="stable")
        loads, codes = loads[order], codes[order]
    present, starts = np.unique(codes, return_index=True)
    if len(present):
        for level, least in enumerate(LEVELS):
            hits[level, present] = np.add.reduceat(loads >= least, starts, axis=0, dtype=np.int64)
    return hits, rows


def contrast(hits: Any, rows: Any, other_hits: Any, other_rows: Any) -> tuple[Any, Any]:
    """Return ln of the ratio of two rates and its standard error, with a half added to each count (Walter 1975)."""
    a, n, b, m = (np.asarray(each, np.float64) + 0.5 for each in (hits, rows, other_hits, other_rows))
    # Where all of some rows hit, rounding could leave less than nothing.
    return np.log(a / n) - np.log(b / m), np.sqrt(np.maximum(1 / a - 1 / n + 1 / b - 1 / m, 1e-12))


def chosen(
    hits: Counts,
    rows: int,
    other_hits: Counts,
    other_rows: int,
    places: list[Place],
    allowed: Bools,
    settings: Settings,
) -> list[tuple[int, int]]:
    """Return (place, level) that stand out on half 0, the clearest first, no two of one place.

    Args:
        hits: (L, P) maps that look there.
        rows: maps in all.
        other_hits: as ``hits``, of those that they are compared with.
        other_rows: as ``rows``.
        places: P of them.
        allowed: (P,).
        settings: the audit's.
    """
    ratio, _ = contrast(hits, rows, other_hits, other_rows)
    sure = np.where(ratio >= np.log(settings.effect_ratio), _deviance(hits, rows, other_hits, other_rows), 0.0)
    level = sure.argmax(0)
    best = np.where(allowed, sure.max(0), 0.0)
    found: list[tuple[int, int]] = []
    for place in np.argsort(-best, kind="stable").tolist():
        if best[place] < _WORTH or len(found) == _MOST:
            break
        if all(_overlap(places[place].windows, places[other].windows) < 0.3 for other, _ in found):
            found.append((place, int(level[place])))
    return found


def enriched(
    hits: tuple[Counts, Counts],
    rows: tuple[int, int],
    other_hits: tuple[Counts, Counts],
    other_rows: tuple[int, int],
    places: list[Place],
    allowed: Bools,
    settings: Settings,
    **about: Any,
) -> Iterator[Enriched]:
    """Yield the tests of a class or group: what half 0 chooses, on half 1, and the corners, on both.

    The corners at the lowest level are chosen before anything is seen, so they need no half to be chosen on. A spot in
    the very corner says more than one beside it, where objects that lie in the corner have theirs, so it counts double
    (:func:`trend`).

    Args:
        hits: (L, P) of each half.
        rows: maps of each half.
        other_hits: as ``hits``, of those that they are compared with.
        other_rows: as ``rows``.
        places: P of them.
        allowed: (P,).
        settings: the audit's.
        about: ``target_class``, ``attribute`` and ``value``.
    """
    for place, level in chosen(hits[0], rows[0], other_hits[0], other_rows[0], places, allowed, settings):
        k, others = int(hits[1][level, place]), int(other_hits[1][level, place])
        yield fisher(k, rows[1], others, other_rows[1], place=place, level=LEVELS[level], **about)
    by_key = {place.key: number for number, place in enumerate(places)}
    very, near = by_key[CORNERS], by_key[NEAR_CORNERS]
    own, theirs = ([int(one[0, at] + two[0, at]) for at in (very, near)] for one, two in (hits, other_hits))
    if allowed[very]:
        yield fisher(own[0], sum(rows), theirs[0], sum(other_rows), place=very, level=LEVELS[0], **about)
    if allowed[near]:
        test = fisher(own[1], sum(rows), theirs[1], sum(other_rows), place=near, level=LEVELS[0], **about)
        yield replace(test, p=trend((own[0], own[1]), sum(rows), (theirs[0], theirs[1]), sum(other_rows)))


def trend(own: tuple[int, int], rows: int, other: tuple[int, int], other_rows: int) -> float:
    """Return the exact one-sided p that ``rows`` score so high or higher, all being drawn from one urn.

    A row scores 2, 1 or 0; the exact form of the test of Cochran (1954) and Armitage (1955).

    Args:
        own: how many score 2, and how many 1 or 2.
        rows: in all.
        other: as ``own``, of those that they are compared with.
        other_rows: as ``rows``.
    """
    draw = extra("scipy.stats").hypergeom
    total, twos = rows + other_rows, own[0] + other[0]
    ones = own[1] + other[1] - twos
    drawn = np.arange(max(0, rows - (total - twos)), min(twos, rows) + 1)
    left = own[0] + own[1] - 2 * drawn  # to be scored by ones
    chance = draw.pmf(drawn, total, twos, rows) * draw.sf(left - 1, total - twos, ones, rows - drawn)
    return float(min(1.0, chance.sum()))


def _overlap(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / (one | other).sum())


def _deviance(hits: Any, rows: int, other_hits: Any, other_rows: int) -> Floats:
    """Return twice the log-likelihood ratio of two rates against one (Wilks 1938): quicker than an exact test."""

    def likelihood(k: Floats, n: Any) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.where(k > 0, k * np.log(k / n), 0.0), np.where(k < n, (n - k) * np.log(1 - k / n), 0.0)
        return np.asarray(parts[0] + parts[1], np.float64)

    a, b = np.asarray(hits, np.float64), np.asarray(other_hits, np.float64)
    return 2 * (likelihood(a, rows) + likelihood(b, other_rows) - likelihood(a + b, rows + other_rows))


def fisher(hits: int, rows: int, other_hits: int, other_rows: int, **about: Any) -> Enriched:
    """Return Fisher's exact test, one-sided, with the ratio of the rates (its p is 1 where nothing looks there)."""
    ratio, error = contrast(hits, rows, other_hits, other_rows)
    p = float(extra("scipy.stats").hypergeom.sf(hits - 1, rows + other_rows, hits + other_hits, rows)) if hits else 1.0
    low, high = np.exp(ratio - _Z * error), np.exp(ratio + _Z * error)
    return Enriched(
        **about,
        hits=hits,
        rows=rows,
        other_hits=other_hits,
        other_rows=other_rows,
        ratio=float(np.exp(ratio)),
        low=float(low),
        high=float(high),
        p=p,
    )


def lowest(test: Enriched, z: float) -> float:
    """Return the lower end of the interval of ``z`` standard errors about a test's ratio."""
    return float(test.ratio * (test.low / test.ratio) ** (z / _Z))


def stands_out(test: Enriched, q: float, settings: Settings) -> bool:
    """Whether a test says something: significant, strong, and more than a handful of maps."""
    return bool(q < settings.q and test.ratio >= settings.effect_ratio and test.hits >= _HITS)


class Surroundings:
    """What a class's spots elsewhere make one expect at a place, and by how much that must be exceeded.

    Objects of a class may lie more to the left than those of others. Then the class looks at the left edge more often
    than the others, and nothing is wrong. So a class must look at a place more often than follows from how its spots,
    and those of the others, thin out towards it: a log-linear model with the squares of both coordinates, which is
    exact for normally distributed positions, is fitted to the rest of the view. And where a class has its spots at the
    top of its objects, they come nearer to the upper edge than others' do, all along it: the share that the class has
    of the spots along the rest of an edge is expected at each place of it.

    No model is quite right, and with many maps every misfit is significant. So what is tested is that a class exceeds
    ``least`` times what is expected (a minimum-effect test; Murphy and Myors 1999).

    Args:
        counts: (L, C, LATTICE^2) maps of each class with a spot at each window, at each level.
        rows: (C,) maps.
        least: ratio to what is expected.
    """

    def __init__(self, counts: Counts, rows: Counts, least: float = 1.0) -> None:
        self.counts, self.rows, self.least = counts, rows, least
        self.all = counts.sum(1)

    def p(self, test: Enriched, index: int, place: Place) -> float:
        """Return the larger of two p: of its own spots' going on, and of its share of all spots, there or at the edge.

        Args:
            test: of the class.
            index: of the class among the counts.
            place: tested.
        """
        stats = extra("scipy.stats")
        level = LEVELS.index(test.level if place.part is None else OF_PART)
        inside = place.windows.ravel()
        outside = ~grown(mirrored(place.windows)).ravel()
        spots = self.counts[:, index, outside].sum(1)
        # Strong spots may be few; weaker ones then tell how they spread.
        shape = int(np.flatnonzero(spots[: level + 1] >= _ENOUGH)[-1]) if spots[0] >= _ENOUGH else 0
        own, everyone = (each.astype(np.float64) for each in (self.counts[shape, index], self.all[shape]))
        eta, error = _fitted(own, np.ones_like(own), outside, "counts")
        scale = (spots[level] + 0.5) / (spots[shape] + 0.5) * test.rows / self.rows[index]
        expected = np.exp(np.clip(eta + _CAUTION * error, -30.0, 30.0))[inside].sum() * scale * self.least
        going_on = float(stats.poisson.sf(test.hits - 1, expected)) if test.hits else 1.0
        eta, error = _fitted(own, everyone, outside & (everyone > 0), "shares")
        share = 1 / (1 + np.exp(-np.clip(eta + _CAUTION * error, -30.0, 30.0)))
        weight = np.where(inside, everyone + 1e-9, 0.0)
        chance = float((share * weight).sum() / weight.sum())
        beside = along_edges(place.windows) & ~grown(place.windows).ravel()
        mine, there = self.counts[0, index, beside].sum() + 0.5, self.all[0, beside].sum() + 1.0
        if there > _ENOUGH:
            rate = float(mine / there)
            chance = max(chance, rate + _CAUTION * float(np.sqrt(rate * (1 - rate) / there)))
        chance = self.least * chance / (1 - chance + self.least * chance)
        among = float(stats.binom.sf(test.hits - 1, test.hits + test.other_hits, chance)) if test.hits else 1.0
        return max(going_on, among)


def _fitted(counts: Floats, of: Floats, outside: Bools, kind: str) -> tuple[Floats, Floats]:
    """Fit ``counts`` (LATTICE^2,) on some windows and return the linear predictor and its error on all.

    ``kind`` 'counts' is a Poisson model, 'shares' a binomial one of ``counts`` out of ``of``. Newton's method with
    halved steps; both are convex. Errors are widened where the counts vary more than the model says (McCullagh and
    Nelder 1989, section 4.5).
    """
    along = np.linspace(-1, 1, LATTICE)
    y, x = (each.ravel() for each in np.meshgrid(along, along, indexing="ij"))
    every = np.stack([np.ones_like(y), y, x, y * y, x * x, x * y], 1)
    features, k, n = every[outside], counts[outside], of[outside]
    prior = np.array([1e-4, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2])

    def model(beta: Floats) -> tuple[float, Floats, Floats]:
        eta = np.clip(features @ beta, -30, 30)
        if kind == "counts":
            mean = np.exp(eta)
            loss, weight = float((mean - k * eta).sum()), mean
        else:
            share = 1 / (1 + np.exp(-eta))
            mean = n * share
            loss, weight = float((n * np.logaddexp(0, eta) - k * eta).sum()), mean * (1 - share)
        return loss + 0.5 * float(prior @ beta**2), mean, weight

    rate = (k.sum() + 0.5) / (n.sum() + 1.0)
    beta = np.array([np.log(rate) if kind == "counts" else np.log(rate / (1 - rate)), 0, 0, 0, 0, 0])
    loss, mean, weight = model(beta)
    for _ in range(60):
        hessian = features.T @ (features * weight[:, None]) + np.diag(prior)
        step = np.linalg.solve(hessian, features.T @ (k - mean) - prior * beta)
        size = 1.0
        while size > 1e-4 and model(beta + size * step)[0] > loss:
            size /= 2
        if size <= 1e-4:
            break
        beta = beta + size * step
        before = loss
        loss, mean, weight = model(beta)
        if before - loss < 1e-8 * (1 + abs(loss)):
            break
    hessian = features.T @ (features * weight[:, None]) + np.diag(prior)
    spread = float(((k - mean) ** 2 / np.maximum(weight, 1e-2)).sum() / max(1, len(k) - 6))
    variance = np.einsum("cf,fg,cg->c", every, np.linalg.inv(hessian), every)
    return every @ beta, np.sqrt(np.maximum(variance, 0) * max(1.0, spread))


def apart(place: Place, mode: tuple[float, float]) -> bool:
    """Whether a place is off the window (y, x) at which a class looks most."""
    rows, columns = np.nonzero(place.windows)
    return bool(np.hypot(rows - mode[0], columns - mode[1]).min() >= _APART)
