"""A table's cells for reading: the sums of some neighbouring cells at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.audit.cell import Cell
from pipeline.audit.draws import Weights, draw
from pipeline.audit.fixed import Integers
from pipeline.audit.index import Index
from pipeline.audit.keys import poisson_weights
from pipeline.audit.rows import NOWHERE, Names, Rows
from pipeline.audit.table import COUNTS, DRAWN, HISTOGRAM, MAPS, CellId, Grouped, grouped, summed
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
        self._windows: dict[tuple[int, tuple[str, ...]], tuple[int, dict[str, Integers]]] = {}
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
        number = int(self.index.order[place])
        if number >= self._first[-1]:
            found = self._dense[number - int(self._first[-1])][1].sums[name]
        elif name in DRAWN:
            return self._drawn_of(number)[DRAWN.index(name)]
        else:
            group = next(each for each in _GROUPS if name in each)
            first, window = self._window(number, group)
            found = np.asarray(window[name][number - first])
        return found

    def _slot(self, number: int) -> int:
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def _window(self, number: int, names: tuple[str, ...]) -> tuple[int, dict[str, Integers]]:
        """Return the sums of a cell and its neighbours, and the number of the first of these."""
        slot = self._slot(number)
        first = int(self._first[slot])
        start = (number - first) // _WINDOW * _WINDOW
        at, window = self._windows.get((slot, names), (-1, {}))
        if at == first + start:
            return at, window
        mine, cells = self._groups[slot], slice(start, start + _WINDOW)
        begin, end = int(mine.starts[start]), int(mine.stops[cells][-1])
        assert self._rows is not None
        window = summed(
            self._rows,
            mine.order[begin:end],
            mine.starts[cells] - begin,
            mine.stops[cells] - begin,
            self._measures,
            names,
        )
        for values in window.values():
            values.flags.writeable = False
        self._windows[slot, names] = first + start, window
        return first + start, window

    def _drawn_of(self, number: int) -> tuple[Integers, Integers]:
        if number not in self._drawn:
            slot = self._slot(number)
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


def _ranked(rows: Rows, ranks: npt.NDArray[np.int64]) -> Rows:
    """Return rows whose slots hold the ranks of the values among all, so that cells come in the order of their keys."""
    slots = np.full_like(rows.slots, NOWHERE)
    for slot in range(rows.slots.shape[1]):
        waiting = rows.slots[:, slot] != NOWHERE
        slots[waiting, slot] = ranks[slot, rows.slots[waiting, slot]]
    return replace(rows, slots=slots)
