"""What things are called in the report."""

from __future__ import annotations

from typing import NamedTuple

_MEASURES = {
    "probability": "Probability",
    "effective_area": "Effective area",
    "gini": "Concentration (Gini)",
    "spread": "Spread",
    "centre_y": "Centre, from the top",
    "centre_x": "Centre, from the left",
    "border_enrichment": "Border enrichment",
    "corner_enrichment": "Corner enrichment",
    "energy": "Energy in the object",
    "area": "Area of the object",
    "enrichment": "Enrichment of the object",
    "pointing": "Pointing game",
    "rank_accuracy": "Rank accuracy",
    "skill": "Skill over the centre",
}

_KINDS = {
    "shortcut": "Shortcut candidate",
    "group_difference": "Group difference",
    "off_object": "Off the object",
    "border": "Border and corner",
    "wrong_reason": "Right for the wrong reason",
    "label_suspect": "Label suspect",
    "novelty": "Unusual map",
    "image_property": "Image property",
    "disagreement": "Methods disagree",
    "degenerate": "Degenerate maps",
    "duplicates": "Duplicates",
}


class Band(NamedTuple):
    """A range of severities: its key in the style sheet, its name, and the severity from which it counts."""

    key: str
    name: str
    least: float


#: The worst first.
BANDS = (Band("serious", "serious", 50.0), Band("notable", "notable", 20.0), Band("minor", "minor", float("-inf")))


def spaced(name: str) -> str:
    """Return ``some_name`` as "Some name"."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def measure_label(name: str) -> str:
    """Return what a measure is called."""
    return _MEASURES.get(name, spaced(name))


def kind_label(name: str) -> str:
    """Return what a kind of finding is called."""
    return _KINDS.get(name, spaced(name))


def band(severity: float) -> Band:
    """Return the band of a severity."""
    return next(each for each in BANDS if severity >= each.least)


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return "1 finding", "2,000 findings"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
