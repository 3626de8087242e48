"""``groups.parquet``: every measure by class, group and outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.cells import EVERYTHING, Cell, Key
from pipeline.audit.fixed import SCALAR_BITS, floating
from pipeline.audit.frame import Frame
from pipeline.audit.reading import CellReader
from schemas.audit import BINS, GROUPS, MEASURES, OUTCOMES, Settings
from schemas.tables import FLAGS

#: The outcome of rows that hold all outcomes.
ALL = "all"
_SHARES = (0.05, 0.5, 0.95)
#: Ends of the bootstrap's percentile interval (Efron, SIAM 1982, section 10.4).
_ENDS = (0.025, 0.975)

_ESTIMATES = ("mean", "std", "low", "high", "q05", "median", "q95")

Floats = npt.NDArray[np.float64]


class _About(NamedTuple):
    """What rows are about; ``target_class`` None: all classes."""

    series: int
    target_class: int | None
    attribute: str
    value: str
    outcome: str


def groups_table(maps: CellReader, frame: Frame) -> pa.Table:
    """Return the table :data:`schemas.audit.GROUPS`: rows by series, class, group, outcome and measure.

    Rows of all classes together have a null ``target_class``, rows of all groups a null ``attribute`` and ``value``,
    and rows of all outcomes the outcome ``all``. ``n`` counts the maps for which the measure is defined: below
    ``suppressed_below`` there is no row, below ``interval_from`` it stands alone. ``low`` and ``high`` bound the mean
    with 95% (percentiles of the bootstrap); they are null of series that are not the audit's own. Quantiles are those
    of a histogram of 32 bins.
    """
    columns: dict[str, list[Any]] = {name: [] for name in GROUPS.names}
    for about, cell in _sums(maps):
        _add(columns, about, cell, frame)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in GROUPS}, schema=GROUPS)


def _sums(maps: CellReader) -> Iterator[tuple[_About, Cell]]:
    """Yield all that rows are about, in order, with its sums."""
    by_group: dict[tuple[int, str, str], list[Key]] = {}
    cells = maps.cells
    for key in sorted(cells):
        by_group.setdefault((key.series, key.attribute, key.value), []).append(key)
    for (series, attribute, value), keys in sorted(by_group.items()):
        whole: dict[str, Cell] = {}
        by_class: dict[int, dict[str, Cell]] = {}
        for key in keys:
            cell = cells[key]
            whole.setdefault(OUTCOMES[key.outcome], Cell()).merge(cell)
            by_class.setdefault(key.target_class, {})[OUTCOMES[key.outcome]] = cell
        for target, outcomes in [(None, whole), *sorted(by_class.items())]:
            yield _About(series, target, attribute, value, ALL), _together(list(outcomes.values()))
            for outcome in OUTCOMES:
                if outcome in outcomes:
                    yield _About(series, target, attribute, value, outcome), outcomes[outcome]


def _together(cells: list[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    found = Cell()
    for cell in cells:
        found.merge(cell)
    return found


def _add(columns: dict[str, list[Any]], about: _About, cell: Cell, frame: Frame) -> None:
    """Append the rows of one cell."""
    settings = frame.settings
    counts = cell.sums["count"]
    shown = np.flatnonzero(counts >= settings.suppressed_below)
    if not len(shown):
        return
    series, everything = frame.series[about.series], about.attribute == EVERYTHING
    target = about.target_class
    same = {
        "method": series.method,
        "layer": series.layer,
        "target_class": target,
        "target_name": None if target is None or frame.class_names is None else frame.name(target),
        "attribute": None if everything else about.attribute,
        "value": None if everything else about.value,
        "outcome": about.outcome,
        **dict(zip(FLAGS, cell.sums["flags"].tolist(), strict=True)),
    }
    for name, value in same.items():
        columns[name] += [value] * len(shown)
    columns["measure"] += [MEASURES[place].name for place in shown]
    columns["n"] += counts[shown].tolist()
    if counts.max() < settings.interval_from:
        for name in _ESTIMATES:
            columns[name] += [None] * len(shown)
        return
    for name, values in _estimates(cell, settings).items():
        columns[name] += [None if np.isnan(value) else value for value in values[shown].tolist()]


def _estimates(cell: Cell, settings: Settings) -> dict[str, Floats]:
    """Return the numbers of each measure (M,); NaN where there are too few maps, or none that say."""
    counts = cell.sums["count"]
    n = np.where(counts >= settings.interval_from, counts, np.nan).astype(np.float64)
    mean = floating(cell.sums["total"], SCALAR_BITS) / n
    variance = (floating(cell.sums["square"], SCALAR_BITS) - n * mean**2) / (n - 1)
    low, high = _interval(cell, len(counts))
    quantiles = _quantiles(cell.sums["histogram"])
    few = np.isnan(n)
    found = {
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0)),
        "low": low,
        "high": high,
        **dict(zip(("q05", "median", "q95"), quantiles, strict=True)),
    }
    return {name: np.where(few, np.nan, values) for name, values in found.items()}


def _interval(cell: Cell, measures: int) -> tuple[Floats, Floats]:
    """Return the ends of the interval of each mean; NaN without a bootstrap."""
    if "drawn" not in cell.sums:
        return np.full(measures, np.nan), np.full(measures, np.nan)
    # Resamples in which nothing is drawn are as rare as e^-n; they have no mean and are left out.
    drawn = cell.sums["drawn"].astype(np.float64)
    total = floating(cell.sums["drawn_total"], SCALAR_BITS)
    means = np.sort(np.divide(total, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0), axis=0)
    last = np.isfinite(means).sum(0) - 1
    columns = np.arange(measures)
    ends = []
    for share in _ENDS:
        place = share * np.maximum(last, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(last, 0))
        low, high = means[below, columns], means[above, columns]
        ends.append(np.where(last >= 0, low + (place - below) * (high - low), np.nan))
    return ends[0], ends[1]


def _quantiles(histogram: npt.NDArray[np.int64]) -> Floats:
    """Return (shares, M): quantiles from histograms (M, BINS), evenly spread over each bin; NaN of nothing."""
    below = np.concatenate([np.zeros((len(histogram), 1), np.int64), np.cumsum(histogram, 1)], 1)
    rows = np.arange(len(histogram))
    found = np.full((len(_SHARES), len(histogram)), np.nan)
    low = np.array([measure.low for measure in MEASURES])
    width = np.array([(measure.high - measure.low) / BINS for measure in MEASURES])
    for place, share in enumerate(_SHARES):
        wanted = share * below[:, -1]
        bins = np.clip((below <= wanted[:, None]).sum(1) - 1, 0, BINS - 1)
        inside = (wanted - below[rows, bins]) / np.maximum(histogram[rows, bins], 1)
        found[place] = low + (bins + np.minimum(1.0, inside)) * width
    found[:, below[:, -1] == 0] = np.nan
    return found
