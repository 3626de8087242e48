"""Findings' numbers in words, and their intervals as drawings."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from pipeline.audit.report.figures import bar, domains, effect_text, small
from schemas.audit import Finding


def finding(**changes: Any) -> Finding:
    given = {"finding_id": "a", "kind": "border", "title": "t", "sentence": "s", "severity": 1.0, "n": 3}
    return Finding.model_validate(given | changes)


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (2.0, "ratio", "×2.00"),
        (1234.5, "ratio", "×1,234"),
        (-0.27, "difference", "−0.27"),
        (0.05, "d", "+0.05"),
        (0.345, "share", "34%"),
        (0.0345, "share", "3.5%"),
        (12.0, "count", "12"),
        (math.inf, "ratio", "∞"),
        (math.nan, "ratio", "not defined"),
    ],
)
def test_effects(value: float, name: str, text: str) -> None:
    assert effect_text(value, name) == text


def test_small() -> None:
    assert [small(value) for value in (None, math.nan, 0.0004, 0.0421)] == ["–", "–", "< 0.001", "0.042"]


def drawn(found: Finding, others: list[Finding]) -> tuple[float, list[float]]:
    """Where the point and the ends of the interval are."""
    svg = bar(found, domains([found, *others])[found.effect_name or ""])
    assert svg is not None
    root = ET.fromstring(str(svg))
    ends = [float(line.attrib["x1"]) for line in root if line.attrib.get("class") == "interval"][1:]
    return next(float(each.attrib["cx"]) for each in root if each.tag == "circle"), ends


def test_ratios_are_drawn_by_their_logarithm() -> None:
    wide = finding(effect=16.0, effect_name="ratio", low=1.0, high=16.0)
    point, ends = drawn(finding(effect=4.0, effect_name="ratio", low=2.0, high=8.0), [wide])
    assert ends == [60, 160]
    assert point == 110


def test_differences_are_drawn_straight() -> None:
    wide = finding(effect=0.4, effect_name="difference", low=-0.6, high=0.4)
    point, ends = drawn(finding(effect=-0.1, effect_name="difference", low=-0.35, high=0.15), [wide])
    assert ends == [60, 160]
    assert point == 110


def test_the_point_lies_in_its_interval_whatever_the_numbers() -> None:
    far = finding(effect=1e9, effect_name="ratio", low=0.0, high=math.inf)
    svg = str(bar(far, domains([far])["ratio"]))
    assert all(0 <= float(x) <= 220 for x in re.findall(r'x1="([\d.-]+)"', svg))


def test_no_effect_no_drawing() -> None:
    assert bar(finding(), None) is None
    assert bar(finding(effect=12.0, effect_name="count"), (0, 12)) is None
    assert bar(finding(effect=1.0, effect_name="strange"), (0, 1)) is None
    assert bar(finding(effect=math.nan, effect_name="ratio"), (1, 2)) is None
    assert domains([finding(effect=1.0, effect_name="strange"), finding()]) == {}
