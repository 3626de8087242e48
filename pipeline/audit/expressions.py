"""Conditions under which an audit fails a build, such as ``border_enrichment>1.5`` or ``shortcut>0``."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.groups import ALL
from schemas.audit import MEASURES, AuditManifest, Finding
from schemas.errors import InputError, did_you_mean
from schemas.registries import FINDINGS

#: Findings of all kinds.
ANY_KIND = "findings"
STATISTICS = ("mean", "median", "std", "q05", "q95", "low", "high")

_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z_]+)\s*(?:\.\s*(?P<statistic>[A-Za-z0-9_]+)\s*)?(?P<sign>>=|<=|>|<)\s*(?P<number>\S+)\s*"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_REGIONAL = {measure.name for measure in MEASURES if measure.regional}


@dataclass(frozen=True)
class Expression:
    """``name[.statistic] sign number``; without a statistic it counts findings."""

    text: str
    name: str
    statistic: str | None
    sign: str
    number: float

    @property
    def regional(self) -> bool:
        """It needs the objects' places."""
        return self.name in _REGIONAL

    def holds(self, value: float) -> bool:
        """Say whether a value is on the failing side."""
        return _SIGNS[self.sign](value, self.number)

    def failures(self, groups: pa.Table, findings: Sequence[Finding], manifest: AuditManifest) -> list[str]:
        """Return what the expression holds for, in words; nothing where it does not hold.

        A measure is judged of each class of the audit's method and layer that has ``flagged_from`` maps.
        """
        if self.statistic is None:
            counts = Counter(finding.kind for finding in findings)
            number = len(findings) if self.name == ANY_KIND else counts[self.name]
            return [f"there are {number}"] if self.holds(number) else []
        statistic = self.statistic
        failing = [row for row in self.judged(groups, manifest) if self.holds(row[statistic])]
        failing.sort(key=lambda row: abs(row[statistic] - self.number), reverse=True)
        return [f"{_class(row)} has {row[statistic]:.4g} ({row['n']} maps)" for row in failing]

    def judged(self, groups: pa.Table, manifest: AuditManifest) -> list[dict[str, Any]]:
        """Return the rows of the groups table that a measure is judged by."""
        settings = manifest.settings
        columns = [("method", manifest.method), ("layer", manifest.layer), ("measure", self.name), ("outcome", ALL)]
        condition = pc.field("target_class").is_valid() & pc.field("attribute").is_null()
        for name, value in columns:
            condition &= pc.field(name).cast(pa.string()) == value
        condition &= (pc.field("n") >= settings.flagged_from) & pc.field(self.statistic or "mean").is_valid()
        rows: list[dict[str, Any]] = groups.filter(condition).to_pylist()
        return rows


def parse(text: str) -> Expression:
    """Parse ``MEASURE[.STATISTIC] OP NUMBER``, or ``KIND OP NUMBER`` with a kind of finding or ``findings``.

    Raises:
        InputError: it is none; the message says what was meant, perhaps.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise InputError(
            f"--fail-on '{text}': this is no condition; write a name, one of > >= < <= and a number: "
            '"border_enrichment>1.5", "energy.median<0.3", "findings>0"'
        )
    name, statistic, sign, number = match.group("name", "statistic", "sign", "number")
    measures = [measure.name for measure in MEASURES]
    if name in measures:
        statistic = statistic or "mean"
        if statistic not in STATISTICS:
            raise InputError(
                f"--fail-on '{text}': there is no statistic '{statistic}'{did_you_mean(statistic, STATISTICS)}; "
                f"use one of: {', '.join(STATISTICS)}"
            )
    elif name == ANY_KIND or name in FINDINGS:
        if statistic is not None:
            raise InputError(f"--fail-on '{text}': findings are counted and have no '.{statistic}'; leave it away")
    else:
        choices = [*measures, ANY_KIND, *FINDINGS]
        raise InputError(
            f"--fail-on '{text}': there is no measure or kind of finding '{name}'{did_you_mean(name, choices)}; "
            f"use one of: {', '.join(choices)}"
        )
    return Expression(text.strip(), name, statistic, sign, _number(text, number))


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"--fail-on '{text}': '{number}' is no number; write it as 1.5")
    return value


def _class(row: dict[str, Any]) -> str:
    name = row["target_name"]
    return f"class {row['target_class']}" if name is None else f"class '{name}'"
