"""A table's cells for reading: the sums of some neighbouring cells at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.audit.canonical import expanded
from pipeline.audit.cell import Cell
from pipeline.audit.draws import Weights, draw, draw_cells
from pipeline.audit.fixed import Integers
from pipeline.audit.index import Index
from pipeline.audit.keys import poisson_weights
from pipeline.audit.rows import NOWHERE, Names, Rows
from pipeline.audit.table import COUNTS, DRAWN, HISTOGRAM, MAPS, ON_GRID, CellId, Grouped, grouped, summed
from schemas.audit import Measure

#: Cells that are summed together, rows whose weights are kept (as bytes), and cells whose resamples are.
_WINDOW = 512
_WEIGHTS = 32 << 20
_DRAWN_CELLS = 8
_GROUPS = (COUNTS, HISTOGRAM, MAPS)


class Settled:
    """The cells of one series: of rows that wait, and those that are summed.

    Attributes:
        index: keys of the cells.
        names: of the sums that each has.
    """

    def __init__(
        self,
        series: int,
        rows: Rows | None,
        dense: dict[CellId, Cell],
        names: Names,
        measures: Sequence[Measure],
        resamples: int,
    ) -> None:
        self._measures, self._resamples = measures, resamples
        pairs = names.pairs()
        ranks = np.zeros((len(names.values), max(map(len, names.values), default=0) + 1), np.int64)
        for rank, (_, _, slot, code) in enumerate(pairs):
            ranks[slot, code] = rank
        self._rows = None if rows is None else _ranked(rows, ranks)
        self._groups: list[Grouped] = []
        if self._rows is not None:
            self._groups = [grouped(self._rows, slot) for slot in range(self._rows.slots.shape[1])]
        self._first = np.cumsum([0, *(len(each.starts) for each in self._groups)])
        self._dense = list(dense.items())
        numbers = [(name.target, int(ranks[name.slot, name.code]), name.outcome) for name, _ in self._dense]
        of_dense = np.array(numbers, np.int64).reshape(-1, 3)
        target, pair, outcome = np.concatenate([*(each.cells for each in self._groups), of_dense]).T
        sizes = [*(each.stops - each.starts for each in self._groups), np.array([c.rows for _, c in self._dense], int)]
        size = np.concatenate(sizes).astype(np.int64)
        self.index = Index(
            series, [(attribute, value) for attribute, value, _, _ in pairs], target, pair, outcome, size
        )
        self.names = self._names()
        self._windows: dict[tuple[str, ...], tuple[int, dict[str, Integers]]] = {}
        self._drawn: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()

    def _names(self) -> tuple[str, ...]:
        if self._rows is None:
            return tuple(self._dense[0][1].sums) if self._dense else ()
        maps = () if self._rows.maps is None else MAPS
        return ("rows", *COUNTS, *HISTOGRAM, *maps, *(() if self._rows.keys is None else DRAWN))

    def sums(self, place: int, name: str) -> Integers:
        """Return the sums called ``name`` of the cell at a place of the index; those of maps on their own grid."""
        if name == "rows":
            return np.asarray(self.index.rows[place])
        if name in DRAWN:
            return self._drawn_of(int(self.index.order[place]))[DRAWN.index(name)]
        names = next(each for each in _GROUPS if name in each)
        start = place // _WINDOW * _WINDOW
        at, window = self._windows.get(names, (-1, {}))
        if at != start:
            window = self.bulk(start, min(start + _WINDOW, len(self.index)), names)
            for values in window.values():
                values.flags.writeable = False
            self._windows[names] = start, window
        return np.asarray(window[name][place - start])

    def bulk(self, start: int, stop: int, names: Sequence[str]) -> dict[str, Integers]:
        """Return sums of neighbouring cells, (K, ...) by name; those of maps on the table's grid.

        Args:
            start: place of the first.
            stop: one past the last place.
            names: what is wanted of :attr:`names`; none of :data:`DRAWN` with others.
        """
        numbers = self.index.order[start:stop]
        found: dict[str, Integers] = {}
        for slot, group in enumerate(self._groups):
            # An attribute's cells come in the order of the index, so those of neighbours are neighbours.
            mine = np.flatnonzero((numbers >= self._first[slot]) & (numbers < self._first[slot + 1]))
            if len(mine):
                some = slice(int(numbers[mine[0]] - self._first[slot]), int(numbers[mine[-1]] - self._first[slot]) + 1)
                _fill(found, len(numbers), mine, self._of_rows(group, some, names))
        for place in np.flatnonzero(numbers >= self._first[-1]).tolist():
            cell = self._dense[int(numbers[place] - self._first[-1])][1]
            _fill(found, len(numbers), place, {name: cell.sums[name] for name in names if name in cell.sums})
        return found

    def _of_rows(self, group: Grouped, some: slice, names: Sequence[str]) -> dict[str, Integers]:
        assert self._rows is not None
        begin, end = int(group.starts[some.start]), int(group.stops[some.stop - 1])
        order, starts, stops = group.order[begin:end], group.starts[some] - begin, group.stops[some] - begin
        if DRAWN[0] not in names:
            return summed(self._rows, order, starts, stops, self._measures, names)
        sums = draw_cells(
            lambda start, stop: self._weights(order[start:stop]),
            self._rows.values[order],
            starts.tolist(),
            stops.tolist(),
            self._resamples,
        )
        return dict(zip(DRAWN, sums, strict=True))

    def _drawn_of(self, number: int) -> tuple[Integers, Integers]:
        if number >= self._first[-1]:
            sums = self._dense[int(number - self._first[-1])][1].sums
            return sums[DRAWN[0]], sums[DRAWN[1]]
        if number not in self._drawn:
            slot = int(np.searchsorted(self._first, number, side="right")) - 1
            mine, place = self._groups[slot], number - int(self._first[slot])
            rows = mine.order[mine.starts[place] : mine.stops[place]]
            assert self._rows is not None
            self._drawn[number] = draw(self._weights(rows), self._rows.values[rows])
            while len(self._drawn) > _DRAWN_CELLS:
                self._drawn.popitem(last=False)
        return self._drawn[number]

    def _weights(self, rows: npt.NDArray[np.intp]) -> Weights:
        assert self._rows is not None and self._rows.keys is not None
        if len(self._rows) * self._resamples <= _WEIGHTS:
            return self._all_weights[rows]
        return poisson_weights(self._rows.keys[rows], self._resamples)

    @cached_property
    def _all_weights(self) -> Weights:
        # A row is in a cell of each attribute, and drawn once for all of them.
        assert self._rows is not None and self._rows.keys is not None
        return poisson_weights(self._rows.keys, self._resamples)


def _fill(
    found: dict[str, Integers], count: int, places: npt.NDArray[np.intp] | int, sums: dict[str, Integers]
) -> None:
    """Put sums at their places among ``count``; where grids differ, all on the canonical one."""
    for name, values in sums.items():
        single = isinstance(places, int)
        shape = values.shape if single else values.shape[1:]
        if name not in found:
            found[name] = np.zeros((count, *shape), np.int64)
        elif name in ON_GRID and found[name].shape[1:] != shape:
            found[name], values = expanded(found[name]), expanded(values)
        found[name][places] = values


def _ranked(rows: Rows, ranks: npt.NDArray[np.int64]) -> Rows:
    """Return rows whose slots hold the ranks of the values among all, so that cells come in the order of their keys."""
    slots = np.full_like(rows.slots, NOWHERE)
    for slot in range(rows.slots.shape[1]):
        waiting = rows.slots[:, slot] != NOWHERE
        slots[waiting, slot] = ranks[slot, rows.slots[waiting, slot]]
    return replace(rows, slots=slots)
