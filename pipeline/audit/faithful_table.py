"""Faithfulness of methods over images, as a table: means, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.intervals import percentile_interval
from pipeline.audit.keys import Keys, poisson_weights
from schemas.audit import FAITHFULNESS, Settings

Floats = npt.NDArray[np.float64]


class FaithfulMeasure(NamedTuple):
    """A measure of faithfulness: its name, which way is better (None: neither), and what it says."""

    name: str
    better: str | None
    doc: str


FAITHFUL_MEASURES: tuple[FaithfulMeasure, ...] = (
    FaithfulMeasure("road", "higher", "(road_lerf - road_morf) / 2"),
    FaithfulMeasure("road_morf", "lower", "probability where the most relevant pixels are imputed, mean over shares"),
    FaithfulMeasure("road_lerf", "higher", "probability where the least relevant pixels are imputed"),
    FaithfulMeasure("drop", "lower", "average drop: max(0, Y - O) / Y, O the probability of image x map"),
    FaithfulMeasure("increase", "higher", "increase in confidence: share of images with Y < O"),
    FaithfulMeasure("deletion", "lower", "area under the probability while the most relevant pixels go"),
    FaithfulMeasure("insertion", "higher", "area under the probability while they come into a blurred image"),
    FaithfulMeasure("kept", None, "mean of the scaled map (complexity): drop and increase reward much of it"),
    FaithfulMeasure("coherency", "higher", "(1 + correlation with the map of image x map) / 2"),
    FaithfulMeasure("adcc", "higher", "harmonic mean of coherency, 1 - kept and 1 - drop"),
)


class Row(NamedTuple):
    """What a row of values is of: a method and layer, or a baseline, whose layer says of which grid it is."""

    method: str
    layer: str | None
    baseline: bool = False


RANDOM, CENTRE, UNIFORM = "random map", "centre", "uniform map"


def faithfulness_table(rows: Sequence[Row], values: Floats, keys: Keys, settings: Settings) -> pa.Table:
    """Return :data:`schemas.audit.FAITHFULNESS`, measure by measure in the order of ``rows``.

    Intervals are percentiles of a Poisson bootstrap over what the keys name. As everywhere in the audit, means of fewer
    images than ``suppressed_below`` and intervals of fewer than ``interval_from`` are null. The best method is that of
    the best mean, baselines apart.

    Args:
        rows: R of them.
        values: (R, M, N) for M = ``FAITHFUL_MEASURES`` and N images; NaN where a row has none.
        keys: (N,) of the images, or of what they depend on.
        settings: of the audit.
    """
    weights = poisson_weights(keys, settings.bootstrap).astype(np.float64)
    randoms = {row.layer: number for number, row in enumerate(rows) if row.method == RANDOM and row.baseline}
    columns: dict[str, list[Any]] = {name: [] for name in FAITHFULNESS.names}
    for place, measure in enumerate(FAITHFUL_MEASURES):
        of = values[:, place]
        means = [_mean(each, weights, settings) for each in of]
        best = _best(rows, [mean["mean"] for mean in means], measure.better)
        for number, row in enumerate(rows):
            to_random = None if row.baseline else randoms.get(row.layer)
            cells: dict[str, Any] = {"method": row.method, "layer": row.layer, "baseline": row.baseline}
            cells |= {"measure": measure.name, "better": measure.better, "best": number == best}
            cells |= means[number]
            for name, other in (("to_best", best), ("to_random", to_random)):
                apart = np.full_like(of[number], np.nan) if other is None or other == number else of[number] - of[other]
                found = _mean(apart, weights, settings)
                cells |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
            for name, value in cells.items():
                columns[name].append(value)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in FAITHFULNESS}, FAITHFULNESS)


def no_better_than_random(table: pa.Table, measure: str = "road") -> list[Row]:
    """Return the methods of whose advantage over a random map of the same grid the interval does not exclude 0."""
    found = []
    for row in table.to_pylist():
        if row["measure"] != measure or row["to_random_low"] is None:
            continue
        beats = row["to_random_low"] > 0 if row["better"] == "higher" else row["to_random_high"] < 0
        if not beats:
            found.append(Row(row["method"], row["layer"]))
    return found


def faithfulness_lines(table: pa.Table) -> list[str]:
    """Return what to tell people: the best by ROAD, how far the others are behind, and who does not beat chance."""
    rows = [row for row in table.to_pylist() if row["measure"] == "road" and not row["baseline"]]
    best = next((row for row in rows if row["best"]), None)
    if best is None:
        return [f"too few images to compare methods ({max((row['n'] for row in rows), default=0)})"]
    interval = "" if best["low"] is None else f" ({best['low']:.3f} to {best['high']:.3f})"
    lines = [f"best by ROAD over {best['n']} images: {best['method']} at {best['layer']}, {best['mean']:.3f}{interval}"]
    weak = no_better_than_random(table)
    if weak:
        names = ", ".join(f"{row.method} at {row.layer}" for row in weak)
        lines.append(f"no better than a random map: {names}")
    return lines


def _best(rows: Sequence[Row], means: Sequence[float | None], better: str | None) -> int | None:
    sign = {"higher": 1.0, "lower": -1.0, None: None}[better]
    if sign is None:
        return None
    known = [(sign * mean, -number) for number, mean in enumerate(means) if mean is not None]
    known = [each for each in known if not rows[-each[1]].baseline]
    return -max(known)[1] if known else None


def _mean(values: Floats, weights: Floats, settings: Settings) -> dict[str, Any]:
    """Return ``n``, ``mean``, ``low`` and ``high`` of values (N,), NaNs left out; None where too few are there."""
    defined = ~np.isnan(values)
    n = int(defined.sum())
    found: dict[str, Any] = {"n": n, "mean": None, "low": None, "high": None}
    if n and n >= settings.suppressed_below:
        found["mean"] = float(values[defined].mean())
    if n and n >= settings.interval_from:
        drawn = weights[defined]
        total = drawn.sum(0)
        resampled = np.where(total > 0, values[defined] @ drawn / np.maximum(total, 1), np.nan)
        low, high = percentile_interval(resampled)
        if np.isfinite(low):
            found["low"], found["high"] = float(low), float(high)
    return found
