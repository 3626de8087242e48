"""One confusion matrix over a dataset, and what it says of each class.

Counts are integers and are kept by the pairs of ids that occur, so that parts of a dataset are counted anywhere and
added in any order to the same result, and a matrix of a thousand classes takes what its pairs take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.pseudolabels import BACKGROUND_ID

Ids = npt.NDArray[np.int32]
Pairs = Mapping[tuple[int, int], int]

#: Id of pixels without a class, in what is compared here.
IGNORED = -1
#: Ids are below this: those of labels (16 bits), and as many of the truth's that the labels do not know.
ID_LIMIT = 1 << 17


@dataclass
class Confusion:
    """Pixels by (true id, labelled id).

    The true id is never :data:`IGNORED`: such pixels count in ``ignored`` alone. The labelled id may be.
    """

    pairs: dict[tuple[int, int], int] = field(default_factory=dict)
    ignored: int = 0

    def add(self, truth: Ids, labels: Ids) -> None:
        """Count the pixels of an image.

        Args:
            truth: (H, W) int32, ids or :data:`IGNORED`.
            labels: the same shape.
        """
        known = truth != IGNORED
        self.ignored += int(known.size - np.count_nonzero(known))
        for pair, (count,) in counted(truth[known], labels[known]):
            self.pairs[pair] = self.pairs.get(pair, 0) + count

    def merge(self, other: Confusion) -> None:
        """Add what another part of the dataset came to."""
        for pair, count in other.pairs.items():
            self.pairs[pair] = self.pairs.get(pair, 0) + count
        self.ignored += other.ignored


def counted(
    truth: Ids, labels: Ids, steps: npt.NDArray[np.integer[Any]] | None = None, levels: int = 1
) -> Iterable[tuple[tuple[int, int], list[int]]]:
    """Yield the pairs of ids that occur in (n,) and (n,), each with the numbers of its pixels at each level.

    Args:
        truth: ids.
        labels: ids.
        steps: (n,) levels from 0; None: all are at level 0.
        levels: how many there are.
    """
    rows, row = _dense(truth)
    columns, column = _dense(labels)
    code = row * len(columns) + column
    if steps is not None:
        code = code * levels + steps
    counts = np.bincount(code, minlength=len(rows) * len(columns) * levels).reshape(len(rows), len(columns), levels)
    for i, j in zip(*np.nonzero(counts.any(2)), strict=True):
        yield (int(rows[i]), int(columns[j])), counts[i, j].tolist()


def _dense(ids: Ids) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the ids that occur, and the position of each pixel's among them."""
    shifted = ids.astype(np.intp) - IGNORED
    found = np.flatnonzero(np.bincount(shifted, minlength=1))
    places = np.zeros(ID_LIMIT + 1, np.intp)
    places[found] = np.arange(len(found))
    return found + IGNORED, places[shifted]


@dataclass(frozen=True)
class ClassResult:
    """A class over the whole dataset, in pixels.

    ``left_out`` are pixels of the class that the labels ignore; ``false_negatives`` are the others that were missed.
    """

    id: int
    name: str
    true_positives: int
    false_positives: int
    false_negatives: int
    left_out: int

    @property
    def iou(self) -> float | None:
        """TP / (TP + FP + FN), ignored pixels counted as missed; None where the class is nowhere."""
        return _ratio(self.true_positives, self.false_positives + self.false_negatives + self.left_out)

    @property
    def iou_left_out(self) -> float | None:
        """The same over the pixels that the labels do not ignore."""
        return _ratio(self.true_positives, self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float | None:
        """TP / (TP + FP); 1 - precision is the over-activation."""
        return _ratio(self.true_positives, self.false_positives)

    @property
    def recall(self) -> float | None:
        """TP / (TP + FN), ignored pixels counted as missed; 1 - recall is the under-activation."""
        return _ratio(self.true_positives, self.false_negatives + self.left_out)


def _ratio(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def class_results(pairs: Pairs, name: Callable[[int], str]) -> list[ClassResult]:
    """Return the classes that truth or labels have, by id.

    Args:
        pairs: pixels by (true id, labelled id).
        name: of an id.
    """
    hits: dict[int, int] = {}
    true: dict[int, int] = {}
    labelled: dict[int, int] = {}
    left: dict[int, int] = {}
    for (row, column), count in pairs.items():
        true[row] = true.get(row, 0) + count
        if column == IGNORED:
            left[row] = left.get(row, 0) + count
            continue
        labelled[column] = labelled.get(column, 0) + count
        if row == column:
            hits[row] = count
    return [
        ClassResult(
            each,
            name(each),
            hits.get(each, 0),
            labelled.get(each, 0) - hits.get(each, 0),
            true.get(each, 0) - hits.get(each, 0) - left.get(each, 0),
            left.get(each, 0),
        )
        for each in sorted(true.keys() | labelled.keys())
    ]


@dataclass(frozen=True)
class Totals:
    """Figures over all classes; None where nothing was counted.

    ``miou`` is the mean IoU of the classes that truth or labels have, background included, where a pixel that the
    labels ignore is wrong; ``miou_left_out`` leaves such pixels out. ``over`` and ``under`` are the means of
    1 - precision and 1 - recall over the same classes, where they are defined.
    """

    miou: float | None
    miou_left_out: float | None
    miou_foreground: float | None
    accuracy: float | None
    accuracy_left_out: float | None
    over: float | None
    under: float | None


def totals(results: Iterable[ClassResult]) -> Totals:
    """Return the means over classes, and the shares of pixels that are right."""
    found = list(results)
    hits = sum(each.true_positives for each in found)
    missed = sum(each.false_negatives for each in found)
    left = sum(each.left_out for each in found)
    return Totals(
        miou=_mean(each.iou for each in found),
        miou_left_out=_mean(each.iou_left_out for each in found),
        miou_foreground=_mean(each.iou for each in found if each.id != BACKGROUND_ID),
        accuracy=_ratio(hits, missed + left),
        accuracy_left_out=_ratio(hits, missed),
        over=_mean(None if each.precision is None else 1 - each.precision for each in found),
        under=_mean(None if each.recall is None else 1 - each.recall for each in found),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
