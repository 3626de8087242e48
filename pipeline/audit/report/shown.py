"""Findings as the page's template shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.findings.base import Evidence
from pipeline.audit.report.figures import bar, domains, effect_name, effect_text, small
from pipeline.audit.report.limits import Limits
from pipeline.audit.report.montage import Key, key_of
from pipeline.audit.report.pack import clean, packed_map
from pipeline.audit.report.words import band, detail_label, kind_label, measure_label, moved, spaced
from schemas.audit import GRID, Finding

Floats = npt.NDArray[np.float64]

_MOST_DETAILS = 12
#: Kinds that are about files, not about where the model looks.
_NOT_OF_MAPS = frozenset({"image_property", "duplicates"})
_CAPTIONS = {"zone": "The place"}
#: Details that the page tells elsewhere, or that are for programs.
_TOLD = frozenset({"statement", "where", "causal_scale", "causal_unused"})


def shown_findings(
    evidence: Evidence, findings: Sequence[Finding], places: Mapping[Key, int], limits: Limits
) -> list[dict[str, Any]]:
    """Return the findings for the template, in their order; ``places`` are those of their pictures."""
    axes = domains(findings)
    return [_shown(evidence, finding, number, axes, places, limits) for number, finding in enumerate(findings, start=1)]


def _shown(
    evidence: Evidence,
    finding: Finding,
    number: int,
    axes: dict[str, tuple[float, float]],
    places: Mapping[Key, int],
    limits: Limits,
) -> dict[str, Any]:
    pictures = [
        {"place": places[key_of(reference)], "note": clean(reference.note, limits.name)}
        for reference in finding.images
        if key_of(reference) in places
    ]
    effect, interval = "", ""
    if finding.effect is not None:
        effect = effect_text(finding.effect, finding.effect_name)
        if finding.low is not None and finding.high is not None:
            ends = (effect_text(end, finding.effect_name) for end in (finding.low, finding.high))
            interval = " to ".join(ends)
    target = finding.target_class
    return {
        "number": number,
        "id": clean(finding.finding_id, limits.name),
        "kind": finding.kind,
        "kind_label": kind_label(finding.kind),
        "band": band(finding.severity),
        "severity": round(finding.severity),
        "title": clean(finding.title, 2 * limits.name),
        "sentence": clean(finding.sentence, limits.sentence),
        "statement": clean(str(finding.details.get("statement") or finding.sentence), limits.sentence),
        "remedy": clean(finding.remedy, limits.sentence),
        "target_class": target,
        "target_name": None
        if target is None
        else clean(finding.target_name or evidence.frame.name(target), limits.name),
        "attribute": None if finding.attribute is None else clean(finding.attribute, limits.name),
        "value": None if finding.value is None else clean(finding.value, limits.name),
        "measure": None if finding.measure is None else measure_label(finding.measure),
        "effect": effect,
        "effect_name": effect_name(finding.effect_name),
        "interval": interval,
        "bar": bar(finding, axes.get(finding.effect_name or "")),
        "q": small(finding.q) if finding.q is not None else "",
        "p": small(finding.p) if finding.p is not None else "",
        "n": finding.n,
        "reference_n": finding.reference_n,
        "causal": finding.causal,
        "causal_verdict": _verdict(finding),
        "causal_moved": None
        if finding.causal is None
        else (moved(finding.causal.change), moved(finding.causal.control)),
        "causal_scale": clean(str(finding.details.get("causal_scale", "probability")), limits.name),
        "pictures": pictures,
        "images": len(finding.images),
        "details": _details(finding, limits),
        "maps": _maps(evidence, finding),
    }


def _verdict(finding: Finding) -> str:
    if finding.causal is not None and finding.causal.used:
        return "the model uses it."
    # Not shown to be used is not the same as shown not to be.
    return "present, but not used." if finding.details.get("causal_unused") else "these images do not tell."


def _details(finding: Finding, limits: Limits) -> list[tuple[str, str]]:
    """The scalars among the details, in words."""
    found = []
    for name, value in finding.details.items():
        if name in _TOLD or (name == "place" and "where" in finding.details):
            continue
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, int):
            text = f"{value:,}"
        elif isinstance(value, float):
            text = f"{value:.3g}" if math.isfinite(value) else "–"
        elif isinstance(value, str):
            text = value
        else:
            continue
        found.append((clean(detail_label(str(name)), limits.name), clean(text, 2 * limits.name)))
    return found[:_MOST_DETAILS]


def _maps(evidence: Evidence, finding: Finding) -> list[dict[str, Any]]:
    """Maps that explain a finding: those among its details, the class's, and of a group its difference to the rest."""
    found: list[dict[str, Any]] = []

    def add(caption: str, values: Floats, *, signed: bool = False, zone: bool = False) -> None:
        most = float(np.abs(np.nan_to_num(values)).max(initial=0))
        scaled = "" if zone else f"±{most:.2f}" if signed else f"up to {most:.2f} times uniform"
        packed = packed_map(values, signed)
        found.append({"caption": caption, "signed": signed, "zone": zone, "scaled": scaled, **packed})

    for name, value in finding.details.items():
        values = as_map(value)
        if values is not None:
            add(_CAPTIONS.get(name, spaced(str(name))), values, signed=bool((values < 0).any()), zone=name == "zone")
    if finding.target_class is None or finding.kind in _NOT_OF_MAPS:
        return found
    whole = evidence.cell(finding.target_class)
    if whole is None or whole.maps < evidence.frame.settings.interval_from:
        return found
    if finding.attribute is not None and finding.value is not None:
        part = evidence.cell(finding.target_class, finding.attribute, finding.value)
        if part is not None and part.maps and whole.maps > part.maps:
            mine = part.mean_map()
            rest = (whole.mean_map() * whole.maps - mine * part.maps) / (whole.maps - part.maps)
            add("This group", mine)
            add("The others", rest)
            add("Difference", mine - rest, signed=True)
            return found
    add("Mean map of the class", whole.mean_map())
    return found


def as_map(value: Any) -> Floats | None:
    """Return a detail as a map: rows of numbers, or GRID x GRID numbers in a row; None where it is none."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    try:
        values = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    if values.shape == (GRID * GRID,):
        values = values.reshape(GRID, GRID)
    return values if values.ndim == 2 and min(values.shape) > 1 and np.isfinite(values).all() else None
