"""Groups (sites, cameras, ...) whose maps differ from those of the same class in the other groups.

Never across classes: sites with other mixes of classes differ as a whole, though no class does (Simpson's paradox).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.cells import EVERYTHING
from pipeline.audit.contrast import Family, by_group, strength_of_d
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.findings.checks import area_controlled, difference_interval, split_half
from pipeline.audit.findings.group_tests import LOCATION, RATIOS, SHARES, TESTS, Comparison, Results, Tests
from pipeline.audit.findings.group_words import sentence, short, title
from pipeline.audit.findings.location import MapSums, cell_d, elsewhere, place, sample_d
from pipeline.audit.findings.samples import densities, largest, numbers, plural, where
from schemas.audit import Finding, Settings

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_WEIGHT = 0.8
_REMEDY = (
    "Compare the images of both sides: how they were taken, cropped or marked. Test the model on each group alone, and "
    "balance the groups within the class, or vary in training what differs."
)


class GroupDifference(FindingKind):
    """Each value of each attribute against the other values of the same class."""

    name = "group_difference"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return at most one finding per class, attribute and value; the strongest measure leads.

        A value is compared with all others, and, once others are found, with the rest of them: one odd site makes every
        other site differ from the mean. What is left must hold in both halves of the sample, and among objects of like
        size where they are known.
        """
        settings = evidence.frame.settings
        groups = by_group(evidence.state.maps, evidence.frame.primary)
        everything = [values[""] for (attribute, _), values in groups.items() if attribute == EVERYTHING]
        if not everything:
            return []
        typical = MapSums.of(everything).together().mean[0]
        compared: list[tuple[Comparison, Results]] = []
        for (attribute, target), values in groups.items():
            comparison = Comparison(evidence, attribute, target, values)
            if attribute != EVERYTHING and comparison.possible:
                compared.append((comparison, comparison.all(typical)))
        if not compared:
            return []
        family = Family(np.concatenate([tests.p.ravel() for _, tests in compared]), settings.q)
        return [finding for comparison, tests in compared for finding in self._odd(comparison, tests, family)]

    def _odd(self, comparison: Comparison, tests: Results, family: Family) -> Iterator[Finding]:
        """Yield the values that differ, the strongest first, each against those that are not yet found."""
        found = tests.passed & (tests.p <= family.threshold)
        strength = np.where(found, np.abs(tests.d), 0).max(1)
        rest = list(range(len(comparison.names)))
        for item in np.argsort(-strength, kind="stable")[: int((strength > 0).sum())].tolist():
            others = [other for other in rest if other != item]
            if not others:
                return
            again = comparison.one(item, others)
            finding = self._confirmed(comparison, item, others, again, family)
            if finding is not None:
                yield finding
                rest = others

    def _confirmed(
        self, comparison: Comparison, item: int, others: list[int], tests: Tests, family: Family
    ) -> Finding | None:
        rows, mine = comparison.sample(item, others)
        kept: dict[int, dict[str, Any]] = {}
        # Of equally strong ones the place says most.
        strongest_first = np.lexsort((-np.arange(len(TESTS)), -np.abs(np.nan_to_num(tests.d[0]))))
        for test in strongest_first[(tests.passed[0] & (tests.p[0] <= family.threshold))[strongest_first]].tolist():
            checks = _checks(rows, mine, TESTS[test], _values(rows, TESTS[test], tests), comparison.settings)
            if all(check["held"] is not False for check in checks.values()):
                kept[test] = checks
        return self._finding(comparison, item, tests, family, kept, rows, mine) if kept else None

    def _finding(
        self,
        comparison: Comparison,
        item: int,
        tests: Tests,
        family: Family,
        kept: dict[int, dict[str, Any]],
        rows: pa.Table,
        mine: Mask,
    ) -> Finding:
        frame, lead = comparison.evidence.frame, next(iter(kept))
        measure, d, p = TESTS[lead], float(tests.d[0, lead]), float(tests.p[0, lead])
        side = _Sides(tests, lead, rows, mine, frame.settings)
        name, value = frame.name(comparison.target), comparison.names[item]
        about = (name, comparison.attribute, value, measure, side.more, side.place)
        sure = _UNITS[side.unit].format(effect=side.effect, low=side.low, high=side.high)
        sure = f"{sure}, {side.n:,} and {plural(side.reference_n, 'map')}"
        moved = _PLACE in kept
        also = f"; {side.there:.0%} of the evidence lies {side.place}, against {side.other_there:.0%}"
        values = side.values[mine]
        return Finding(
            finding_id=f"{self.name}:{comparison.target}:{comparison.attribute}:{value}",
            kind=self.name,
            title=title(*about),
            sentence=sentence(*about, (side.own, side.other), sure, also if moved and lead != _PLACE else ""),
            remedy=_REMEDY,
            severity=severity(strength_of_d(d), _WEIGHT),
            target_class=comparison.target,
            target_name=name,
            attribute=comparison.attribute,
            value=value,
            measure=measure,
            effect=side.effect,
            effect_name=side.unit,
            low=side.low,
            high=side.high,
            p=p,
            q=family.q(p),
            n=side.n,
            reference_n=side.reference_n,
            images=image_refs(
                largest(where(rows, mine), values if side.more else -values), short(measure, side.more, side.place)
            ),
            details={
                "d": d,
                "own": side.own,
                "other": side.other,
                "elsewhere": float(elsewhere(tests.own, tests.other)[0]),
                **({"place": side.place, "place_own": side.there, "place_other": side.other_there} if moved else {}),
                "checks": kept[lead],
                "measures": {
                    TESTS[each]: {"d": float(tests.d[0, each]), "q": family.q(float(tests.p[0, each]))} for each in kept
                },
            },
        )


_PLACE = TESTS.index(LOCATION)
#: Unit of the effect -> how its interval is told.
_UNITS = {
    "ratio": "{effect:.2g} times as much, 95% interval {low:.2g} to {high:.2g}",
    "difference": "95% interval of the difference {low:+.0%} to {high:+.0%}",
}


class _Sides:
    """What is told of both sides of a test.

    Attributes:
        own: mean as a share (of enrichments: as it is); ``other`` of the others; ``n`` and ``reference_n`` maps.
        effect: ratio or difference, as ``unit`` says, with its 95% interval ``low`` to ``high``.
        more: whether the group has more of it.
        values: (T,) of the sample's rows.
        place: ninth of the picture where the maps differ most, with the shares ``there`` and ``other_there``.
    """

    def __init__(self, tests: Tests, test: int, rows: pa.Table, mine: Mask, settings: Settings) -> None:
        measure, contrast = TESTS[test], tests.contrast
        self.place, inside, self.there, self.other_there = place(tests.own, tests.other)
        if measure == LOCATION:
            self.own, self.other = self.there, self.other_there
            self.n, self.reference_n = int(tests.own.count[0, 0]), int(tests.other.count[0, 0])
            self.values = densities(rows) @ inside / len(inside)
            self.effect, self.unit = self.own - self.other, "difference"
            self.low, self.high = difference_interval(self.values, mine, rows["key"].to_numpy(), settings.bootstrap)
        else:
            factor = SHARES[measure] or 1.0
            self.own, self.other = (float(each[0, test]) * factor for each in (contrast.mean, contrast.other_mean))
            self.n, self.reference_n = int(contrast.n[0, test]), int(contrast.other_n[0, test])
            self.values = numbers(rows, measure)
            if measure in RATIOS:
                self.effect, self.unit = float(contrast.ratio[0, test]), "ratio"
                self.low, self.high = contrast.ratio_interval(0, test)
            else:
                self.effect, self.unit = float(contrast.difference[0, test]), "difference"
                self.low, self.high = contrast.difference_interval(0, test)
        self.more = self.own > self.other


def _cell(tests: Tests) -> int:
    """Return the cell in which the place differs most."""
    return int(np.argmax(np.abs(np.nan_to_num(cell_d(tests.own, tests.other)[0]))))


def _values(rows: pa.Table, measure: str, tests: Tests) -> Floats:
    """Return what is compared, for rows of the sample (T,): the measure, or the density of the most different cell."""
    return densities(rows)[:, _cell(tests)] if measure == LOCATION else numbers(rows, measure)


def _checks(rows: pa.Table, mine: Mask, measure: str, values: Floats, settings: Settings) -> dict[str, Any]:
    """Return what becomes of a difference in halves of the sample, and among objects of like size."""
    second = rows["half"].to_numpy() == 1
    sides = mine[~second], mine[second]
    halves = values[~second], values[second]
    if measure == LOCATION and min(int(side.sum()) for own in sides for side in (own, ~own)) >= 2:
        # The cell is chosen on half 0 too; on the whole it would be tested on what it was chosen by.
        maps = densities(rows)
        chosen = int(np.argmax(np.abs(sample_d(maps[~second][sides[0]], maps[~second][~sides[0]]))))
        halves = maps[~second][:, chosen], maps[second][:, chosen]
    checks = {"split_half": split_half(halves, sides, settings.effect_d, settings.interval_from)}
    area = area_controlled(values, mine, numbers(rows, "area"), settings.effect_d, settings.interval_from)
    if area is not None:
        checks["object_area"] = area
    return checks


KIND = GroupDifference()
