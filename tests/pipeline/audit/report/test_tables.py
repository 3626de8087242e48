"""The report's tables of methods: what stands in them, as text whatever it is."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.audit.report import Tables
from pipeline.audit.report.limits import Limits
from pipeline.audit.report.tables import method_tables
from schemas.audit import FAITHFULNESS, LOCALISATION
from tests.pipeline.audit.report.example import Example

NAMES = ("pointing", "energy", "area", "enrichment", "rank_accuracy", "skill", "max_box_acc", "max_box_acc_v2", "px_ap")


def located(method: str, v2: float | None, **more: float) -> dict[str, Any]:
    about = {"method": method, "layer": "layer4", "maps": 1234, "classes": 3}
    parts = dict.fromkeys(("max_box_acc_v2_30", "max_box_acc_v2_50", "max_box_acc_v2_70"), v2)
    return about | dict.fromkeys(NAMES, 0.5) | parts | {"max_box_acc_v2": v2} | more


def faithful(method: str, measure: str, mean: float | None, best: bool = False) -> dict[str, Any]:
    nothing = dict.fromkeys(FAITHFULNESS.names)
    baseline = method == "centre"
    about = {"method": method, "layer": None if baseline else "layer4", "baseline": baseline, "measure": measure}
    return nothing | about | {"n": 40, "mean": mean, "best": best}


MEASURES = ("road", "road_morf", "road_lerf", "drop", "increase", "deletion", "insertion", "kept", "coherency", "adcc")
TABLES = Tables(
    pa.Table.from_pylist(
        [located("grad_cam", 0.637, skill=-0.25), located("<b>cam</b>", 0.52), located("centre_gaussian", 0.9)],
        LOCALISATION,
    ),
    pa.Table.from_pylist(
        [faithful("grad_cam", name, 0.187, best=name == "road") for name in MEASURES]
        + [faithful("centre", name, None) for name in MEASURES],
        FAITHFULNESS,
    ),
)


def test_the_best_method_stands_out_and_the_baseline_stands_last() -> None:
    objects, model = method_tables(TABLES, Limits())
    assert [row["method"] for row in objects["rows"]] == ["grad_cam", "<b>cam</b>", "centred Gaussian"]
    assert [row["baseline"] for row in objects["rows"]] == [False, False, True]
    headings = [heading for heading, _ in objects["columns"]]
    v2, skill = headings.index("MaxBoxAccV2"), headings.index("Skill")
    assert [row["cells"][v2] for row in objects["rows"]] == [("63.7%", True), ("52.0%", False), ("90.0%", False)]
    assert objects["rows"][0]["cells"][headings.index("Maps")] == ("1,234", False)
    assert objects["rows"][0]["cells"][skill] == ("−0.25", False)
    headings = [heading for heading, _ in model["columns"]]
    assert model["rows"][0]["cells"][headings.index("ROAD")] == ("0.187", True)
    assert model["rows"][0]["cells"][headings.index("Average drop")] == ("18.7%", False)
    assert model["rows"][1] == {"method": "centre", "layer": "", "baseline": True, "cells": [("–", False)] * 7}
    assert "40 images" in model["caption"]


def test_the_page_has_the_tables_where_they_were_measured(example: Example) -> None:
    page = example.report(tables=TABLES).decode()
    assert "How well the maps find objects" in page and "How well the maps mark what the model uses" in page
    assert "&lt;b&gt;cam&lt;/b&gt;" in page and "<b>cam</b>" not in page
    without = example.report().decode()
    assert "How well the maps" not in without
