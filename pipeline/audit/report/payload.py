"""What the page's script draws tables, maps and plots from, as one JSON value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.findings.base import Evidence
from pipeline.audit.groups import ALL
from pipeline.audit.report.limits import Limits
from pipeline.audit.report.pack import clean, encoded, packed_maps, quantised
from pipeline.audit.report.sums import Numbers, Rows
from pipeline.audit.report.words import measure_label
from pipeline.lake.overlay import diverging, sequential
from schemas.audit import GRID, MEASURE_INDEX, MEASURES

#: What a uniform map has, or what says that there is nothing to see.
_NEUTRAL = {"border_enrichment": 1.0, "corner_enrichment": 1.0, "enrichment": 1.0, "skill": 0.0}


def payload(evidence: Evidence, numbers: Numbers, limits: Limits) -> dict[str, Any]:
    """Return the numbers of the page; findings and pictures are added by others.

    Maps and numbers per class, group, and class and group are columns of 16-bit steps and bytes
    (:mod:`pipeline.audit.report.pack`), so that a thousand classes are some megabytes.
    """
    frame, settings = evidence.frame, evidence.frame.settings
    regional = bool(np.isfinite(numbers.total.mean[:, MEASURE_INDEX["energy"]]).any()) if len(numbers.total) else False
    with_map = _largest(numbers.by_cell, limits.cell_maps)
    attributes = list(dict.fromkeys(attribute for attribute, _ in numbers.groups))
    method = frame.series[frame.primary].method
    return {
        "signed": next(info.signed for info in evidence.lake.manifest.methods if info.key == method),
        "grid": GRID,
        "colours": {"sequential": encoded(sequential()), "diverging": encoded(diverging())},
        "measures": [
            {
                "name": measure.name,
                "label": measure_label(measure.name),
                "doc": measure.doc,
                "neutral": _NEUTRAL.get(measure.name),
                "shown": regional or not measure.regional,
            }
            for measure in MEASURES
        ],
        "suppressedBelow": settings.suppressed_below,
        "intervalFrom": settings.interval_from,
        "flaggedFrom": settings.flagged_from,
        "total": _packed(numbers.total),
        "classes": {
            "ids": numbers.classes,
            "names": [clean(frame.name(each), limits.name) for each in numbers.classes],
            **_packed(numbers.by_class),
            "outcomes": quantised(np.concatenate([numbers.by_class.right_mean, numbers.by_class.wrong_mean], 1)),
        },
        "attributes": [clean(name, limits.name) for name in attributes],
        "groups": {
            "attribute": [attributes.index(attribute) for attribute, _ in numbers.groups],
            "value": [clean(value, limits.name) for _, value in numbers.groups],
            **_packed(numbers.by_group, deviation=False),
        },
        "cells": {
            "class": encoded(np.array([pair[0] for pair in numbers.cells], np.uint32)),
            "group": encoded(np.array([pair[1] for pair in numbers.cells], np.uint32)),
            **_packed(numbers.by_cell, maps=False),
            "mapped": encoded(with_map.astype(np.uint32)),
            "mean_map": packed_maps(numbers.by_cell.mean_map[with_map]),
        },
        "leftOut": {"classes": numbers.classes_left_out, "cells": numbers.cells_left_out},
        "hidden": numbers.suppressed,
    }


def _packed(rows: Rows, maps: bool = True, deviation: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": encoded(rows.n.astype(np.uint32)),
        "right": encoded(rows.right.astype(np.uint32)),
        "wrong": encoded(rows.wrong.astype(np.uint32)),
        "flagged": encoded(rows.flagged.astype(np.uint32)),
        "mean": quantised(rows.mean),
        "low": quantised(rows.low),
        "high": quantised(rows.high),
    }
    if maps:
        found["mean_map"] = packed_maps(rows.mean_map)
        if deviation:
            found["deviation_map"] = packed_maps(rows.deviation_map)
    return found


def _largest(rows: Rows, most: int) -> npt.NDArray[np.intp]:
    """Places, ascending, of the ``most`` rows with the most maps among those that have a mean map."""
    having = np.flatnonzero(np.isfinite(rows.mean_map[:, 0, 0]))
    best = having[np.argsort(-rows.n[having], kind="stable")[:most]]
    return np.sort(best)


def side_by_side(evidence: Evidence, groups: pa.Table) -> list[dict[str, Any]]:
    """Return, for each method and layer, the mean of each measure over all maps, from the groups table."""
    everything = pc.field("target_class").is_null() & pc.field("attribute").is_null() & (pc.field("outcome") == ALL)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in groups.filter(everything).select(["method", "layer", "measure", "n", "mean"]).to_pylist():
        if row["mean"] is not None:
            mine = found.setdefault((row["method"], row["layer"]), {"n": 0, "means": {}})
            mine["means"][row["measure"]] = row["mean"]
            mine["n"] = max(mine["n"], row["n"])
    nothing: dict[str, Any] = {"n": 0, "means": {}}
    return [
        {
            "method": series.method,
            "layer": series.layer,
            "primary": number == evidence.frame.primary,
            **found.get((series.method, series.layer), nothing),
        }
        for number, series in enumerate(evidence.frame.series)
    ]


def agreement(evidence: Evidence) -> list[tuple[str, str, float, int]]:
    """Return (method and layer, another, mean correlation of their maps, maps) for each pair; the lowest first."""
    series = evidence.frame.series
    several = len({each.layer for each in series}) > 1
    names = [f"{each.method} · {each.layer}" if several else each.method for each in series]
    totals: dict[int, list[float]] = {}
    for key, cell in evidence.state.agreement.cells.items():
        n = float(cell.count(0))
        if n and not key.attribute:
            both = totals.setdefault(key.series, [0.0, 0.0])
            both[0] += n
            both[1] += n * cell.mean(0)
    found = []
    for code, (n, total) in totals.items():
        first, second = divmod(code, len(series))
        found.append((names[first], names[second], total / n, int(n)))
    return sorted(found, key=lambda row: row[2])
