"""``camlake audit --faithfulness``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from pipeline.cam.faithfulness import road
from schemas.audit import FAITHFULNESS
from schemas.registries import FINDINGS
from tests.jobs.inline import run_inline

Run = Callable[..., Result]


def run_lake(document: dict[str, Any]) -> str:
    document["methods"] = ["grad_cam", {"name": "layer_cam", "layers": ["stage2", "stage4"]}]
    run_inline(document)
    return str(document["output"]["uri"])


def test_methods_are_measured_and_compared(
    document: dict[str, Any], tmp_path: Path, camlake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in reversed(list(FINDINGS)):  # undone in their order
        monkeypatch.delitem(FINDINGS, name)
    monkeypatch.setattr("pipeline.audit.run.write_report", lambda *given, **more: b"<!doctype html>")
    monkeypatch.setattr("pipeline.audit.faithful.road", partial(road, shares=(0.1, 0.3)))
    lake, output = run_lake(document), tmp_path / "out"
    options = ("--workers", "0", "--bootstrap", "50", "--suppressed-below", "1", "--interval-from", "2")
    result = camlake("audit", lake, "--output", output, *options, "--faithfulness", "2")
    assert result.exit_code == 0, result.output
    assert "faithful  best by ROAD over 2 images: " in result.stdout
    assert "maps.zarr, faithfulness.parquet" in result.stdout
    table = pq.read_table(output / "faithfulness.parquet")
    assert set(table["method"].to_pylist()) == {"grad_cam", "layer_cam", "random map", "centre", "uniform map"}
    assert set(table["measure"].to_pylist()) >= {"road", "drop", "increase", "deletion", "insertion", "adcc"}
    assert table.schema.remove_metadata().equals(FAITHFULNESS)
    # Layers have random maps of their own.
    series = {(row["method"], row["layer"]) for row in table.to_pylist()}
    assert {("random map", layer) for method, layer in series if method == "layer_cam"} <= series
    assert len({layer for method, layer in series if method == "layer_cam"}) == 2
    without = camlake("audit", lake, "--output", output, *options)
    assert without.exit_code == 0 and "faithful" not in without.stdout
