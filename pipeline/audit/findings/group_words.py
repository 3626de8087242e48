"""Group differences in words."""

from __future__ import annotations

#: Measure -> (what the evidence does, more of it, less of it).
_WORDS = {
    "effective_area": ("is spread over", "more of the picture", "less of the picture"),
    "spread": ("lies", "farther apart", "closer together"),
    "centre_y": ("is centred", "lower in the picture", "higher in the picture"),
    "centre_x": ("is centred", "farther right", "farther left"),
    "border_enrichment": ("lies", "more along the border", "less along the border"),
    "corner_enrichment": ("lies", "more in the corners", "less in the corners"),
    "energy": ("lies", "more on the object", "less on the object"),
    "enrichment": ("is", "denser on the object", "less dense on the object"),
}

#: Measure -> how the means of both sides are told; the others are shares of the evidence.
_TOLD = {
    "effective_area": "{:.0%} against {:.0%} of the picture",
    "spread": "{:.0%} against {:.0%} of the picture's side",
    "centre_y": "{:.0%} against {:.0%} of the height from the top",
    "centre_x": "{:.0%} against {:.0%} of the width from the left",
    "enrichment": "{:.1f} against {:.1f} times as dense as anywhere",
    "probability": "a probability of {:.0%} against {:.0%}",
}


def title(target: str, attribute: str, value: str, measure: str, more: bool, place: str) -> str:
    """Return a finding's title."""
    return f"'{target}' where {attribute} is '{value}': {short(measure, more, place)}"


def short(measure: str, more: bool, place: str) -> str:
    """Return a difference in a few words."""
    if measure == "location":
        return f"{'more' if more else 'less'} evidence {place}"
    if measure == "probability":
        return "the model is surer" if more else "the model is less sure"
    verb, up, down = _WORDS[measure]
    return f"evidence {verb} {up if more else down}"


def sentence(
    target: str,
    attribute: str,
    value: str,
    measure: str,
    more: bool,
    place: str,
    means: tuple[float, float],
    sure: str,
    also: str = "",
) -> str:
    """Return a finding's sentence.

    Args:
        target: name of the class.
        attribute: of the group.
        value: of the group.
        measure: name of the test.
        more: the group has more of it than the others.
        place: "at the top left", of a difference of the place.
        means: of the group and of the others: shares, or times a uniform map.
        sure: what is known of the certainty.
        also: what else is to be said.
    """
    what = short(measure, more, place)
    if measure == "location":
        what = f"there is {what}"
    elif measure != "probability":
        what = f"the {what}"
    told = _TOLD.get(measure, "{:.0%} against {:.0%} of the evidence").format(*means)
    who = f"For '{target}' where {attribute} is '{value}'"
    return f"{who}, {what} than in the class's other images: {told} ({sure}){also}."
