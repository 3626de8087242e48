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


#: Numbers of a finding beside its effect, in words; others are told by their names.
_DETAILS = {
    "level": "A map looks there from this share of its evidence on",
    "share": "Share",
    "share_low": "Share, lower end of the 95% interval",
    "share_high": "Share, upper end of the 95% interval",
    "other_share": "Share among the others",
    "uniform_share": "Share of a map without preference",
    "tested": "Images tested, of the half that was not searched",
    "tested_others": "Others tested",
    "tests": "Tests of this kind",
    "class_ratio": "Ratio, the whole class against other classes",
    "class_share": "Share, the whole class",
    "d": "Standardised difference (d)",
    "own": "Mean of the group",
    "other": "Mean of the others",
    "elsewhere": "Share of the evidence that lies elsewhere",
    "place": "Where they differ most",
    "place_own": "Evidence there, the group",
    "place_other": "Evidence there, the others",
    "expected": "Expected on objects of this size",
    "share_of_usual_gain": "Part of the usual gain over a uniform map",
    "energy": "Energy in the object",
    "area": "Area of the object",
    "pointing": "Pointing game",
    "pointing_low": "Pointing game, lower end of the 95% interval",
    "pointing_high": "Pointing game, upper end of the 95% interval",
    "pointing_n": "Pointing game, maps",
    "off_object": "Images whose attention lies off the object",
    "other_classes": "Share among other classes",
    "sampled": "Images of the sample",
    "confident": "Confident from a probability of",
    "threshold": "Deviations from which a map is unusual",
    "times": "Times as large",
    "causal_equal_evidence": "Change with another area of equal evidence painted over",
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


def detail_label(name: str) -> str:
    """Return what a number of a finding's details is called."""
    return _DETAILS.get(name, spaced(name))


def moved(change: float) -> str:
    """Return a change in words: "falls by 0.34", "rises by 0.02", "hardly changes"."""
    if abs(change) < 0.005:
        return "hardly changes"
    return f"{'rises' if change > 0 else 'falls'} by {abs(change):.2f}"


def band(severity: float) -> Band:
    """Return the band of a severity."""
    return next(each for each in BANDS if severity >= each.least)


def counted(number: int, one: str, several: str | None = None) -> str:
    """Return "1 finding", "2,000 findings"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
