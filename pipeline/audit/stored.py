"""Sums by cell of all parts, in files: only some neighbouring classes are in memory at a time.

A lake of 5,000 classes and 30 sites has 300,000 cells; with two hundred resamples of each measure they would take
gigabytes. So what the parts say is laid down by ranges of classes, and each range is put together as a whole and once;
readers go through the classes in order and hold few ranges. The files take some hundred bytes per map, up to the point
where cells are large enough to be summed.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.archives import archive, unarchived
from pipeline.audit.canonical import expanded
from pipeline.audit.cell import Cell
from pipeline.audit.cells import Cells
from pipeline.audit.fixed import Integers
from pipeline.audit.index import Index, together
from pipeline.audit.reading import CellReader
from pipeline.audit.rows import EVERYTHING
from pipeline.audit.table import DRAWN, ON_GRID
from schemas.audit import Measure

#: Rows of a range, as far as classes can be parted; and bytes that wait until it is put together.
_ROWS = 1 << 15
_WAITING = 24 << 20
_OPEN = 2
_PREFIX = "cells"


class _Range:
    """Classes from ``low`` to below the next range's, in one file of archives one after the other."""

    def __init__(self, low: int, path: Path) -> None:
        self.low, self.path = low, path
        self.sizes: list[int] = []
        self.waiting = 0

    def append(self, cells: Cells) -> None:
        """Write cells behind the others."""
        data = archive(cells.arrays(_PREFIX, ordered=False), compress=False)
        with self.path.open("ab") as file:
            file.write(data)
        self.sizes.append(len(data))
        self.waiting += len(data)

    def read(self, measures: Sequence[Measure], resamples: int) -> Cells:
        """Return the sum of what was written."""
        found = Cells(measures, resamples)
        if self.sizes:
            with self.path.open("rb") as file:
                for size in self.sizes:
                    found.load(_PREFIX, unarchived(file.read(size)))
        return found


class StoredCells(CellReader):
    """All cells of many parts. They are added, :meth:`finish` is called once, and then they can be read.

    The files lie in a temporary folder, which goes with the object.
    """

    def __init__(self, measures: Sequence[Measure], resamples: int) -> None:
        self.measures, self.resamples = tuple(measures), resamples
        self._folder = Path(tempfile.mkdtemp(prefix="camlake-audit-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._made = 0
        self._ranges = [self._range(0)]
        self._totals = Cells(measures, resamples)
        self._open: OrderedDict[int, Cells] = OrderedDict()
        self._indices: dict[int, Index] = {}
        self._firsts: dict[int, npt.NDArray[np.int64]] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._classes: dict[int, _ClassSums] = {}

    def _range(self, low: int) -> _Range:
        self._made += 1
        return _Range(low, self._folder / f"{self._made:06d}.bin")

    def add(self, cells: Cells) -> None:
        """Add the cells of a part."""
        self._totals.merge(cells.of_all_classes())
        lows = [*(each.low for each in self._ranges), None]
        for number in range(len(self._ranges) - 1, -1, -1):
            low, high = self._ranges[number].low, lows[number + 1]
            piece = cells.between(low, high)
            if piece:
                self._ranges[number].append(piece)
                if self._ranges[number].waiting > _WAITING:
                    self._ranges[number : number + 1] = [each for each, _ in self._together(self._ranges[number])]

    def _together(self, given: _Range) -> Iterator[tuple[_Range, Cells]]:
        """Put a range together and yield it, as several where it has become too large, with their cells."""
        cells = given.read(self.measures, self.resamples)
        bounds = list(portions(cells.sizes(), _ROWS)) or [(given.low, None)]
        for place, (low, high) in enumerate(bounds):
            # Classes that have nothing yet belong to the range before them.
            each = self._range(low if place else given.low)
            part = cells.between(each.low, high)
            each.append(part)
            each.waiting = 0
            yield each, part
        given.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put every range together, and note which cells there are."""
        found: list[dict[int, Index]] = []
        kept: dict[int, _ClassSums] = {}
        ranges = []
        for given in self._ranges:
            for each, cells in self._together(given):
                ranges.append(each)
                found.append({series: cells.index(series) for series in cells.series()})
                for series in found[-1]:
                    kept.setdefault(series, _ClassSums()).add(cells, series)
        self._ranges = ranges
        for series, sums in kept.items():
            parts = [each.get(series) for each in found]
            self._firsts[series] = np.cumsum([0, *(0 if part is None else len(part) for part in parts)])
            self._indices[series] = together(series, [part for part in parts if part is not None])
            self._names[series] = sums.names
            self._classes[series] = sums.finished(self._indices[series])

    # Reading ---------------------------------------------------------------------------------------------------

    def series(self) -> list[int]:
        """See :meth:`CellReader.series`."""
        return sorted(self._indices)

    def index(self, series: int) -> Index:
        """See :meth:`CellReader.index`."""
        return self._indices[series] if series in self._indices else together(series, [])

    def names(self, series: int) -> tuple[str, ...]:
        """See :meth:`CellReader.names`."""
        return self._names[series]

    def sums(self, series: int, place: int, name: str) -> Integers:
        """See :meth:`CellReader.sums`."""
        if name == "rows":
            return np.asarray(self._indices[series].rows[place])
        found = None if name in DRAWN else self._classes[series].sums(place, name)
        if found is not None:
            return found
        number = int(np.searchsorted(self._firsts[series], place, side="right")) - 1
        return self._read(number).sums(series, place - int(self._firsts[series][number]), name)

    def bulk(self, series: int, start: int, stop: int, names: Sequence[str]) -> dict[str, Integers]:
        """See :meth:`CellReader.bulk`."""
        firsts = self._firsts[series]
        parts: list[dict[str, Integers]] = []
        while start < stop:
            number = int(np.searchsorted(firsts, start, side="right")) - 1
            first, end = int(firsts[number]), min(stop, int(firsts[number + 1]))
            parts.append(self._read(number).bulk(series, start - first, end - first, names))
            start = end
        return parts[0] if len(parts) == 1 else {name: np.concatenate([each[name] for each in parts]) for name in names}

    def total(self, series: int, attribute: str, value: str, outcome: int) -> Cell | None:
        """See :meth:`CellReader.total`."""
        return self._totals.total(series, attribute, value, outcome)

    def _read(self, number: int) -> Cells:
        """Return a range's cells."""
        if number not in self._open:
            self._open[number] = self._ranges[number].read(self.measures, self.resamples)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


class _ClassSums:
    """What is asked of classes as a whole, in any order; it is little, so it stays in memory."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._found: dict[str, list[Integers]] = {}
        self._sums: dict[str, Any] = {}
        self._places = np.empty(0, np.int64)

    def add(self, cells: Cells, series: int) -> None:
        """Take what a range's cells without group have, but for their resamples."""
        places = cells.index(series).places(EVERYTHING).tolist()
        self.names = cells.names(series)
        for name in self.names:
            if name != "rows" and name not in DRAWN:
                self._found.setdefault(name, []).extend(cells.reduced(series, place, name) for place in places)

    def finished(self, index: Index) -> _ClassSums:
        """Return itself, when all is added: the cells without group of the whole index, in its order."""
        self._places = index.places(EVERYTHING)
        for name, values in self._found.items():
            if len({each.shape for each in values}) > 1:
                values = [expanded(each) for each in values]
            stacked = np.stack(values)
            fits = int(np.abs(stacked).max(initial=0)) < 2**31
            self._sums[name] = stacked.astype(np.int32) if fits else stacked
        self._found = {}
        return self

    def sums(self, place: int, name: str) -> Integers | None:
        """Return the sums of a cell; None where it is one of a group."""
        row = int(np.searchsorted(self._places, place))
        if row == len(self._places) or self._places[row] != place:
            return None
        values: Integers = np.asarray(self._sums[name][row], np.int64)
        return expanded(values) if name in ON_GRID else values


def portions(sizes: npt.NDArray[np.int64], rows: int) -> Iterator[tuple[int, int | None]]:
    """Yield (first class, the next portion's first) of portions of at least ``rows``; the last ends nowhere.

    Args:
        sizes: (C, 2) classes, ascending, and how much there is of each.
        rows: of a portion.
    """
    firsts: list[int] = []
    count = rows
    for target, size in sizes.tolist():
        if count >= rows:
            firsts.append(target)
            count = 0
        count += size
    for place, first in enumerate(firsts):
        yield first, firsts[place + 1] if place + 1 < len(firsts) else None
