"""The benchmark of convolutions: a row for each shape, with errors of float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import convolutions
from pipeline.models.winograd import available


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_rows_and_errors(tmp_path: Path) -> None:
    assert convolutions.main(["--count", "1", "--repeats", "1", "--json", str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["peer"] for row in rows] == ["direct convolution"] * len(convolutions.SHAPES)
    assert all(row["ours_s"] > 0 and 0 < row["agreement"] < 2e-6 for row in rows)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(convolutions, "available", lambda: False)
    assert convolutions.main(["--repeats", "1"]) == 2
    assert "install a C++ compiler" in capsys.readouterr().err
