"""Conditions that fail a build."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipeline.audit.expressions import parse
from schemas.audit import GROUPS, AuditManifest, Finding, Settings
from schemas.errors import InputError


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "method": "grad_cam",
        "layer": "layer4",
        "target_class": 3,
        "target_name": "cat",
        "attribute": None,
        "value": None,
        "outcome": "all",
        "measure": "border_enrichment",
        "n": 150,
        "mean": 1.4,
        "std": 0.2,
        "low": 1.3,
        "high": 1.5,
        "q05": 0.9,
        "median": 1.35,
        "q95": 2.2,
    }
    return {name: {**base, **changes}.get(name) for name in GROUPS.names}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=GROUPS)


MANIFEST = AuditManifest(
    created="2026-01-02T03:04:05+00:00",
    lake="lake",
    lake_run_id="r",
    lake_finished=True,
    commits_digest="",
    settings=Settings(),
    method="grad_cam",
    layer="layer4",
    units=1,
    images=1,
    maps=1,
    counted=1,
    classes=1,
    findings=0,
    versions={},
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("border_enrichment>1.5", False),
        ("border_enrichment > 1.3", True),
        ("border_enrichment>1.4", False),
        ("border_enrichment>=1.4", True),
        ("border_enrichment<1.4", False),
        ("border_enrichment<=1.4", True),
        (" border_enrichment.q95 > 2 ", True),
        ("border_enrichment.high<1.6e0", True),
        ("border_enrichment.median>1.36", False),
    ],
)
def test_a_measure_is_compared_with_a_number(text: str, holds: bool) -> None:
    assert bool(parse(text).failures(table(row()), [], MANIFEST)) is holds


def test_the_classes_that_break_it_are_named_the_worst_first() -> None:
    rows = [row(), row(target_class=4, target_name="dog", mean=2.5, n=120), row(target_class=5, target_name=None)]
    found = parse("border_enrichment>1.2").failures(table(*rows), [], MANIFEST)
    assert found == ["class 'dog' has 2.5 (120 maps)", "class 'cat' has 1.4 (150 maps)", "class 5 has 1.4 (150 maps)"]


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 99},
        {"attribute": "site", "value": "east"},
        {"outcome": "wrong"},
        {"method": "layer_cam"},
        {"layer": "layer3"},
        {"target_class": None, "target_name": None},
        {"measure": "corner_enrichment"},
        {"mean": None},
    ],
)
def test_only_classes_with_enough_maps_of_the_audits_method_are_judged(changes: dict[str, Any]) -> None:
    expression = parse("border_enrichment>0")
    assert expression.failures(table(row(**changes)), [], MANIFEST) == []
    assert expression.judged(table(row(**changes)), MANIFEST) == []
    assert len(expression.judged(table(row()), MANIFEST)) == 1


def test_findings_are_counted() -> None:
    found = [
        Finding(finding_id=str(i), kind=kind, title="t", sentence="s", severity=1, n=1)
        for i, kind in enumerate(["shortcut", "shortcut", "border"])
    ]
    assert parse("findings>2").failures(table(), found, MANIFEST) == ["there are 3"]
    assert parse("shortcut>1").failures(table(), found, MANIFEST) == ["there are 2"]
    assert parse("border > 1").failures(table(), found, MANIFEST) == []
    assert parse("duplicates<1").failures(table(), found, MANIFEST) == ["there are 0"]


def test_measures_of_objects_are_told_apart() -> None:
    assert parse("energy<0.3").regional and not parse("gini<0.3").regional and not parse("findings>0").regional


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("border_enrichmnt>1", "'border_enrichmnt' .did you mean border_enrichment"),
        ("shortcuts>0", "'shortcuts' .did you mean shortcut"),
        ("energy.mode<0.3", "no statistic 'mode'.*mean, median"),
        ("shortcut.mean>0", "are counted and have no '.mean'"),
        ("energy", "is no condition"),
        ("energy<", "is no condition"),
        ("energy=0.3", "is no condition"),
        ("0.3<energy", "is no condition"),
        ("energy<0.3 or gini>1", "is no condition"),
        ("energy<much", "'much' is no number"),
        ("energy<nan", "'nan' is no number"),
        ("energy<inf", "'inf' is no number"),
        ("", "is no condition"),
        ("__import__('os')>0", "is no condition"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(text)
