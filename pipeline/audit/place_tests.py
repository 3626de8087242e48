"""What each class, and each group within a class, looks at more often than others, place by place, as tests.

What a map looks at is where it has a spot of its own, or what loads on a part (:mod:`pipeline.audit.parts`). The few
places that stand out on half 0 of the sample are tested on half 1 (:func:`pipeline.audit.enrichment.enriched`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.enrichment import Enriched, Surroundings, apart, count, enriched
from pipeline.audit.findings.base import Evidence
from pipeline.audit.parts import sample_maps
from pipeline.audit.places import LATTICE, Place, loads, part_places, plain_places, spots, window_shares
from schemas.audit import Settings

#: A place at which others look as often as an even map would is no odd place.
_USUAL = 1.25
#: A class that looks there in more of its images looks at its object there, unless it is an edge.
_MINORITY = 0.5
#: Times what its surroundings let expect that a class must look at a place.
_MORE = 1.25
#: Maps whose shares are in memory at a time.
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Field:
    """The sample as arrays: T maps, P places, C classes."""

    sample: pa.Table
    places: list[Place]
    loads: npt.NDArray[np.float32]
    spots: npt.NDArray[np.float32]
    half: npt.NDArray[np.int8]
    classes: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]
    totals: npt.NDArray[np.float64]

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """Maps (C,) of each class."""
        return np.bincount(self.code, minlength=len(self.classes))

    def usual(self, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which places (P,) a mean map (LATTICE, LATTICE) of shares looks at no more than an even one would."""
        even = 9 / 196
        windows = self.windows
        return np.asarray(windows @ mean.ravel() <= _USUAL * even * windows.sum(1))

    @cached_property
    def windows(self) -> npt.NDArray[np.float64]:
        """Which windows (P, LATTICE^2) each place has, as 0 and 1."""
        return np.array([place.windows.ravel() for place in self.places], np.float64)

    @cached_property
    def of_class(self) -> list[npt.NDArray[np.intp]]:
        """Rows of each class."""
        order = np.argsort(self.code, kind="stable")
        return np.split(order, np.cumsum(self.rows)[:-1])


def make_field(evidence: Evidence) -> Field:
    """Return the sample as arrays, with what each map looks at.

    Raises:
        InputError: scikit-learn is not installed.
    """
    sample, parts = evidence.sample, evidence.parts
    maps = sample_maps(sample)
    places = [*plain_places(), *part_places(parts.maps)]
    classes, code = np.unique(sample["target_class"].to_numpy(), return_inverse=True)
    totals = np.zeros((len(classes), LATTICE**2))
    for start in range(0, len(maps), _ROWS):
        shares = window_shares(maps[start : start + _ROWS]).reshape(-1, LATTICE**2)
        np.add.at(totals, code[start : start + _ROWS], shares.astype(np.float64))
    found = spots(maps)
    del maps
    return Field(
        sample,
        places,
        loads(found, places, parts.loadings),
        found.reshape(len(found), -1),
        sample["half"].to_numpy(),
        classes,
        code.astype(np.int64),
        totals.reshape(-1, LATTICE, LATTICE),
    )


def class_tests(field: Field, settings: Settings) -> Iterator[Enriched]:
    """Yield the tests of each class against all others, and against what its own spots elsewhere let expect."""
    number = len(field.classes)
    hits, rows = zip(
        *(count(field.loads[field.half == half], field.code[field.half == half], number) for half in (0, 1)),
        strict=True,
    )
    spot_counts, _ = count(field.spots, field.code, number)
    around = Surroundings(spot_counts, field.rows, _MORE)
    everything, total = field.totals.sum(0), len(field.sample)
    for index, target in enumerate(field.classes.tolist()):
        mine, others = int(field.rows[index]), total - int(field.rows[index])
        if min(mine, others) < settings.flagged_from:
            continue
        odd = field.usual((everything - field.totals[index]) / others)
        mode = np.unravel_index(int(field.totals[index].argmax()), (LATTICE, LATTICE))
        share = hits[0][2, index] / max(1, rows[0][index])
        off = np.array([apart(place, (int(mode[0]), int(mode[1]))) for place in field.places])
        outer = np.array([place.outer for place in field.places])
        # Where the class looks most is its object, unless that touches an edge of the view.
        touches = not {0, LATTICE - 1}.isdisjoint(int(each) for each in mode)
        allowed = odd & ((outer & (off | touches)) | (off & (share < _MINORITY)))
        rest = [(each.sum(1) - each[:, index], int(of.sum() - of[index])) for each, of in zip(hits, rows, strict=True)]
        tests = enriched(
            (hits[0][:, index], hits[1][:, index]),
            (int(rows[0][index]), int(rows[1][index])),
            (rest[0][0], rest[1][0]),
            (rest[0][1], rest[1][1]),
            field.places,
            allowed,
            settings,
            target_class=target,
            attribute="",
            value="",
        )
        for test in tests:
            yield replace(test, p=max(test.p, around.p(test, index, field.places[test.place])))


def group_tests(field: Field, settings: Settings) -> Iterator[Enriched]:
    """Yield the tests of each group within its class, against the class's other groups."""
    for attribute in settings.groups:
        column = field.sample[f"group:{attribute}"]
        if column.null_count == len(column):
            continue
        values, of_value = np.unique(np.array(column.fill_null("").to_pylist(), np.str_), return_inverse=True)
        of_value[~column.is_valid().to_numpy()] = -1
        # One class after the other: of all pairs of classes and values the counts would take gigabytes.
        for index in range(len(field.classes)):
            rows = field.of_class[index]
            rows = rows[of_value[rows] >= 0]
            sizes = np.bincount(of_value[rows], minlength=len(values))
            if (np.minimum(sizes, len(rows) - sizes) >= settings.flagged_from).any():
                yield from _tests_of(field, settings, index, attribute, values, rows, of_value[rows])


def _tests_of(
    field: Field,
    settings: Settings,
    index: int,
    attribute: str,
    values: npt.NDArray[np.str_],
    rows: npt.NDArray[np.intp],
    of_value: npt.NDArray[np.intp],
) -> Iterator[Enriched]:
    """Yield the tests of one class: of each value against the others."""
    present, code = np.unique(of_value, return_inverse=True)
    half = field.half[rows]
    hits, counts = zip(
        *(count(field.loads[rows[half == each]], code[half == each], len(present)) for each in (0, 1)), strict=True
    )
    sizes, total = counts[0] + counts[1], len(rows)
    odd = field.usual(field.totals[index] / field.rows[index])
    for mine, value in enumerate(present.tolist()):
        if min(int(sizes[mine]), total - int(sizes[mine])) < settings.flagged_from:
            continue
        others = np.flatnonzero(np.arange(len(present)) != mine)
        rest = [(each[:, others].sum(1), int(of[others].sum())) for each, of in zip(hits, counts, strict=True)]
        yield from enriched(
            (hits[0][:, mine], hits[1][:, mine]),
            (int(counts[0][mine]), int(counts[1][mine])),
            (rest[0][0], rest[1][0]),
            (rest[0][1], rest[1][1]),
            field.places,
            odd,
            settings,
            target_class=int(field.classes[index]),
            attribute=attribute,
            value=str(values[value]),
        )
