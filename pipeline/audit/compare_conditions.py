"""Conditions under which a comparison fails a build, such as ``drift>0`` or ``location>2``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.audit.compare_tables import ClassDrift
from schemas.audit import MEASURES
from schemas.errors import InputError, did_you_mean

#: Classes of which anything drifted, and those whose location prior did.
ANYTHING, LOCATION = "drift", "location"
NAMES = (ANYTHING, LOCATION, *(measure.name for measure in MEASURES))

_CONDITION = re.compile(r"\s*(?P<name>[A-Za-z_]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<number>\d+)\s*")
_SIGNS: dict[str, Callable[[int, int], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class Condition:
    """``name sign number``: how many classes drifted, in anything, in their places, or in one measure."""

    text: str
    name: str
    sign: str
    number: int

    def count(self, drifts: Sequence[ClassDrift]) -> int:
        """Return the number of classes that it is about."""
        if self.name == ANYTHING:
            return len(drifts)
        if self.name == LOCATION:
            return sum(drift.place is not None for drift in drifts)
        return sum(any(change.measure == self.name for change in drift.measures) for drift in drifts)

    def holds(self, drifts: Sequence[ClassDrift]) -> bool:
        """Say whether the build fails."""
        return _SIGNS[self.sign](self.count(drifts), self.number)


def parse(text: str) -> Condition:
    """Parse ``NAME OP NUMBER``; the name is ``drift``, ``location`` or a measure.

    Raises:
        InputError: it is none; the message says what was meant, perhaps.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise InputError(
            f"--fail-on '{text}': this is no condition; write what drifts, one of > >= < <= and a number of classes: "
            '"drift>0", "border_enrichment>2"'
        )
    name, sign, number = match.group("name", "sign", "number")
    if name not in NAMES:
        raise InputError(
            f"--fail-on '{text}': nothing called '{name}' can drift{did_you_mean(name, NAMES)}; use one of: "
            f"{', '.join(NAMES)}"
        )
    return Condition(text.strip(), name, sign, int(number))
