"""Metrics as they are scraped from the endpoint of a real Ray; and the dashboard, which shows these and no others."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine.metrics import METRICS, Metric, MetricsMonitor, Monitors, Recorder
from pipeline.engine.outcome import Outcome, Pool, Tally, WorkerInfo
from pipeline.engine.progress import ProgressMonitor
from schemas.documents import Attempt
from schemas.unit import Unit
from tests.scrape import Scrape, scrape

ROOT = Path(__file__).parents[3]
RUN = "run-of-the-test"
SECONDS = {"read": 0.5, "decode": 0.25, "wait": 0.125, "compute": 2.0, "refine": 0.0, "write": 0.5, "total": 4.0}


@pytest.fixture(scope="module")
def scraped(local_ray: None) -> Scrape:
    """What is scraped of a run that is told what a dispatcher tells, with the gauges set again and again as it does."""
    recorder = Recorder(RUN)
    progress = ProgressMonitor(6, Tally(units=1), io.StringIO())
    monitor = Monitors([progress, MetricsMonitor(recorder, progress)])
    for number in range(3):
        monitor.worker_ready(WorkerInfo(f"worker-00{number}", "node", "cuda:0", number))
    for number in range(3):
        monitor.unit_done(Outcome(f"u{number}", "a", "worker-001", {"ok": 7, "decode_error": 1}, 14, 100, SECONDS))
    died = Attempt(attempt="a", when="now", worker="worker-002", kind="died", reason="ActorDiedError: exit code 7")
    monitor.worker_lost("worker-002", died.reason, died.kind)
    for final in (False, False, True):
        monitor.unit_failed(Unit("u4", 4, "x.tar"), died, final)
    monitor.in_progress(3)
    recorder.add("camlake_audit_maps_total", 12)
    recorder.add("camlake_audit_parts_total", 1)
    pool = Pool(ready=2, starting=1, in_flight=4, gpu_memory={"worker-001": (1 << 20, 3 << 20)})

    def all_there(found: Scrape) -> bool:
        monitor.pool(pool)
        return found.names >= {name for metric in METRICS for name in samples_of(metric)}

    return scrape(RUN, all_there)


def samples_of(metric: Metric) -> list[str]:
    """Names of a metric's samples."""
    suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
    return [metric.exported + suffix for suffix in suffixes]


def test_counts_are_those_of_the_run(scraped: Scrape) -> None:
    assert scraped.by("ray_camlake_images_total", "status") == {"ok": 21, "decode_error": 3}
    assert scraped.value("ray_camlake_maps_total") == 42
    assert scraped.value("ray_camlake_written_bytes_total") == 300
    assert scraped.by("ray_camlake_units_total", "result") == {"committed": 3, "quarantined": 1}
    assert scraped.by("ray_camlake_retries_total", "reason") == {"died": 2}
    assert scraped.by("ray_camlake_worker_deaths_total", "reason") == {"died": 1}
    # Exact, which the sums of Ray's histograms are not; of a stage that took no time there is no series.
    expected = {stage: 3 * seconds for stage, seconds in SECONDS.items() if seconds and stage != "total"}
    assert scraped.by("ray_camlake_stage_seconds_total", "stage") == expected
    buckets = scraped.by("ray_camlake_unit_seconds_bucket", "le")
    assert {float(bound): count for bound, count in buckets.items() if float(bound) <= 10} == {1: 0, 3: 0, 10: 3}
    assert scraped.value("ray_camlake_unit_seconds_count") == 3


def test_gauges_are_those_of_the_moment(scraped: Scrape) -> None:
    assert scraped.value("ray_camlake_units_planned") == 6
    assert scraped.value("ray_camlake_units_left") == 1
    assert scraped.value("ray_camlake_units_in_flight") == 4
    assert scraped.value("ray_camlake_images_in_progress") == 3
    assert scraped.by("ray_camlake_workers", "state") == {"ready": 2, "starting": 1}
    assert scraped.by("ray_camlake_gpu_memory_allocated_bytes", "worker") == {"worker-001": 1 << 20}
    assert scraped.by("ray_camlake_gpu_memory_peak_bytes", "worker") == {"worker-001": 3 << 20}
    last = scraped.value("ray_camlake_last_commit_timestamp_seconds")
    assert last is not None and abs(time.time() - last) < 300
    assert scraped.value("ray_camlake_eta_seconds") is not None


def test_every_metric_is_exported_under_its_name_with_its_labels(scraped: Scrape) -> None:
    for metric in METRICS:
        for name in samples_of(metric):
            found = [each for each in scraped.samples if each.name == name]
            assert found, name
            # Ray adds some of its own, all of the process and none of them ours.
            ours = {"run_id", *metric.labels, *(["le"] if name.endswith("_bucket") else [])}
            theirs = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
            for sample in found:
                labels = {label for label in sample.labels if not label.startswith("otel_")}
                assert ours <= labels <= ours | theirs, sample


def test_names_follow_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"camlake_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.about.endswith(".")


def test_without_a_gpu_there_is_no_series_of_its_memory() -> None:
    from pipeline.engine.worker import gpu_memory

    assert gpu_memory(None) is None


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.engine.worker import gpu_memory

    device = torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda asked: 5 if asked == device else 0)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda asked: 9 if asked == device else 0)
    assert gpu_memory(device) == (5, 9)


# The dashboard

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "camlake.json").read_text(encoding="utf-8"))


def panels() -> Iterator[dict[str, Any]]:
    """Panels that show something; rows only part them."""
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions() -> list[str]:
    """Every PromQL expression: of panels and of variables."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    return found + [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def names_in(expression: str) -> set[str]:
    """Names of metrics in an expression."""
    return set(re.findall(r"\bray_[a-zA-Z0-9_:]+", expression))


def test_the_dashboard_uses_only_what_is_exported_and_all_of_it(scraped: Scrape) -> None:
    used = set().union(*map(names_in, expressions()))
    assert used <= scraped.names
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) if "unit_seconds" in name else name for name in used}
    assert {metric.exported for metric in METRICS} == bases


LABELS = {name for metric in METRICS for name in metric.labels} | {"run_id", "le"}
FUNCTIONS = {
    "sum",
    "max",
    "rate",
    "increase",
    "delta",
    "time",
    "histogram_quantile",
    "clamp_min",
    "scalar",
    "label_values",
}
WORDS = {"by", "or", "vector"}


def test_expressions_are_well_formed() -> None:
    for expression in expressions():
        # Strings and durations out of the way; then every bracket is closed in order, and every word is known.
        bare = re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', expression))
        for range_ in re.findall(r"\[([^\]]*)\]", expression):
            assert re.fullmatch(r"\d+[smh]|\$__rate_interval", range_), expression
        stack: list[str] = []
        for character in bare:
            if character in "({":
                stack.append({"(": ")", "{": "}"}[character])
            elif character in ")}":
                assert stack and stack.pop() == character, expression
        assert not stack, expression
        words = set(re.findall(r"\b[a-zA-Z_][a-zA-Z0-9_]*\b", bare)) - names_in(expression)
        assert words <= LABELS | FUNCTIONS | WORDS, (expression, words - LABELS - FUNCTIONS - WORDS)
        if not expression.startswith("label_values"):
            assert expression.count('run_id=~"$run_id"') == len(re.findall(r"\bray_\w+\{", expression)), expression
            assert len(re.findall(r"\bray_\w+", expression)) == len(re.findall(r"\bray_\w+\{", expression)), expression
        # A counter is never shown as it is, but as a rate or a growth.
        for metric in METRICS:
            if metric.kind == "counter" and metric.exported in expression:
                growing = rf"(rate|increase)\({metric.exported}\{{"
                assert re.search(growing, expression) or expression.startswith("label_values"), expression


def test_panels_have_a_place_a_title_and_the_chosen_data_source() -> None:
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "run_id"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"] and panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "observe.md").read_text(encoding="utf-8")
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.exported}` | {metric.kind} | {labels} | {metric.about} |" in text
