"""From the sums and samples of two lakes to what drifted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.compare_drift import CellsByClass, Drift, cells_by_class, measure_drift
from pipeline.audit.compare_pair import ClassPair, Pair
from pipeline.audit.compare_priors import Prior, Side, matches, prior_drift
from pipeline.audit.compare_tables import COMPARISON, PRIORS, Change, ClassDrift, PlaceChange, Shared
from pipeline.audit.compare_words import sentence, severity_of
from pipeline.audit.findings.location import MapSums, ninths
from pipeline.audit.intervals import benjamini_hochberg
from pipeline.audit.keys import keys_of
from pipeline.audit.state import Gathered
from schemas.audit import MEASURES, Settings

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What came out, class by class; ``classes`` are those with maps in both lakes.

    ``q`` and ``drift`` are (K, M + 1): of the measures, and last of the location prior. All tests are one family.
    ``everything`` is the drift of all classes together, which is not tested, and ``everywhere`` (2, GRID * GRID) their
    mean maps in A and B, mean 1; None of fewer maps than are shown.
    """

    pair: Pair
    classes: tuple[ClassPair, ...]
    measures: Drift
    priors: tuple[Prior, ...]
    everything: Drift
    everywhere: Floats | None
    q: Floats
    drift: Mask
    shared: Shared

    @property
    def tests(self) -> int:
        """How many tests there were."""
        return int(np.isfinite(self.q).sum())

    @property
    def tested(self) -> int:
        """Classes of which something was tested."""
        return int(np.isfinite(self.q).any(1).sum())


def outcome(pair: Pair, states: tuple[Gathered, Gathered], sides: tuple[Side, Side]) -> Outcome:
    """Compare two lakes.

    Args:
        pair: what is compared.
        states: sums of A and B.
        sides: their samples.
    """
    settings = pair.frames[0].settings
    a, b = (cells_by_class(state) for state in states)
    classes = tuple(each for each in pair.classes if each.a in a and each.b in b)
    if not classes:
        nothing = np.empty((0, len(MEASURES) + 1))
        shared = _shared(states, [], 0)
        empty = _empty()
        return Outcome(pair, (), empty, (), empty, None, nothing, nothing.astype(np.bool_), shared)
    measures = measure_drift(a, b, classes, settings, pair.skipped)
    priors = tuple(_priors(a, b, classes, sides, settings, measures))
    p = np.column_stack([measures.p, [prior.p for prior in priors]])
    q = benjamini_hochberg(p)
    passed = np.column_stack([measures.passed, [_far(prior, settings) for prior in priors]])
    # What cannot be told apart from nothing: NaN compares as false.
    drift = (q < settings.q) & passed
    whole = ClassPair(-1, -1, "")
    together = _together(a, [each.a for each in classes]), _together(b, [each.b for each in classes])
    everything = measure_drift(
        *together,
        [whole],
        settings,
        [measure.name for measure in MEASURES],
    )
    shared = _shared(states, priors, _by_id(sides, classes))
    sums = [MapSums.of([each[-1]]) for each in together]
    enough = all(each.count[0, 0] >= settings.interval_from for each in sums)
    everywhere = np.stack([each.mean[0] for each in sums]) if enough else None
    return Outcome(pair, classes, measures, priors, everything, everywhere, q, drift, shared)


def _empty() -> Drift:
    shape = (0, len(MEASURES))
    none, two = np.empty(shape), np.empty((*shape, 2))
    return Drift(two.astype(np.int64), two, two, none, none, none, none, none, none.astype(np.bool_), np.empty(0))


def _together(cells: CellsByClass, classes: Iterable[int]) -> CellsByClass:
    return {-1: [cell for each in classes for cell in cells[each]]}


def _priors(
    a: CellsByClass,
    b: CellsByClass,
    classes: Sequence[ClassPair],
    sides: Sequence[Side],
    settings: Settings,
    measures: Drift,
) -> Iterable[Prior]:
    for place, each in enumerate(classes):
        seed = int(keys_of([f"compare\0{each.a}\0{each.b}"], settings.seed)[0])
        independent = 1.0 if settings.cluster is None else float(measures.independent[place])
        samples = sides[0].of(each.a), sides[1].of(each.b)
        yield prior_drift((a[each.a], b[each.b]), samples, seed, settings, independent)


def _far(prior: Prior, settings: Settings) -> bool:
    """Say whether the floors of the settings are passed."""
    return bool(abs(prior.d) >= settings.effect_d and prior.excess >= settings.effect_energy)


def _shared(states: tuple[Gathered, Gathered], priors: Sequence[Prior], by_id: int) -> Shared:
    # The lakes may keep other shares of their digests: what both keep is compared.
    limit = np.uint64(min(state.frame.digest_limit for state in states))
    first, second = (np.unique(state.digests[state.digests <= limit]) for state in states)
    defined = [prior for prior in priors if np.isfinite(prior.correlation)]
    total = sum(prior.matched for prior in defined)
    return Shared(
        images=len(np.intersect1d(first, second, assume_unique=True)),
        images_a=len(first),
        images_b=len(second),
        maps=sum(prior.matched for prior in priors),
        maps_by_id=by_id,
        correlation=sum(prior.correlation * prior.matched for prior in defined) / total if total else None,
    )


def _by_id(sides: Sequence[Side], classes: Sequence[ClassPair]) -> int:
    """Count the sampled maps that match by content and by image id."""
    names = {each.a: each.b for each in classes}
    found = []
    for side in sides:
        columns = side.table["target_class"].to_pylist(), side.known_by, side.table["image_id"].to_pylist()
        found.append(list(zip(*columns, strict=True)))
    first = [(names.get(target), *rest) for target, *rest in found[0]]
    return len(matches(first, [(target, *rest) for target, *rest in found[1]]))


def class_drifts(found: Outcome) -> list[ClassDrift]:
    """Return the classes that drifted, the worst first."""
    drifts = []
    for place in np.flatnonzero(found.drift.any(1)).tolist():
        each = found.classes[place]
        prior = _place_change(found, place) if found.drift[place, -1] else None
        changes = sorted(_changes(found, place), key=lambda change: (-abs(change.d), change.measure))
        drifts.append(
            ClassDrift(
                class_a=each.a,
                class_b=each.b,
                name=each.name,
                severity=severity_of(prior, tuple(changes)),
                sentence=sentence(each.name, prior, tuple(changes)),
                place=prior,
                measures=tuple(changes),
            )
        )
    return sorted(drifts, key=lambda drift: (-drift.severity, drift.class_a, drift.class_b))


def _changes(found: Outcome, place: int) -> Iterable[Change]:
    drift = found.measures
    for column in np.flatnonzero(found.drift[place, :-1]).tolist():
        yield Change(
            measure=MEASURES[column].name,
            mean_a=drift.mean[place, column, 0],
            mean_b=drift.mean[place, column, 1],
            difference=drift.difference[place, column],
            low=drift.low[place, column],
            high=drift.high[place, column],
            d=drift.d[place, column],
            q=found.q[place, column],
            n_a=int(drift.n[place, column, 0]),
            n_b=int(drift.n[place, column, 1]),
        )


def _place_change(found: Outcome, place: int) -> PlaceChange:
    prior = found.priors[place]
    names, cells = ninths()
    moved = cells @ (prior.mean[1] - prior.mean[0])
    return PlaceChange(
        distance=prior.distance,
        chance=prior.chance,
        more=names[int(np.argmax(moved))],
        less=names[int(np.argmin(moved))],
        d=prior.d,
        q=found.q[place, -1],
        n_a=prior.n[0],
        n_b=prior.n[1],
    )


def comparison_columns(found: Outcome) -> dict[str, list[Any]]:
    """Return the columns of :data:`~pipeline.audit.compare_tables.COMPARISON`.

    Where a side has fewer than ``suppressed_below`` maps there is no row, below ``interval_from`` the numbers of maps
    stand alone.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COMPARISON.names}
    if found.classes:
        untested = np.full((1, len(MEASURES) + 1), np.nan)
        _add_rows(columns, found, found.everything, [None], untested, np.zeros(untested.shape, np.bool_))
        _add_rows(columns, found, found.measures, list(found.classes), found.q, found.drift)
    return columns


def _add_rows(
    columns: dict[str, list[Any]],
    found: Outcome,
    drift: Drift,
    classes: Sequence[ClassPair | None],
    q: Floats,
    flagged: Mask,
) -> None:
    settings = found.pair.frames[0].settings
    least = drift.n.min(-1)
    rows, measures = np.nonzero(least >= settings.suppressed_below)
    shown = (least >= settings.interval_from)[rows, measures]
    about = [classes[row] for row in rows.tolist()]
    columns["class_a"] += [None if each is None else each.a for each in about]
    columns["class_b"] += [None if each is None else each.b for each in about]
    columns["name"] += [None if each is None else each.name for each in about]
    columns["measure"] += [MEASURES[each].name for each in measures.tolist()]
    columns["comparable"] += [MEASURES[each].name not in found.pair.skipped for each in measures.tolist()]
    for side, letter in enumerate("ab"):
        columns[f"n_{letter}"] += drift.n[rows, measures, side].tolist()
        columns[f"mean_{letter}"] += np.where(shown, drift.mean[rows, measures, side], np.nan).tolist()
        columns[f"std_{letter}"] += np.where(shown, drift.std[rows, measures, side], np.nan).tolist()
    for name in ("difference", "low", "high", "d", "p"):
        columns[name] += np.where(shown, getattr(drift, name)[rows, measures], np.nan).tolist()
    columns["q"] += q[rows, measures].tolist()
    columns["drift"] += flagged[rows, measures].tolist()


def prior_columns(found: Outcome) -> dict[str, list[Any]]:
    """Return the columns of :data:`~pipeline.audit.compare_tables.PRIORS`; classes as in :func:`comparison_columns`."""
    columns: dict[str, list[Any]] = {name: [] for name in PRIORS.names}
    settings = found.pair.frames[0].settings
    for place, (each, prior) in enumerate(zip(found.classes, found.priors, strict=True)):
        if min(prior.n) < settings.suppressed_below:
            continue
        few = min(prior.n) < settings.interval_from
        row = {
            "class_a": each.a,
            "class_b": each.b,
            "name": each.name,
            "n_a": prior.n[0],
            "n_b": prior.n[1],
            "distance": None if few else prior.distance,
            "sample_a": prior.sampled[0],
            "sample_b": prior.sampled[1],
            "sample_distance": prior.sample_distance,
            "chance": prior.chance,
            "d": None if few else prior.d,
            "p": prior.p,
            "q": found.q[place, -1],
            "drift": bool(found.drift[place, -1]),
            "matched": prior.matched,
            "correlation": prior.correlation,
            "mean_a": None if few else prior.mean[0].astype(np.float32),
            "mean_b": None if few else prior.mean[1].astype(np.float32),
        }
        for name, value in row.items():
            columns[name].append(value)
    return columns
