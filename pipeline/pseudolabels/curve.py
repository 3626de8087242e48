"""The curve of a sweep as an SVG picture, drawn here: three lines and a mark need no plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from pipeline.pseudolabels.sweep import Point

_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 44, 48
_FONT = 'font-family="sans-serif" font-size="12" fill="#333"'

#: What is drawn: name, value of a point, colour (Okabe and Ito's, told apart with any colour vision) and dashes.
_LINES: tuple[tuple[str, Callable[[Point], float | None], str, str], ...] = (
    ("mIoU", lambda point: point.totals.miou, "#0072b2", ""),
    ("over-activation", lambda point: point.totals.over, "#d55e00", "6 3"),
    ("under-activation", lambda point: point.totals.under, "#009e73", "2 3"),
)


def svg_curve(points: Sequence[Point], best: Point, title: str) -> str:
    """Return the curve of one rule's points as an SVG document, with the best one marked.

    Args:
        points: of one rule, at least two, by rising value.
        best: one of them.
        title: stands above it.
    """
    low, high = points[0].value, points[-1].value

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" {_FONT} font-weight="bold">{escape(title)}</text>',
    ]
    for number in range(6):
        value = number / 5
        parts.append(f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" {_FONT}>{value:.1f}</text>')
    step = 0.1 if high <= 1 else 4.0
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        place = x(number * step)
        label = f"{number * step:.3g}"
        parts.append(f'<path d="M{place:.1f} {_HEIGHT - _BOTTOM}v4" stroke="#333"/>')
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle" {_FONT}>{label}</text>')
    name = "background threshold" if points[0].rule == "constant" else "background power"
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 10}" text-anchor="middle" {_FONT}>{name}</text>')
    for place, (line, value_of, colour, dashes) in enumerate(_LINES):
        known = [(x(point.value), value_of(point)) for point in points]
        path = "L".join(f"{left:.1f} {y(value):.1f}" for left, value in known if value is not None)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        if path:
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        left = _LEFT + place * 150
        parts.append(f'<path d="M{left} 32h24" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left + 30}" y="36" {_FONT}>{line}</text>')
    top = best.totals.miou or 0.0
    at = x(best.value)
    anchor = "start" if at < _WIDTH / 2 else "end"
    parts.append(f'<path d="M{at:.1f} {y(top):.1f}V{y(0):.1f}" stroke="#0072b2" stroke-dasharray="1 3"/>')
    parts.append(f'<circle cx="{at:.1f}" cy="{y(top):.1f}" r="5" fill="#0072b2"/>')
    shift = 10 if anchor == "start" else -10
    parts.append(
        f'<text x="{at + shift:.1f}" y="{y(top) - 10:.1f}" text-anchor="{anchor}" {_FONT} font-weight="bold">'
        f"best: {best.value:g}, mIoU {top:.3f}</text>"
    )
    return "\n".join([*parts, "</svg>", ""])
