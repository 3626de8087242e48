"""One series' rows and sums. Which of the two a cell has follows from its number of rows alone.

Two hundred resamples of each measure take more room than some hundred rows, and most cells of a lake with many classes
and groups are smaller than that. So rows are kept once for all their cells, until these have so many that they are
summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.canonical import expanded
from pipeline.audit.cell import Cell
from pipeline.audit.draws import UNDEFINED, Weights, draw_cells
from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, SQUARE_BITS, Integers, squares
from pipeline.audit.keys import poisson_weights
from pipeline.audit.rows import NOWHERE, Rows, bins, joined, unpacked
from schemas.audit import BINS, OUTCOMES, Measure

#: Rows that come together before they are looked through.
_WAIT = 1 << 16
#: Rows whose sums are made at a time, and those of which the totals are.
_SLICE = 2048
_SLICE_OF_ALL = 8192
#: Rows that a cell without a bootstrap keeps at most: its sums are smaller.
_KEPT_UNDRAWN = 128

#: Names of sums, together as they are made.
COUNTS = ("flags", "count", "total", "square")
HISTOGRAM = ("histogram",)
MAPS = ("map_count", "map_total", "map_square")
DRAWN = ("drawn", "drawn_total")
#: Sums that lie on the grid of the maps.
ON_GRID = ("map_total", "map_square")

_Order = npt.NDArray[np.intp]


class CellId(NamedTuple):
    """A cell by numbers; ``target`` is -1 for all classes together."""

    target: int
    slot: int
    code: int
    outcome: int


class Grouped(NamedTuple):
    """Rows by cell: (class, code, outcome) of each of K cells in their order, the rows, and where each cell begins."""

    cells: npt.NDArray[np.int64]
    order: _Order
    starts: _Order
    stops: _Order


def grouped(rows: Rows, slot: int, by_class: bool = True) -> Grouped:
    """Return the rows that wait in an attribute's cells, cell by cell."""
    waiting = np.flatnonzero(rows.slots[:, slot] != NOWHERE)
    code, outcome = rows.slots[waiting, slot].astype(np.int64), rows.outcome[waiting]
    target = rows.target[waiting].astype(np.int64) if by_class else np.full(len(waiting), -1, np.int64)
    combined = ((target << 16) + code) * len(OUTCOMES) + outcome
    order = np.argsort(combined, kind="stable")
    ordered = combined[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    rest, of_outcome = np.divmod(ordered[starts], len(OUTCOMES))
    cells = np.stack([rest >> 16, rest & 0xFFFF, of_outcome], 1)
    return Grouped(cells, waiting[order], starts, np.append(starts[1:], len(order))[: len(starts)])


def summed(
    rows: Rows, order: _Order, starts: _Order, stops: _Order, measures: Sequence[Measure], names: Iterable[str]
) -> dict[str, Integers]:
    """Return sums (K, ...) by name, over rows that lie cell by cell in ``order``, one cell after the other.

    Args:
        rows: T rows.
        order: of K cells' rows.
        starts: where each cell begins in it, the first at 0.
        stops: where each ends, and the next begins.
        measures: of the values.
        names: some of :data:`COUNTS`, :data:`HISTOGRAM` and :data:`MAPS`.
    """
    names = set(names)
    found: dict[str, Integers] = {}
    cell_of = np.repeat(np.arange(len(starts)), stops - starts)
    for at in range(0, len(order), _SLICE):
        part, cells = rows.take(order[at : at + _SLICE]), cell_of[at : at + _SLICE]
        begins = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
        mine = slice(int(cells[0]), int(cells[-1]) + 1)
        for name, column in _columns(part, names):
            if name not in found:
                found[name] = np.zeros((len(starts), *column.shape[1:]), np.int64)
            found[name][mine] += np.add.reduceat(column, begins, axis=0)
        if "histogram" in names:
            if "histogram" not in found:
                found["histogram"] = np.zeros((len(starts), len(measures), BINS), np.int64)
            found["histogram"][mine] += _histograms(part, cells - cells[0], measures)
    return found


def _columns(rows: Rows, names: set[str]) -> Iterable[tuple[str, Integers]]:
    """Yield (name, numbers (T, ...)) that are added up."""
    if not names.isdisjoint(COUNTS):
        defined = rows.values != UNDEFINED
        values = np.where(defined, rows.values, 0).astype(np.int64)
        yield "flags", unpacked(rows.flags)
        yield "count", defined.astype(np.int64)
        yield "total", values
        yield "square", squares(values, SCALAR_BITS, SCALAR_BITS)
    if rows.maps is not None and not names.isdisjoint(MAPS):
        known = rows.maps[:, 0, 0] >= 0
        maps = np.where(known[:, None, None], rows.maps, 0).astype(np.int64)
        yield "map_count", known.astype(np.int64)
        yield "map_total", maps
        yield "map_square", squares(maps, MAP_BITS, SQUARE_BITS)


def _histograms(rows: Rows, cells: _Order, measures: Sequence[Measure]) -> Integers:
    size = len(measures) * BINS
    flat = bins(rows.values, measures) + np.arange(len(measures)) * BINS + cells[:, None] * size
    counts = np.bincount(flat[rows.values != UNDEFINED], minlength=(int(cells[-1]) + 1) * size)
    return counts.reshape(-1, len(measures), BINS)


class Table:
    """Rows that wait, and the cells that are summed, of one series.

    Attributes:
        dense: sums of cells that are too large for rows; their maps on the table's grid.
        totals: sums over all classes, of all cells.
    """

    def __init__(self, measures: Sequence[Measure], resamples: int) -> None:
        self._measures, self._resamples = measures, resamples
        self._fresh: list[Rows] = []
        self._old: list[Rows] = []
        self._count = 0
        self._folded = True
        self.dense: dict[CellId, Cell] = {}
        self.totals: dict[CellId, Cell] = {}

    def add(self, rows: Rows, kept: int) -> None:
        """Add rows; see :meth:`fold`."""
        self._fresh.append(rows)
        self._folded = False
        self._count += len(rows)
        if self._count >= _WAIT:
            self.fold(kept)

    def add_counted(self, rows: Rows, kept: int) -> None:
        """Add rows that are among the totals, which are added by themselves."""
        self._old.append(rows)
        self._folded = False
        self._count += len(rows)
        if self._count >= _WAIT:
            self.fold(kept)

    def set(self, rows: Rows, dense: dict[CellId, Cell]) -> None:
        """Take rows and cells of another table that was folded."""
        self._old, self.dense = ([rows] if len(rows) else []), dense

    def add_weighted(self, rows: Rows, weights: Weights) -> None:
        """Add rows with weights (T, B) that nothing but they themselves tell: such rows cannot wait."""
        for slot in range(rows.slots.shape[1]):
            for where, by_class in ((self.totals, False), (self.dense, True)):
                self._sum(where, rows, slot, grouped(rows, slot, by_class), weights)

    def add_cell(self, where: dict[CellId, Cell], name: CellId, cell: Cell) -> None:
        """Add sums to :attr:`dense` or :attr:`totals`."""
        self._folded = self._folded and not self._old  # rows may wait for a cell that has sums from now on
        mine = where.setdefault(name, Cell())
        for each in ON_GRID:
            if each in cell.sums and each in mine.sums and cell.sums[each].shape != mine.sums[each].shape:
                mine.sums[each] = expanded(mine.sums[each])
                cell = Cell(cell.sums | {each: expanded(cell.sums[each])})
        mine.merge(cell)

    def rows(self, kept: int) -> Rows | None:
        """Return the rows that wait; None where there are none."""
        self.fold(kept)
        return self._old[0] if self._old else None

    def fold(self, kept: int) -> None:
        """Add what is new to the totals, and sum the cells of more than ``kept`` rows."""
        if self._folded:
            return
        self._folded = True
        if self._fresh:
            fresh = joined(self._fresh)
            self._fresh = []
            self._add_totals(fresh)
            self._old.append(fresh)
        self._count = 0
        if not self._old:
            return
        rows = joined(self._old)
        rows.slots = rows.slots.copy()  # others may hold the same
        if rows.keys is None:
            kept = min(kept, _KEPT_UNDRAWN)
        for slot in range(rows.slots.shape[1]):
            self._sum_large(rows, slot, kept)
        left = np.flatnonzero((rows.slots != NOWHERE).any(1))
        self._old = [rows.take(left) if len(left) < len(rows) else rows] if len(left) else []

    def _sum_large(self, rows: Rows, slot: int, kept: int) -> None:
        found = grouped(rows, slot)
        large = found.stops - found.starts > kept
        dense = [name for name in self.dense if name.slot == slot]
        if dense:
            known = {(name.target, name.code, name.outcome) for name in dense}
            large |= np.fromiter((tuple(cell) in known for cell in found.cells.tolist()), np.bool_, len(large))
        if not large.any():
            return
        lengths = (found.stops - found.starts)[large]
        order = found.order[np.repeat(large, found.stops - found.starts)]
        stops = np.cumsum(lengths)
        self._sum(self.dense, rows, slot, Grouped(found.cells[large], order, stops - lengths, stops))
        rows.slots[order, slot] = NOWHERE

    def _sum(
        self, where: dict[CellId, Cell], rows: Rows, slot: int, found: Grouped, weights: Weights | None = None
    ) -> None:
        """Add rows, cell by cell, with their bootstrap."""
        names = [CellId(target, slot, code, outcome) for target, code, outcome in found.cells.tolist()]
        self._add_plain(where, rows, names, found)
        if rows.keys is None and weights is None:
            return

        def drawn(start: int, stop: int) -> Weights:
            some = found.order[start:stop]
            if weights is not None:
                return weights[some]
            assert rows.keys is not None
            return poisson_weights(rows.keys[some], self._resamples)

        bounds = found.starts.tolist(), found.stops.tolist()
        sums = draw_cells(drawn, rows.values[found.order], *bounds, self._resamples)
        for place, name in enumerate(names):
            where[name].merge(Cell({each: values[place] for each, values in zip(DRAWN, sums, strict=True)}))

    def _add_plain(self, where: dict[CellId, Cell], rows: Rows, names: list[CellId], found: Grouped) -> None:
        sums = summed(rows, found.order, found.starts, found.stops, self._measures, (*COUNTS, *HISTOGRAM, *MAPS)) | {
            "rows": (found.stops - found.starts).astype(np.int64)
        }
        for place, name in enumerate(names):
            self.add_cell(where, name, Cell({each: np.asarray(values[place]) for each, values in sums.items()}))

    def _add_totals(self, rows: Rows) -> None:
        # Slice by slice, so that the rows are drawn once for the cells of all attributes.
        for at in range(0, len(rows), _SLICE_OF_ALL):
            part = rows.take(slice(at, at + _SLICE_OF_ALL))
            weights = None if part.keys is None else poisson_weights(part.keys, self._resamples)
            for slot in range(part.slots.shape[1]):
                self._sum(self.totals, part, slot, grouped(part, slot, False), weights)
