"""The benchmark of audits by the number of maps: what it writes, and what it says of an audit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import audit_scale, audited
from benchmarks.generated_lake import CAMERA, SITE, Spec, unit_result, write_lake
from pipeline.lake import open_lake

SPEC = Spec(600, classes=5, groups=3)


def test_a_generated_lake_holds_what_is_asked_for(tmp_path: Path) -> None:
    lake = open_lake(write_lake(tmp_path / "lake", SPEC))
    assert lake.finished and len(lake.commits) == SPEC.units == 1
    images, maps = lake.images.to_table(), lake.maps.to_table()
    assert len(images) == len(maps) == 600 and maps["is_predicted"].to_pylist() == [True] * 600
    right = np.array(images["label"]) == np.array(images["predicted_class"])
    assert 0.7 < right.mean() < 0.9
    assert set(images[SITE].to_pylist()) == {"site 000", "site 001", "site 002"}
    assert len(set(images[CAMERA].to_pylist())) == 4
    [array] = {values.shape for _, values in lake.heatmaps()}
    assert array == (7, 7)
    again, other = (unit_result(0, Spec(600, 5, 3, seed=seed)).map_sets[0].maps for seed in (0, 1))
    assert np.array_equal(again, unit_result(0, SPEC).map_sets[0].maps) and not np.array_equal(again, other)


@pytest.mark.slow
def test_an_audit_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sizes = tmp_path / "table.json", ("--maps", "300", "600", "--classes", "5", "--groups", "3")
    assert audit_scale.main([*sizes, "--folder", str(tmp_path / "kept"), "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [row["maps"] for row in found["rows"]] == [300, 600] and "torch" in found["machine"]
    for row in found["rows"]:
        stages = sum(row["cpu_seconds"][stage] for stage in audit_scale.STAGES)
        assert 0 < stages <= row["cpu_seconds"]["all"]
        assert row["s_per_million"] == pytest.approx(row["cpu_seconds"]["all"] * 1e6 / row["maps"], rel=0.01)
        assert 50 < row["imports_mb"] < row["peak_mb"] < 2000
        report = tmp_path / "kept" / f"{row['maps']}-5-3-7.audit" / "report.html"
        assert row["report_bytes"] == report.stat().st_size
    table = capsys.readouterr().out
    assert "s per 10^6" in table and "5 classes, columns of 3 and 4 values" in table


def test_stages_and_sizes_are_those_of_the_audit(tmp_path: Path) -> None:
    uri = write_lake(tmp_path / "lake", SPEC)
    found = audited.audit(uri, tmp_path / "out", (SITE,), workers=0)
    assert (found["maps"], found["units"], found["classes"]) == (600, 1, 5)
    assert set(audit_scale.STAGES) < set(found["seconds"]) == set(found["cpu_seconds"])
    assert found["parts_bytes"] == sum(each.stat().st_size for each in (tmp_path / "out" / "parts").iterdir())
    assert found["peak_mb"] >= found["imports_mb"] > 50


def test_an_audit_that_fails_ends_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = audit_scale.PARSER.parse_args([])
    with pytest.raises(audit_scale.CamlakeError, match="ended with exit code 1"):
        audit_scale.measure(str(tmp_path / "nothing"), tmp_path / "out", options)
