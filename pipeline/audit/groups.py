"""``groups.parquet``: every measure by class, group and outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.fixed import SCALAR_BITS, Integers, floating
from pipeline.audit.frame import Frame
from pipeline.audit.reading import CellReader
from pipeline.audit.rows import EVERYTHING
from pipeline.audit.table import COUNTS, DRAWN, HISTOGRAM
from schemas.audit import BINS, GROUPS, MEASURES, OUTCOMES, Settings
from schemas.tables import FLAGS

#: The outcome of rows that hold all outcomes.
ALL = "all"
_SHARES = (0.05, 0.5, 0.95)
#: Ends of the bootstrap's percentile interval (Efron, SIAM 1982, section 10.4).
_ENDS = (0.025, 0.975)
_ESTIMATES = ("mean", "std", "low", "high", "q05", "median", "q95")
_SUMS = (*COUNTS, *HISTOGRAM)
#: Groups of cells that are looked at together, and those of them whose resamples are.
_TOGETHER = 256
_DRAWN_TOGETHER = 32

Floats = npt.NDArray[np.float64]


@dataclass
class _Rows:
    """R rows of the table as numbers: ``target`` -1 for all classes, ``outcome`` 0 for all; the rest as they stand."""

    series: npt.NDArray[np.int16]
    pair: npt.NDArray[np.int32]
    target: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    measure: npt.NDArray[np.int8]
    n: Integers
    flags: Integers
    estimates: Floats


def groups_table(maps: CellReader, frame: Frame) -> pa.Table:
    """Return the table :data:`schemas.audit.GROUPS`: rows by series, class, group, outcome and measure.

    Rows of all classes together have a null ``target_class``, rows of all groups a null ``attribute`` and ``value``,
    and rows of all outcomes the outcome ``all``. ``n`` counts the maps for which the measure is defined: below
    ``suppressed_below`` there is no row, below ``interval_from`` it stands alone. ``low`` and ``high`` bound the mean
    with 95% (percentiles of the bootstrap); they are null of series that are not the audit's own. Quantiles are those
    of a histogram of 32 bins.
    """
    numbers = maps.series()
    pairs = sorted({pair for series in numbers for pair in maps.index(series).pairs})
    parts = [part for series in numbers for part in _of_series(maps, series, pairs, frame.settings)]
    return _table(parts, pairs, frame)


def _of_series(maps: CellReader, series: int, pairs: list[tuple[str, str]], settings: Settings) -> Iterator[_Rows]:
    """Yield the rows of a series: those of all classes, and class by class."""
    index = maps.index(series)
    place = np.array([pairs.index(pair) for pair in index.pairs], np.int64)
    yield from _of_all(maps, series, pairs, settings)
    target, pair, outcome = index.columns()
    # Cells of one class and group, which differ by the outcome, must not be parted.
    whole = np.flatnonzero(np.append(True, (target[1:] != target[:-1]) | (pair[1:] != pair[:-1])))
    for first in range(0, len(whole), _TOGETHER):
        starts = whole[first : first + _TOGETHER]
        stop = int(whole[first + _TOGETHER]) if first + _TOGETHER < len(whole) else len(index)
        start = int(starts[0])
        sums = maps.bulk(series, start, stop, COUNTS) | maps.bulk(series, start, stop, HISTOGRAM)
        bounds = np.append(starts, stop) - start
        items = {
            name: np.concatenate([np.add.reduceat(values, bounds[:-1], axis=0), values])
            for name, values in sums.items()
        }
        cells = slice(start, stop)
        about = (
            np.concatenate([place[pair[starts]], place[pair[cells]]]),
            np.concatenate([target[starts], target[cells]]),
            np.concatenate([np.zeros(len(starts), np.int64), outcome[cells] + 1]),
        )
        ends = None
        if DRAWN[0] in maps.names(series):
            ends = _ends_of(maps, series, start, bounds, items["count"] >= settings.interval_from)
        yield _rows(series, about, items, ends, settings)


def _ends_of(
    maps: CellReader, series: int, start: int, bounds: npt.NDArray[np.int64], told: npt.NDArray[np.bool_]
) -> Floats:
    """Return the ends (G + K, M, 2) of the intervals of G groups of neighbouring cells, and of these K cells.

    Args:
        maps: the cells.
        series: of the cells.
        start: place of the first cell.
        bounds: (G + 1,) where each group begins, in cells.
        told: (G + K, M) whether there is an interval. A group has one where a cell of it has.
    """
    groups = len(bounds) - 1
    found = np.full((*told.shape, 2), np.nan)
    wanted = np.flatnonzero(told[:groups].any(1))
    at = 0
    while at < len(wanted):
        # Neighbours, few at a time: resamples are large, and what lies between is drawn as well.
        some = wanted[at : int(np.searchsorted(wanted, wanted[at] + _DRAWN_TOGETHER))]
        at += len(some)
        first, last = int(bounds[some[0]]), int(bounds[some[-1] + 1])
        sums = maps.bulk(series, start + first, start + last, DRAWN)
        inside = slice(int(some[0]), int(some[-1]) + 1)
        drawn, total = (sums[name] for name in DRAWN)
        starts = bounds[inside] - first
        whole = np.add.reduceat(drawn, starts, axis=0), np.add.reduceat(total, starts, axis=0)
        cells = slice(groups + first, groups + last)
        found[inside] = _intervals(*whole, told[inside])
        found[cells] = _intervals(drawn, total, told[cells])
    return found


def _of_all(maps: CellReader, series: int, pairs: list[tuple[str, str]], settings: Settings) -> Iterator[_Rows]:
    """Yield the rows of all classes together."""
    for number, (attribute, value) in enumerate(pairs):
        found = [maps.total(series, attribute, value, outcome) for outcome in range(len(OUTCOMES))]
        cells = [(outcome + 1, cell.sums) for outcome, cell in enumerate(found) if cell is not None]
        if not cells:
            continue
        own = [each for _, each in cells]
        sums = [{name: np.asarray(sum(each[name] for each in own)) for name in own[0]}, *own]
        items = {name: np.stack([each[name] for each in sums]) for name in sums[0]}
        about = np.full(len(sums), number), np.full(len(sums), -1), np.array([0, *(outcome for outcome, _ in cells)])
        told = items["count"] >= settings.interval_from
        ends = _intervals(items[DRAWN[0]], items[DRAWN[1]], told) if DRAWN[0] in items else None
        yield _rows(series, about, {name: items[name] for name in _SUMS}, ends, settings)


def _rows(
    series: int,
    about: tuple[Integers, Integers, Integers],
    sums: dict[str, Integers],
    ends: Floats | None,
    settings: Settings,
) -> _Rows:
    """Return the rows of K items: ``about`` are pair, class and outcome (K,) of each, ``sums`` (K, ...) by name."""
    counts = sums["count"]
    item, measure = np.nonzero(counts >= settings.suppressed_below)
    estimates = np.full((*counts.shape, len(_ESTIMATES)), np.nan)
    told = np.flatnonzero(counts.max(1, initial=0) >= settings.interval_from)
    if len(told):
        estimates[told] = _estimates({name: values[told] for name, values in sums.items()}, settings)
    if ends is not None:
        low = _ESTIMATES.index("low")
        estimates[..., low : low + 2] = ends
    pair, target, outcome = (each[item] for each in about)
    return _Rows(
        series=np.full(len(item), series, np.int16),
        pair=pair.astype(np.int32),
        target=target.astype(np.int32),
        outcome=outcome.astype(np.int8),
        measure=measure.astype(np.int8),
        n=counts[item, measure],
        flags=sums["flags"][item],
        estimates=estimates[item, measure],
    )


def _estimates(sums: dict[str, Integers], settings: Settings) -> Floats:
    """Return :data:`_ESTIMATES` (K, M, 7) without intervals; NaN where there are too few maps, or none that say."""
    counts = sums["count"]
    n = np.where(counts >= settings.interval_from, counts, np.nan).astype(np.float64)
    mean = floating(sums["total"], SCALAR_BITS) / n
    variance = (floating(sums["square"], SCALAR_BITS) - n * mean**2) / (n - 1)
    nothing = np.full(n.shape, np.nan)
    found = np.stack(
        [mean, np.sqrt(np.maximum(variance, 0)), nothing, nothing, *_quantiles(sums["histogram"])], axis=-1
    )
    found[np.isnan(n)] = np.nan
    return found


def _intervals(drawn: Integers, total: Integers, told: npt.NDArray[np.bool_]) -> Floats:
    """Return the ends (K, M, 2) of the interval of each mean that is to be ``told``, from resamples (K, B, M)."""
    # Resamples in which nothing is drawn are as rare as e^-n; they have no mean and are left out.
    counts, totals = (values.transpose(0, 2, 1)[told].astype(np.float64) for values in (drawn, total))
    found = np.full((*told.shape, 2), np.nan)
    totals /= 1 << SCALAR_BITS
    means = np.sort(np.divide(totals, counts, out=np.full(counts.shape, np.nan), where=counts > 0), axis=1)
    last = np.isfinite(means).sum(1) - 1
    rows = np.arange(len(means))
    ends = []
    for share in _ENDS:
        place = share * np.maximum(last, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(last, 0))
        low, high = means[rows, below], means[rows, above]
        ends.append(np.where(last >= 0, low + (place - below) * (high - low), np.nan))
    found[told] = np.stack(ends, 1)
    return found


def _quantiles(histogram: Integers) -> Floats:
    """Return (shares, K, M): quantiles from histograms (K, M, BINS), evenly spread over each bin; NaN of nothing."""
    shape = histogram.shape[:2]
    flat = histogram.reshape(-1, BINS)
    below = np.concatenate([np.zeros((len(flat), 1), np.int64), np.cumsum(flat, 1)], 1)
    rows = np.arange(len(flat))
    found = np.full((len(_SHARES), len(flat)), np.nan)
    low = np.tile([measure.low for measure in MEASURES], shape[0])
    width = np.tile([(measure.high - measure.low) / BINS for measure in MEASURES], shape[0])
    for place, share in enumerate(_SHARES):
        wanted = share * below[:, -1]
        bins = np.clip((below <= wanted[:, None]).sum(1) - 1, 0, BINS - 1)
        inside = (wanted - below[rows, bins]) / np.maximum(flat[rows, bins], 1)
        found[place] = low + (bins + np.minimum(1.0, inside)) * width
    found[:, below[:, -1] == 0] = np.nan
    return found.reshape(len(_SHARES), *shape)


def _table(parts: list[_Rows], pairs: list[tuple[str, str]], frame: Frame) -> pa.Table:
    """Return all rows in order, with names; column by column, so that little is there twice."""

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])

    keys = {name: column(name) for name in ("measure", "outcome", "target", "pair", "series")}
    order = np.lexsort(list(keys.values()))
    measure, outcome, target, pair, series = (values[order].astype(np.int64) for values in keys.values())
    del keys
    everything = np.array([attribute == EVERYTHING for attribute, _ in pairs], np.bool_)[pair]
    nobody = target < 0
    unnamed = nobody if frame.class_names is not None else np.ones(len(nobody), np.bool_)
    present = np.unique(target[~unnamed])
    found: dict[str, pa.Array] = {
        "method": _named([each.method for each in frame.series], series),
        "layer": _named([each.layer for each in frame.series], series),
        "target_class": pa.array(target, pa.int32(), mask=nobody),
        "target_name": _named([frame.name(int(each)) for each in present], np.searchsorted(present, target), unnamed),
        "attribute": _named([attribute for attribute, _ in pairs], pair, everything),
        "value": _named([value for _, value in pairs], pair, everything).cast(pa.string()),
        "outcome": _named([ALL, *OUTCOMES], outcome),
        "measure": _named([each.name for each in MEASURES], measure),
        "n": pa.array(column("n")[order], pa.int64()),
    }
    for names, kind in (("flags", FLAGS), ("estimates", _ESTIMATES)):
        for place, name in enumerate(kind):
            values = np.concatenate([getattr(part, names)[:, place] for part in parts] or [np.empty(0)])[order]
            found[name] = pa.array(values, GROUPS.field(name).type, from_pandas=True)
    return pa.table([found[name] for name in GROUPS.names], schema=GROUPS)


def _named(names: Sequence[str], places: Integers, absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Return a column of names by their places; null where it is ``absent``."""
    unique = {name: number for number, name in enumerate(dict.fromkeys(names))}
    number = np.array([unique[name] for name in names] or [0], np.int32)
    codes = number[np.minimum(places, len(number) - 1)]
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=absent), pa.array(list(unique), pa.string()))
