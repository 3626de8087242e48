"""All background thresholds and powers at once, from scores.

The label of a pixel is its best class where that class's score m exceeds the background's, whatever the rule: a
constant t asks m > t, and ``(1 - m) ** a`` asks m > t(a), where t(a) is the one solution of ``t = (1 - t) ** a``. So
one histogram of m per pair of (true id, best class), with an edge at each threshold, holds the confusion matrix of
every threshold and of every power.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.pseudolabels.confusion import IGNORED, Ids, Totals, class_results, counted, totals
from schemas.pseudolabels import BACKGROUND_ID

#: The thresholds and the powers that are tried: 0 to .59 by .01 (IRNet), 1 to 32 (PSA's two are 4 and 32).
THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(60))
RULES = ("constant", "power")
POWERS = tuple(float(power) for power in range(1, 33))


@cache
def threshold_of(power: float) -> float:
    """Return t with ``t = (1 - t) ** power``, to double precision: background and best class are equal there."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < (1 - middle) ** power else (low, middle)
    return low


@cache
def edges() -> npt.NDArray[np.float64]:
    """Return the thresholds of all constants and powers, sorted."""
    return np.unique([*THRESHOLDS, *(threshold_of(power) for power in POWERS)])


@dataclass(frozen=True)
class Point:
    """A background rule, and what it came to: ``value`` is the threshold or the power."""

    rule: str
    value: float
    totals: Totals


@dataclass
class Sweep:
    """Pixels by (true id, best class) and by how many edges the best score exceeds."""

    pairs: dict[tuple[int, int], npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, truth: Ids, scores: npt.NDArray[np.float32], ids: tuple[int, ...]) -> None:
        """Count the pixels of an image.

        Args:
            truth: (H, W) int32, ids or ``IGNORED``.
            scores: (K, H, W), of the classes; without the background's. NaN where nothing is known: no label there.
            ids: of the K classes.
        """
        known = truth != IGNORED
        levels = len(edges()) + 1
        if not ids:
            best, steps = np.zeros(int(known.sum()), np.int32), np.zeros(int(known.sum()), np.intp)
        else:
            # One class at a time: a class's scores (H, W) are all that is held twice.
            top = np.full(int(known.sum()), -np.inf, np.float32)
            best = np.zeros(len(top), np.int32)
            for each, score in zip(ids, scores, strict=True):
                values = score[known]
                better = values > top  # never of NaN
                top[better], best[better] = values[better], each
            # `left` counts the edges below the score, so that a score equal to its threshold is background; in float32,
            # as labels are made.
            steps = np.searchsorted(edges().astype(np.float32), top, side="left")
            best[np.isnan(scores[0][known])] = IGNORED
        for pair, counts in counted(truth[known], best, steps, levels):
            found = np.array(counts, np.int64)
            self.pairs[pair] = self.pairs[pair] + found if pair in self.pairs else found

    def merge(self, other: Sweep) -> None:
        """Add what another part of the dataset came to."""
        for pair, counts in other.pairs.items():
            self.pairs[pair] = self.pairs[pair] + counts if pair in self.pairs else counts

    def at(self, threshold: float) -> dict[tuple[int, int], int]:
        """Return the pixels by (true id, labelled id) at one of :func:`edges`."""
        place = int(np.searchsorted(edges(), threshold))
        found: dict[tuple[int, int], int] = {}
        for (true, best), counts in self.pairs.items():
            # Pixels without scores are ignored whatever the threshold.
            above = int(counts.sum() if best == IGNORED else counts[place + 1 :].sum())
            for pair, count in (((true, best), above), ((true, BACKGROUND_ID), int(counts.sum()) - above)):
                if count:
                    found[pair] = found.get(pair, 0) + count
        return found

    def points(self, name: Callable[[int], str], rules: Sequence[str] = RULES) -> list[Point]:
        """Return the thresholds, then the powers, of the rules that are asked for."""
        tried = [("constant", value, value) for value in THRESHOLDS]
        tried += [("power", power, threshold_of(power)) for power in POWERS]
        return [
            Point(rule, value, totals(class_results(self.at(edge), name)))
            for rule, value, edge in tried
            if rule in rules
        ]


def best_of(points: Sequence[Point], rule: str | None = None) -> Point | None:
    """Return the point of the largest mIoU, of a rule or of all; the first of equals. None where nothing counted."""
    chosen = [each for each in points if each.totals.miou is not None and rule in (None, each.rule)]
    return max(chosen, key=lambda each: each.totals.miou or 0.0, default=None)
