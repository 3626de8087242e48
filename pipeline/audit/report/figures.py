"""Findings as they are shown: their numbers in words, and their interval as a small drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from schemas.audit import Finding

_WIDTH, _HEIGHT, _MARGIN = 220, 34, 10
#: The value of each effect that says "no effect".
_NEUTRAL = {"ratio": 1.0, "difference": 0.0, "d": 0.0}
#: Effects that are drawn: a count has no scale to be seen on.
_DRAWN = ("ratio", "difference", "d", "share")
_NAMES = {
    "ratio": "ratio",
    "difference": "difference",
    "d": "standardised difference (d)",
    "share": "share",
    "count": "count",
}


def effect_text(value: float, name: str | None) -> str:
    """Return an effect in words: "×2.4", "+0.12", "35%", "12"."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "not defined"
    if name == "ratio":
        return f"×{value:.2f}" if value < 10 else f"×{value:,.0f}"
    if name in ("difference", "d"):
        return f"{value:+.2f}".replace("-", "−")
    if name == "share":
        return f"{value:.0%}" if abs(value) >= 0.1 else f"{value:.1%}"
    if name == "count":
        return f"{value:,.0f}"
    return f"{value:.3g}"


def effect_name(name: str | None) -> str:
    """Return what an effect is, in words."""
    return _NAMES.get(name or "", name or "effect")


def small(value: float | None) -> str:
    """Return a probability: "0.012", "< 0.001"."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def bar(finding: Finding, domain: tuple[float, float] | None) -> Markup | None:
    """Return the interval of a finding's effect as SVG; None where it has no finite effect, or just counts.

    Args:
        finding: with effect and, where there is one, interval.
        domain: ends of the axis, shared by all findings of one kind of effect; see :func:`domains`.
    """
    if (
        finding.effect is None
        or finding.effect_name not in _DRAWN
        or domain is None
        or not math.isfinite(finding.effect)
    ):
        return None
    name = finding.effect_name
    place = _scale(domain, name == "ratio")
    parts = [f'<line class="axis" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="14" y2="14"/>']
    neutral = _NEUTRAL.get(name or "")
    ends = [(domain[0], "start"), (domain[1], "end")]
    if neutral is not None and domain[0] <= neutral <= domain[1]:
        x = place(neutral)
        parts.append(f'<line class="neutral" x1="{x}" x2="{x}" y1="3" y2="25"/>')
        if _MARGIN + 34 < x < _WIDTH - _MARGIN - 34:
            ends.append((neutral, "middle"))
    interval = finding.low is not None and finding.high is not None
    interval = interval and math.isfinite(finding.low or 0.0) and math.isfinite(finding.high or 0.0)
    if interval:
        low, high = place(finding.low or 0.0), place(finding.high or 0.0)
        parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="14" y2="14"/>')
        parts += [f'<line class="interval" x1="{x}" x2="{x}" y1="9" y2="19"/>' for x in (low, high)]
    parts.append(f'<circle class="point" cx="{place(finding.effect)}" cy="14" r="4.5"/>')
    parts += [
        f'<text class="tick" x="{place(value)}" y="33" text-anchor="{anchor}">{effect_text(value, name)}</text>'
        for value, anchor in ends
    ]
    label = f"{effect_name(name)} {effect_text(finding.effect, name)}"
    if interval:
        label += f", 95% interval {effect_text(finding.low or 0.0, name)} to {effect_text(finding.high or 0.0, name)}"
    # Numbers and fixed words only: there is nothing to escape.
    return Markup(
        f'<svg class="gauge" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def domains(findings: Sequence[Finding]) -> dict[str, tuple[float, float]]:
    """Return for each effect's name the ends of an axis that holds all effects and intervals, and "no effect"."""
    found: dict[str, list[float]] = {}
    for finding in findings:
        values = [value for value in (finding.effect, finding.low, finding.high) if value is not None]
        finite = [value for value in values if math.isfinite(value)]
        if finding.effect_name == "ratio":
            # On a logarithmic axis; beyond a hundredfold nothing is told apart.
            finite = [min(max(value, 0.01), 100.0) for value in finite]
        if finding.effect_name in _DRAWN and finite:
            found.setdefault(finding.effect_name, []).extend(finite)
    result: dict[str, tuple[float, float]] = {}
    for name, values in found.items():
        neutral = _NEUTRAL.get(name, 0.0)
        low, high = min(*values, neutral), max(*values, neutral)
        result[name] = (low, high if high > low else low + 1.0)
    return result


def _scale(domain: tuple[float, float], logarithmic: bool) -> Any:
    low, high = (math.log(end) for end in domain) if logarithmic else domain

    def place(value: float) -> float:
        clipped = min(max(value, domain[0]), domain[1])
        share = ((math.log(clipped) if logarithmic else clipped) - low) / (high - low)
        return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)

    return place
