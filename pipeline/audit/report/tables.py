"""How the methods fare beside each other: as detectors of objects, and at marking what the model uses."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.audit.faithful_table import FAITHFUL_MEASURES
from pipeline.audit.localisation_table import CENTRE
from pipeline.audit.report.limits import Limits
from pipeline.audit.report.pack import clean

#: Methods and layers of a table.
_ROWS = 100

#: Columns of the table of localisation: name, heading, what it is, whether it is a share.
_LOCALISATION = (
    ("maps", "Maps", "of the sample, with known objects", False),
    ("max_box_acc_v2", "MaxBoxAccV2", "boxes found at the best threshold, mean over overlaps of 30, 50 and 70%", True),
    ("max_box_acc", "MaxBoxAcc", "the largest box overlaps by half, at the best threshold", True),
    ("px_ap", "PxAP", "area under precision and recall of the object's pixels", True),
    ("pointing", "Pointing game", "share of peaks inside the object, mean over classes", True),
    ("energy", "Energy", "share of the evidence inside the object", True),
    ("enrichment", "Enrichment", "energy over the object's share of the view; a uniform map has 1", False),
    ("rank_accuracy", "Rank accuracy", "share of the K strongest pixels inside the object of K pixels", True),
    ("skill", "Skill", "(energy - prior) / (1 - prior), the prior a centred Gaussian's energy", False),
)
_HEADINGS = {
    "road": "ROAD",
    "drop": "Average drop",
    "increase": "Increase",
    "deletion": "Deletion",
    "insertion": "Insertion",
    "kept": "Kept",
    "adcc": "ADCC",
}
_PERCENT = ("drop", "increase", "kept")


class Tables(NamedTuple):
    """What was measured of methods, where it was: :data:`schemas.audit.LOCALISATION` and ``FAITHFULNESS``."""

    localisation: pa.Table | None = None
    faithfulness: pa.Table | None = None


NO_TABLES = Tables()


def method_tables(tables: Tables, limits: Limits) -> list[dict[str, Any]]:
    """Return the tables as text: title, about, caption, columns (heading, meaning), rows (method, layer, cells)."""
    found = []
    if tables.localisation is not None:
        found.append(_localisation(tables.localisation, limits))
    if tables.faithfulness is not None:
        found.append(_faithfulness(tables.faithfulness, limits))
    return found


def _localisation(table: pa.Table, limits: Limits) -> dict[str, Any]:
    rows = table.to_pylist()
    methods = [row for row in rows if row["method"] != CENTRE][:_ROWS]
    # Counts and the object's size are no merit.
    judged = [name for name, *_ in _LOCALISATION if name != "maps"]
    best = {name: max((row[name] for row in methods if row[name] is not None), default=None) for name in judged}
    return {
        "title": "How well the maps find objects",
        "about": "Measured as detectors are. A centred object is found by a map that knows nothing: what counts is the "
        "distance to the Gaussian in the middle of the view.",
        "caption": "Over a sample of images whose objects are known; the best method of each column is bold",
        "columns": [(heading, doc) for _, heading, doc, _ in _LOCALISATION],
        "rows": [
            {
                "method": "centred Gaussian" if row["method"] == CENTRE else clean(row["method"], limits.name),
                "layer": clean(row["layer"], limits.name),
                "baseline": row["method"] == CENTRE,
                "cells": [
                    (
                        _text(row[name], share),
                        row["method"] != CENTRE and row[name] is not None and row[name] == best.get(name),
                    )
                    for name, _, _, share in _LOCALISATION
                ],
            }
            for row in [*methods, *(row for row in rows if row["method"] == CENTRE)]
        ],
    }


def _faithfulness(table: pa.Table, limits: Limits) -> dict[str, Any]:
    rows: dict[tuple[str, str | None, bool], dict[str, Any]] = {}
    for row in table.to_pylist():
        rows.setdefault((row["method"], row["layer"], row["baseline"]), {})[row["measure"]] = row
    images = max((row["n"] for of in rows.values() for row in of.values()), default=0)
    docs = {measure.name: measure.doc for measure in FAITHFUL_MEASURES}
    kept = [key for key in rows if not key[2]][:_ROWS] + [key for key in rows if key[2]][:_ROWS]
    return {
        "title": "How well the maps mark what the model uses",
        "about": "Measured with the model, by changing images where a map is strong or weak. Drop and increase reward "
        "a map that keeps much of the image.",
        "caption": f"Means over {images:,} images; the best method of each column is bold",
        "columns": [(heading, docs[name]) for name, heading in _HEADINGS.items()],
        "rows": [
            {
                "method": clean(key[0], limits.name),
                "layer": clean(key[1] or "", limits.name),
                "baseline": key[2],
                "cells": [
                    (_text(rows[key][name]["mean"], name in _PERCENT), rows[key][name]["best"]) for name in _HEADINGS
                ],
            }
            for key in kept
        ],
    }


def _text(value: float | None, share: bool) -> str:
    if value is None:
        return "–"
    if share:
        return f"{value:.1%}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}".replace("-", "−")
