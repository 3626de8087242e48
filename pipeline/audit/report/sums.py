"""The audit's sums as arrays: per class, per class and group, per group over all classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.cells import EVERYTHING, Cell
from pipeline.audit.findings.base import Evidence
from pipeline.audit.freed import give_back
from pipeline.audit.groups import ALL
from pipeline.audit.report.limits import Limits
from pipeline.audit.table import COUNTS, MAPS
from schemas.audit import GRID, MEASURES, OUTCOMES, Settings
from schemas.tables import FLAGS

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

#: (class or None for all, attribute, value).
CellKey = tuple[int | None, str, str]

_M = len(MEASURES)
#: (class, group) pairs whose sums are in memory at a time.
_TOGETHER = 128
#: Rows of the groups table that are looked at together.
_PORTION = 1 << 16
_OUTCOMES = (ALL, "right", "wrong")


@dataclass
class Rows:
    """K cells as columns.

    Attributes:
        n: (K,) int64 maps.
        mean, low, high: (K, M) float64, the mean of each measure and its 95% interval; NaN below ``interval_from``.
        right_mean, wrong_mean: (K, M) float64, means over images that were predicted right, and wrong.
        right, wrong: (K,) int64 maps of images that were predicted right and wrong.
        flagged: (K,) int64 maps that are constant (all zero ones too) or not finite.
        mean_map, deviation_map: (K, GRID, GRID) float64, density of mean 1; NaN below ``interval_from``.
    """

    n: Integers
    mean: Floats
    low: Floats
    high: Floats
    right_mean: Floats
    wrong_mean: Floats
    right: Integers
    wrong: Integers
    flagged: Integers
    mean_map: Floats
    deviation_map: Floats

    def __len__(self) -> int:
        return len(self.n)


@dataclass
class Numbers:
    """Everything that the page's tables, maps and plots are made of.

    Attributes:
        total: one row, of all maps.
        classes: class indices, ascending; ``by_class`` has a row for each.
        groups: (attribute, value), in order; ``by_group`` has a row for each, over all classes.
        cells: (place in ``classes``, place in ``groups``); ``by_cell`` has a row for each.
        classes_left_out, cells_left_out: what the page's limits leave out.
        suppressed: (class, group) pairs with fewer maps than the settings show.
    """

    total: Rows
    classes: list[int]
    by_class: Rows
    groups: list[tuple[str, str]]
    by_group: Rows
    cells: list[tuple[int, int]]
    by_cell: Rows
    classes_left_out: int = 0
    cells_left_out: int = 0
    suppressed: int = 0


def numbers_of(evidence: Evidence, groups: pa.Table, limits: Limits, wanted: Iterable[int] = ()) -> Numbers:
    """Return the numbers of the audit's method.

    Args:
        evidence: of the audit; it gives maps and counts.
        groups: :data:`schemas.audit.GROUPS`; it gives means and intervals.
        limits: how many classes and groups are kept: the largest.
        wanted: classes that are kept whatever their size.
    """
    settings, first = evidence.frame.settings, set(wanted)
    size = _sizes(evidence)
    classes = sorted(key[0] for key in size if key[0] is not None and key[1] == EVERYTHING)
    kept = _kept(classes, lambda target: size[target, EVERYTHING, ""], limits.classes, first)
    place = {target: number for number, target in enumerate(kept)}
    values = _kept_values(size, limits.values)
    number = {group: each for each, group in enumerate(values)}
    pairs = [key for key in size if key[0] in place and key[1] != EVERYTHING and key[1:] in number]
    shown = [key for key in pairs if size[key] >= settings.suppressed_below]
    cells = _kept(shown, lambda key: size[key], limits.cells, {key for key in shown if key[0] in first})

    keys: list[CellKey] = [(None, EVERYTHING, "")]
    keys += [(target, EVERYTHING, "") for target in kept]
    keys += [(None, attribute, value) for attribute, value in values]
    keys += cells
    rows = _rows(evidence, groups, keys, settings)
    give_back()
    stops = np.cumsum([0, 1, len(kept), len(values), len(cells)]).tolist()
    total, by_class, by_group, by_cell = (_part(rows, *ends) for ends in pairwise(stops))
    return Numbers(
        total=total,
        classes=kept,
        by_class=by_class,
        groups=values,
        by_group=by_group,
        cells=[(place[target], number[attribute, value]) for target, attribute, value in cells if target is not None],
        by_cell=by_cell,
        classes_left_out=len(classes) - len(kept),
        cells_left_out=len(shown) - len(cells),
        suppressed=len(pairs) - len(shown),
    )


def _sizes(evidence: Evidence) -> dict[CellKey, int]:
    found: dict[CellKey, int] = {}
    index = evidence.state.maps.index(evidence.frame.primary)
    for key, rows in zip(index, index.rows.tolist(), strict=True):
        found[key[1:4]] = found.get(key[1:4], 0) + rows
    return found


_Any = TypeVar("_Any", bound=Any)


def _kept(keys: Iterable[_Any], size: Callable[[_Any], int], most: int, wanted: Collection[_Any]) -> list[_Any]:
    """Return at most ``most`` of ``keys``, in order: the wanted ones first, then the largest."""
    found = sorted(keys)
    if len(found) <= most:
        return found
    best = sorted(found, key=lambda key: (key not in wanted, -size(key), key))[:most]
    return sorted(best)


def _kept_values(size: dict[CellKey, int], most: int) -> list[tuple[str, str]]:
    total: dict[tuple[str, str], int] = {}
    for (_, attribute, value), rows in size.items():
        if attribute != EVERYTHING:
            total[attribute, value] = total.get((attribute, value), 0) + rows
    found: list[tuple[str, str]] = []
    for attribute in sorted({name for name, _ in total}):
        mine = [group for group in total if group[0] == attribute]
        found += sorted(sorted(mine, key=lambda group: (-total[group], group))[:most])
    return found


def _rows(evidence: Evidence, groups: pa.Table, keys: list[CellKey], settings: Settings) -> Rows:
    place = {key: number for number, key in enumerate(keys)}
    outcomes, flagged, maps, deviations = _maps(evidence, keys, settings)
    means = _means(evidence, groups, place)
    return Rows(
        n=outcomes.sum(1),
        mean=means[0, 0],
        low=means[1, 0],
        high=means[2, 0],
        right_mean=means[0, 1],
        wrong_mean=means[0, 2],
        right=outcomes[:, OUTCOMES.index("right")],
        wrong=outcomes[:, OUTCOMES.index("wrong")],
        # A map of zeros is constant too.
        flagged=flagged[:, 1:].sum(1),
        mean_map=maps,
        deviation_map=deviations,
    )


def _maps(evidence: Evidence, keys: list[CellKey], settings: Settings) -> tuple[Integers, Integers, Floats, Floats]:
    """Return rows (K, outcomes), flags (K, 3), mean maps and deviations (K, GRID, GRID) of some cells."""
    cells, series = evidence.state.maps, evidence.frame.primary
    index = cells.index(series)
    outcomes, flags = np.zeros((len(keys), len(OUTCOMES)), np.int64), np.zeros((len(keys), len(FLAGS)), np.int64)
    maps, deviations = np.full((2, len(keys), GRID, GRID), np.nan)

    def put(number: int, cell: Cell) -> None:
        flags[number] = cell.sums["flags"]
        if cell.maps >= settings.interval_from:
            maps[number], deviations[number] = cell.mean_map(), np.sqrt(cell.variance_map())

    for number, (target, attribute, value) in enumerate(keys):
        if target is None:
            for outcome in range(len(OUTCOMES)):
                part = cells.total(series, attribute, value, outcome)
                outcomes[number, outcome] = 0 if part is None else part.rows
            whole = cells.collect(series, None, attribute, value)
            if whole is not None:
                put(number, whole)
    # Cells of one class and group differ by the outcome and are neighbours; they are read in the order they lie in.
    of_class, pair, of_outcome = index.columns()
    place = {key: number for number, key in enumerate(keys)}
    starts = np.flatnonzero(np.append(True, (of_class[1:] != of_class[:-1]) | (pair[1:] != pair[:-1]))[: len(index)])
    stops = np.append(starts[1:], len(index))
    numbers = [place.get(index[start][1:4], -1) for start in starts.tolist()]
    for at in range(0, len(starts), _TOGETHER):
        some = [each for each in range(at, min(at + _TOGETHER, len(starts))) if numbers[each] >= 0]
        if not some:
            continue
        first, last = int(starts[some[0]]), int(stops[some[-1]])
        sums = cells.bulk(series, first, last, COUNTS) | cells.bulk(series, first, last, MAPS)
        for each in some:
            mine = slice(int(starts[each]), int(stops[each]))
            outcomes[numbers[each], of_outcome[mine]] = index.rows[mine]
            rows = slice(mine.start - first, mine.stop - first)
            put(numbers[each], Cell({name: values[rows].sum(0) for name, values in sums.items()}))
    give_back()
    return outcomes, flags, maps, deviations


def _means(evidence: Evidence, groups: pa.Table, place: dict[CellKey, int]) -> Floats:
    """Return (3, 3, K, M): mean, low and high, of all maps, those predicted right and those predicted wrong."""
    series = evidence.frame.series[evidence.frame.primary]
    mine = (pc.field("method") == series.method) & (pc.field("layer") == series.layer)
    found = np.full((3, len(_OUTCOMES), len(place), _M), np.nan)
    # Portion by portion, since keys as Python objects take ten times the table.
    for batch in groups.to_batches(max_chunksize=_PORTION):
        table = pa.Table.from_batches([batch]).filter(mine & pc.field("outcome").isin(_OUTCOMES))
        keys = zip(*(table[name].to_pylist() for name in ("target_class", "attribute", "value")), strict=True)
        rows = np.array(
            [place.get((target, attribute or "", value or ""), -1) for target, attribute, value in keys], np.int64
        )
        outcome = _codes(table["outcome"], _OUTCOMES)
        measure = _codes(table["measure"], tuple(each.name for each in MEASURES))
        known = (rows >= 0) & (measure >= 0)
        for number, name in enumerate(("mean", "low", "high")):
            values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
            found[number, outcome[known], rows[known], measure[known]] = values[known]
    return found


def _codes(column: pa.ChunkedArray, names: tuple[str, ...]) -> Integers:
    """Return the place of each value among ``names``; -1 where it is none of them."""
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(names))
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def _part(rows: Rows, start: int, stop: int) -> Rows:
    return Rows(**{name: values[start:stop] for name, values in vars(rows).items()})
