"""Shortcut candidates: places that one class, or one group within a class, is looked at in, and others are not.

What a map looks at is where it has a spot of its own, or what loads on a part (:mod:`pipeline.audit.parts`). For each
class, and each group within each class, the few places that stand out on half 0 of the sample are tested on half 1
(Fisher's exact test, one-sided), the corners on both since they are chosen beforehand. Benjamini and Bogomolov's
procedure covers all of these tests, those of a class being a family. Groups are compared within a class, so a
difference between classes makes no difference between groups. A class by itself must besides look at the place more
often, by a quarter, than its spots elsewhere make one expect
(:class:`pipeline.audit.enrichment.Surroundings`), and the place must be one at an edge, or off where the class mostly
looks. Last, the interval of the ratio, widened for what was chosen among many, must lie above 1.

A candidate it is: the model may not use what is there (see :mod:`pipeline.audit.causal`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.enrichment import Enriched, fisher, lowest, stands_out
from pipeline.audit.extras import extra
from pipeline.audit.findings.base import Evidence, FindingKind, image_refs, severity
from pipeline.audit.freed import give_back
from pipeline.audit.intervals import benjamini_bogomolov, wilson
from pipeline.audit.place_tests import Field, class_tests, group_tests, make_field
from pipeline.audit.places import CORNERS, NEAR_CORNERS, Place
from schemas.audit import Finding, ImageRef, Settings

#: Findings of one class whose images are so far the same are one.
_SAME = 0.3
_UNCHECKED = 0.8
#: Ratio as which a weaker one counts, so that what is significant and used is notable (a severity of 20).
_LEAST = 1.25

_Flagged = tuple[Enriched, float]


class Shortcut(FindingKind):
    """Places that one class or group is looked at in, and others are not."""

    name = "shortcut"

    def find(self, evidence: Evidence) -> list[Finding]:
        """Return a finding per class and place; a group in which it happens most is named.

        Raises:
            InputError: scikit-learn or scipy is not installed.
        """
        settings = evidence.frame.settings
        if len(evidence.sample) < 2 * settings.flagged_from:
            return []
        field = make_field(evidence)
        give_back()
        tests = [*class_tests(field, settings), *group_tests(field, settings)]
        p, families = np.array([test.p for test in tests]), np.array([test.target_class for test in tests])
        q = benjamini_bogomolov(p, families, settings.q) if tests else np.empty(0)
        pairs = [(test, each) for test, each in zip(tests, q.tolist(), strict=True)]
        flagged = [(test, each) for test, each in pairs if stands_out(test, each, settings)]
        # Intervals of what was chosen among many are too short; so much wider, they cover (Benjamini, Yekutieli 2005).
        z = _z(settings.q * len(flagged) / len(tests)) if tests else 0.0
        flagged = [pair for pair in flagged if lowest(pair[0], z) > 1]
        return [_finding(evidence, field, same, len(tests), z) for same in _clusters(field, flagged, settings)]


def _members(field: Field, test: Enriched) -> npt.NDArray[np.int64]:
    """Rows of the sample of the test's class, and group, that look at its place; the most first.

    At the corners, those that look at the very corner come before others: objects that lie in a corner, whose spots are
    strong, have them beside it.
    """
    mine = field.sample["target_class"].to_numpy() == test.target_class
    if test.attribute:
        values = field.sample[f"group:{test.attribute}"].to_pylist()
        mine &= np.array([value == test.value for value in values])
    load = field.loads[:, test.place]
    found = np.flatnonzero(mine & (load >= test.level))
    beside = np.zeros(len(found), np.bool_)
    if field.places[test.place].key == NEAR_CORNERS:
        very = next(number for number, each in enumerate(field.places) if each.key == CORNERS)
        beside = field.loads[found, very] < test.level
    return found[np.lexsort((-load[found], beside))]


def _clusters(field: Field, flagged: list[_Flagged], settings: Settings) -> Iterator[list[_Flagged]]:
    """Put tests together whose images are the same, the surest first.

    Where some images of a class look at a mark, the others look elsewhere more often than they do. So what comes after
    the surest of a class must stand out among the images that are not behind it, too.
    """
    for target in sorted({test.target_class for test, _ in flagged}):
        left = [pair for pair in flagged if pair[0].target_class == target]
        left.sort(key=lambda pair: (pair[0].p, -pair[0].ratio, pair[0].place, pair[0].attribute, pair[0].value))
        images = [set(_members(field, test).tolist()) for test, _ in left]
        taken = np.zeros(len(left), np.bool_)
        told: set[int] = set()
        for first in range(len(left)):
            if taken[first] or (told and not stands_out(*_without(field, left[first], told), settings)):
                continue
            same = [
                number
                for number in range(first, len(left))
                if not taken[number]
                and len(images[first] & images[number]) >= _SAME * min(len(images[first]), len(images[number]))
            ]
            taken[same] = True
            told |= set().union(*(images[number] for number in same))
            yield [left[number] for number in same]


def _without(field: Field, pair: _Flagged, told: set[int]) -> _Flagged:
    """Return a test on the maps that are not ``told`` of already; its q changes as its p does."""
    test, q = pair
    at_corners = field.places[test.place].key in (CORNERS, NEAR_CORNERS)
    use = np.ones(len(field.sample), np.bool_) if at_corners else field.half == 1
    use[list(told)] = False
    mine = field.sample["target_class"].to_numpy() == test.target_class
    if test.attribute:
        values = np.array(field.sample[f"group:{test.attribute}"].to_pylist(), np.object_)
        use &= mine & np.array([value is not None for value in values])
        mine = values == test.value
    looks = field.loads[:, test.place] >= test.level
    counts = [int(side.sum()) for side in (use & mine & looks, use & mine, use & ~mine & looks, use & ~mine)]
    if not counts[1] or not counts[3]:
        return replace(test, hits=0), q
    about = {name: getattr(test, name) for name in ("target_class", "attribute", "value", "place", "level")}
    again = fisher(*counts, **about)
    return again, q * max(1.0, again.p / max(test.p, 1e-300))


def _z(level: float) -> float:
    return float(extra("scipy.stats").norm.isf(level / 2))


def _finding(evidence: Evidence, field: Field, same: list[_Flagged], tests: int, z: float) -> Finding:
    groups = [pair for pair in same if pair[0].attribute]
    test, q = groups[0] if groups else same[0]
    overall = next((pair[0] for pair in same if not pair[0].attribute), None)
    place, name = field.places[test.place], evidence.frame.name(test.target_class)
    rows = _members(field, test)
    share, (share_low, share_high) = test.hits / test.rows, wilson(test.hits, test.rows)
    mine, others = _sizes(field, test)
    # By the lower end of the interval, since what few images show strongly may be chance.
    strength = 1 - 1 / max(_LEAST, lowest(test, z), lowest(overall, z) if overall else 0.0)
    details = {
        "place": place.key,
        "where": place.words,
        "zone": place.zone.astype(int).tolist(),
        "level": test.level,
        "share": share,
        "share_low": float(share_low),
        "share_high": float(share_high),
        "other_share": test.other_hits / test.other_rows,
        "tested": test.rows,
        "tested_others": test.other_rows,
        "tests": tests,
        "also": sorted({_group(other) for other, _ in same if other.attribute} - {_group(test)}),
    }
    if overall is not None:
        details |= {"class_ratio": overall.ratio, "class_share": overall.hits / overall.rows}
    about = f"'{name}'" + (f" with {test.attribute} = {test.value}" if test.attribute else "")
    rest = "of the other images of this class" if test.attribute else "of the images of other classes"
    return Finding(
        finding_id=f"shortcut:{test.target_class}:{place.key}" + (f":{_group(test)}" if test.attribute else ""),
        kind=Shortcut.name,
        title=f"Shortcut candidate for {about}: {place.words}",
        sentence=(
            f"In {share:.1%} of the images of {about} the model looks at {place.words}, which it does in "
            f"{test.other_hits / test.other_rows:.1%} {rest}: what is seen there may stand in for the object."
        ),
        remedy=(
            "Look at the images. Where a mark, a logo or a frame goes with the class, cover it or collect images "
            "without it, train again, and compare the audits."
        ),
        severity=severity(strength, _UNCHECKED),
        target_class=test.target_class,
        target_name=name,
        attribute=test.attribute or None,
        value=test.value if test.attribute else None,
        effect=test.ratio,
        effect_name="ratio",
        low=test.low,
        high=test.high,
        p=test.p,
        q=q,
        n=mine,
        reference_n=others,
        images=_images(field, test, rows, place),
        details=details,
    )


def _group(test: Enriched) -> str:
    return f"{test.attribute}={test.value}"


def _sizes(field: Field, test: Enriched) -> tuple[int, int]:
    """Maps of the sample, both halves, that a test is about, and those that it compares them with."""
    target = field.sample["target_class"].to_numpy() == test.target_class
    if not test.attribute:
        return int(target.sum()), int((~target).sum())
    column = field.sample[f"group:{test.attribute}"].filter(pa.array(target)).to_pylist()
    mine = sum(value == test.value for value in column)
    return mine, sum(value is not None for value in column) - mine


def _images(
    field: Field, test: Enriched, rows: npt.NDArray[np.int64], place: Place, most: int = 24
) -> tuple[ImageRef, ...]:
    rows = rows[:most]
    references = image_refs(field.sample.take(pa.array(rows)), most=most)
    shown = field.loads[rows, test.place].tolist()
    return tuple(
        reference.model_copy(update={"note": f"{share:.0%} of the evidence in {place.words}"})
        for reference, share in zip(references, shown, strict=True)
    )


KIND = Shortcut
