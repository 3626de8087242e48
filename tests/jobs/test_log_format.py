"""``--log-format json`` on whole commands: every line an object, and the exit codes as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.lake import open_lake
from tests.jobs.outside import written
from tests.pipeline.audit.lakes import make_lake
from tests.pipeline.audit.test_compare import to_the_right
from tests.scrape import scrape

Run = Callable[..., Result]


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


@pytest.mark.usefixtures("local_ray")
def test_a_run_tells_machines_what_it_tells_people(document: dict[str, Any], tmp_path: Path, camlake: Run) -> None:
    document["workers"] = {"max": 1}
    path = written(document, tmp_path)
    result = camlake("attribute", path, "--log-format", "json")
    assert result.exit_code == 0, result.output
    said, progress = objects(result.stdout), objects(result.stderr)
    manifest = open_lake(document["output"]["uri"]).manifest
    assert [each["event"] for each in said if each["event"] not in ("layer", "worker_summary", "flags")] == [
        *("model", "methods", "lake", "inputs", "finishing"),
        *("run_summary", "slowest_units", "lake_summary", "exit"),
    ]
    assert {each["run_id"] for each in [*said[2:-1], *progress] if "run_id" in each} == {manifest.run_id}
    by_event = {each["event"]: each for each in said}
    assert by_event["inputs"]["units"] == by_event["run_summary"]["units"] == 3
    assert by_event["run_summary"]["images"] == by_event["lake_summary"]["images"] == {"ok": 24}
    assert by_event["worker_summary"]["worker_id"] == "worker-001"
    assert by_event["worker_summary"]["stage_seconds"]["compute"] > 0
    assert by_event["exit"]["exit_code"] == 0
    done = [each for each in progress if each["event"] == "unit_done"]
    assert len({each["unit_id"] for each in done}) == 3 and {each["run_id"] for each in done} == {manifest.run_id}
    assert {each["worker_id"] for each in done} == {"worker-001"}
    # The same counts are exported, with nothing asked for.
    found = scrape(manifest.run_id, lambda found: found.by("ray_camlake_images_total", "status") == {"ok": 24})
    assert found.value("ray_camlake_maps_total") == by_event["lake_summary"]["maps"]
    assert found.by("ray_camlake_units_total", "result") == {"committed": 3}


def test_a_comparison_tells_machines_what_it_tells_people(tmp_path: Path, camlake: Run) -> None:
    first = make_lake(tmp_path / "a", units=3, images=150, classes=3)
    second = make_lake(tmp_path / "b", units=3, images=150, classes=3, paint=to_the_right)
    quick = ("--workers", "0", "--bootstrap", "50", "--fail-on", "drift>0", "--output", tmp_path / "out")
    result = camlake("compare", first, second, *quick, "--log-format", "json")
    assert result.exit_code == 1, result.output
    said = objects(result.stdout)
    by_event = {each["event"]: each for each in said}
    assert by_event["compare_summary"]["images"] == {"a": 450, "b": 450, "both": 450}
    assert by_event["compare_summary"]["drifts"] == sum(each["event"] == "drift" for each in said) >= 1
    assert by_event["condition_holds"]["condition"] == "drift>0"
    assert (said[-1]["event"], said[-1]["exit_code"]) == ("exit", 1)


def test_an_error_is_an_object_and_its_exit_code_the_same(tmp_path: Path, camlake: Run) -> None:
    result = camlake("attribute", tmp_path / "none.yaml", "--log-format", "json")
    assert result.exit_code == 2
    [error] = objects(result.stderr)
    assert (error["event"], error["level"], error["exit_code"]) == ("error", "ERROR", 2)
    assert "none.yaml" in error["message"]
    [leaving] = objects(result.stdout)
    assert (leaving["event"], leaving["exit_code"]) == ("exit", 2)


def test_a_traceback_is_an_object_too(
    document: dict[str, Any], tmp_path: Path, camlake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a fault of ours at s3://key:secret@bucket/x")

    monkeypatch.setattr("jobs.attribute.run_attribution", broken)
    result = camlake("attribute", written(document, tmp_path), "--log-format", "json")
    assert result.exit_code == 1
    [crash] = objects(result.stderr)
    assert crash["event"] == "crash" and "RuntimeError: a fault of ours at s3://bucket/x" in crash["exception"]


def test_the_environment_can_ask_for_it(tmp_path: Path, camlake: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMLAKE_LOG_FORMAT", "json")
    assert objects(camlake("audit", tmp_path, "--workers", "0").stderr)[0]["event"] == "error"
    monkeypatch.setenv("CAMLAKE_LOG_FORMAT", "xml")
    assert camlake("audit", tmp_path).exit_code == 2
