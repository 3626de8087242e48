"""Sums by cell: one cell per series, class, attribute, value and outcome; cells of several parts are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.audit.archives import Arrays
from pipeline.audit.blocks import Block
from pipeline.audit.canonical import expanded
from pipeline.audit.cell import Cell, Key
from pipeline.audit.fixed import Integers
from pipeline.audit.index import Index
from pipeline.audit.reading import CellReader
from pipeline.audit.rows import EVERYTHING, MOST_VALUES, NOWHERE, Names, Rows, rows_of
from pipeline.audit.settled import Settled
from pipeline.audit.table import ON_GRID, CellId, Table
from schemas.audit import Measure

#: Rows that a cell keeps at most; of more it keeps the sums.
KEPT = 256
#: What a summed cell weighs, in rows, where cells are put into portions.
_SUMMED = 32


class Cells(CellReader):
    """All cells in memory, by key."""

    def __init__(self, measures: Sequence[Measure], resamples: int) -> None:
        self.measures, self.resamples = tuple(measures), resamples
        self._names = Names()
        self._tables: dict[int, Table] = {}
        self._settled: dict[int, Settled] = {}

    def add(self, block: Block) -> None:
        """Add the rows of a block.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
        """
        if not len(block.target_class):
            return
        rows, table = rows_of(block, self._names), self._table(block.series)
        if block.weights is None:
            table.add(rows, KEPT)
        else:
            table.add_weighted(rows, block.weights)

    def _table(self, series: int) -> Table:
        self._settled.pop(series, None)
        return self._tables.setdefault(series, Table(self.measures, self.resamples))

    # Reading ---------------------------------------------------------------------------------------------------

    def series(self) -> list[int]:
        """See :meth:`CellReader.series`."""
        return sorted(self._tables)

    def index(self, series: int) -> Index:
        """See :meth:`CellReader.index`."""
        return self._read(series).index

    def names(self, series: int) -> tuple[str, ...]:
        """See :meth:`CellReader.names`."""
        return self._read(series).names

    def sums(self, series: int, place: int, name: str) -> Integers:
        """See :meth:`CellReader.sums`."""
        found = self.reduced(series, place, name)
        return expanded(found) if name in ON_GRID else found

    def reduced(self, series: int, place: int, name: str) -> Integers:
        """Return :meth:`sums`, those of maps on their own grid."""
        return self._read(series).sums(place, name)

    def bulk(self, series: int, start: int, stop: int, names: Sequence[str]) -> dict[str, Integers]:
        """See :meth:`CellReader.bulk`."""
        return _canonical(self._read(series).bulk(start, stop, names))

    def __bool__(self) -> bool:
        """Whether there is any cell."""
        return any(table.rows(KEPT) is not None or table.dense for table in self._tables.values())

    def total(self, series: int, attribute: str, value: str, outcome: int) -> Cell | None:
        """See :meth:`CellReader.total`."""
        table = self._tables.get(series)
        if table is None or attribute not in self._names.attributes:
            return None
        table.fold(KEPT)
        slot = self._names.attributes[attribute]
        found = table.totals.get(CellId(-1, slot, self._names.values[slot].get(value, NOWHERE), outcome))
        return None if found is None else Cell(_canonical(found.sums))

    def _read(self, series: int) -> Settled:
        if series not in self._settled:
            table = self._tables.get(series, Table(self.measures, self.resamples))
            rows = table.rows(KEPT)
            self._settled[series] = Settled(series, rows, table.dense, self._names, self.measures, self.resamples)
        return self._settled[series]

    # Merging ---------------------------------------------------------------------------------------------------

    def merge(self, other: Cells) -> None:
        """Add another's cells.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
            OverflowError: the sums leave 64 bits.
        """
        slots, codes = self._numbers(
            {name: list(other._names.values[slot]) for name, slot in other._names.attributes.items()}
        )
        for series, theirs in other._tables.items():
            self._add(series, theirs.rows(KEPT), theirs.dense, theirs.totals, slots, codes)

    def _numbers(self, values: dict[str, list[str]]) -> tuple[list[int], list[npt.NDArray[np.int16]]]:
        """Return the numbers of attributes, and of their values, that others number in this order."""
        codes = [self._names.codes(attribute, names) for attribute, names in values.items()]
        return [self._names.slot(attribute) for attribute in values], codes

    def _add(
        self,
        series: int,
        rows: Rows | None,
        dense: dict[CellId, Cell],
        totals: dict[CellId, Cell],
        slots: list[int],
        codes: list[npt.NDArray[np.int16]],
    ) -> None:
        """Add what another has, whose numbers of attributes and values :meth:`_numbers` tells."""
        mine = self._table(series)
        if rows is not None:
            mine.add_counted(_renumbered(rows, slots, codes, len(self._names.values)), KEPT)
        for where, cells in ((mine.dense, dense), (mine.totals, totals)):
            for name, cell in cells.items():
                code = int(codes[name.slot][name.code])
                mine.add_cell(where, name._replace(slot=slots[name.slot], code=code), cell)

    def between(self, low: int, high: int | None) -> Cells:
        """Return the cells of the classes from ``low`` to below ``high``, without those of all classes."""
        found = Cells(self.measures, self.resamples)
        found._names = self._names
        for series, table in self._tables.items():
            rows = table.rows(KEPT)
            dense = {
                name: cell
                for name, cell in table.dense.items()
                if name.target >= low and (high is None or name.target < high)
            }
            if rows is not None:
                rows = _inside(rows, low, high)
            if rows is None:
                found._table(series).dense = dense
            else:
                found._table(series).set(rows, dense)
        return found

    def of_all_classes(self) -> Cells:
        """Return the cells of all classes only."""
        found = Cells(self.measures, self.resamples)
        found._names = self._names
        for series, table in self._tables.items():
            table.fold(KEPT)
            found._table(series).totals = table.totals
        return found

    def sizes(self) -> npt.NDArray[np.int64]:
        """Return (C, 2): classes, ascending, and how much there is of each, in rows."""
        parts = [np.empty((0, 2), np.int64)]
        for table in self._tables.values():
            rows = table.rows(KEPT)
            if rows is not None:
                target, count = np.unique(rows.target, return_counts=True)
                parts.append(np.stack([target, count], 1).astype(np.int64))
            parts += [np.array([[name.target, _SUMMED]], np.int64) for name in table.dense]
        joined = np.concatenate(parts)
        classes, place = np.unique(joined[:, 0], return_inverse=True)
        return np.stack([classes, np.bincount(place, joined[:, 1], len(classes)).astype(np.int64)], 1)

    # Storing ---------------------------------------------------------------------------------------------------

    def arrays(self, prefix: str, *, ordered: bool = True) -> Arrays:
        """Return everything as named arrays, for an archive; ``ordered``: the same ones, however the rows came."""
        pairs = self._names.pairs()
        attributes = sorted(self._names.attributes)
        slots = [attributes.index(attribute) for attribute in self._names.attributes]
        codes = [np.full(len(values) + 1, NOWHERE, np.int16) for values in self._names.values]
        of_slot = dict.fromkeys(attributes, 0)
        for attribute, _, slot, code in pairs:
            codes[slot][code] = of_slot[attribute]
            of_slot[attribute] += 1
        found: Arrays = {
            f"{prefix}/attributes": np.array(attributes, np.str_),
            f"{prefix}/attribute": np.array([attribute for attribute, _, _, _ in pairs], np.str_),
            f"{prefix}/value": np.array([value for _, value, _, _ in pairs], np.str_),
            f"{prefix}/series": np.array(self.series(), np.int64),
        }
        for series in self.series():
            table, name = self._tables[series], f"{prefix}/{series}"
            rows = table.rows(KEPT)
            if rows is not None:
                rows = _renumbered(rows, slots, codes, len(slots))
                rows = rows.in_order() if ordered else rows
                found |= {f"{name}/rows/{column}": values for column, values in rows.arrays().items()}
            for kind, cells in (("dense", table.dense), ("totals", table.totals)):
                sorted_cells = sorted(
                    (each._replace(slot=slots[each.slot], code=int(codes[each.slot][each.code])), cell)
                    for each, cell in cells.items()
                )
                if sorted_cells:
                    found |= _stacked(f"{name}/{kind}", sorted_cells)
        return found

    def load(self, prefix: str, arrays: Arrays) -> None:
        """Add what :meth:`arrays` returned.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
            OverflowError: the sums leave 64 bits.
        """
        values: dict[str, list[str]] = {name: [] for name in arrays[f"{prefix}/attributes"].tolist()}
        columns = (arrays[f"{prefix}/{name}"].tolist() for name in ("attribute", "value"))
        for attribute, value in zip(*columns, strict=True):
            values[attribute].append(value)
        slots, codes = self._numbers(values)
        for series in arrays[f"{prefix}/series"].tolist():
            of_rows = _under(arrays, f"{prefix}/{series}/rows/")
            dense, totals = (_unstacked(_under(arrays, f"{prefix}/{series}/{kind}/")) for kind in ("dense", "totals"))
            self._add(series, Rows.of_arrays(of_rows) if of_rows else None, dense, totals, slots, codes)


def _inside(rows: Rows, low: int, high: int | None) -> Rows:
    """Return the rows of the classes from ``low`` to below ``high``."""
    target = rows.target
    if (target[1:] >= target[:-1]).all():
        first = int(np.searchsorted(target, low))
        return rows.take(slice(first, len(rows) if high is None else int(np.searchsorted(target, high))))
    return rows.take(np.flatnonzero(target >= low if high is None else (target >= low) & (target < high)))


def _renumbered(rows: Rows, slots: Sequence[int], codes: Sequence[npt.NDArray[np.int16]], width: int) -> Rows:
    """Return rows with other numbers of attributes and values: ``codes`` by the old number, the last of nowhere."""
    found = np.full((len(rows), width), NOWHERE, np.int16)
    for old in range(rows.slots.shape[1]):
        found[:, slots[old]] = codes[old][rows.slots[:, old]]
    return replace(rows, slots=found)


def _stacked(prefix: str, cells: list[tuple[CellId, Cell]]) -> Arrays:
    found: Arrays = {f"{prefix}/cell": np.array([tuple(name) for name, _ in cells], np.int64)}
    for name in sorted(cells[0][1].sums):
        values = [cell.sums[name] for _, cell in cells]
        if len({each.shape for each in values}) > 1:
            values = [expanded(each) for each in values]
        found[f"{prefix}/{name}"] = np.stack(values)
    return found


def _unstacked(sums: Arrays) -> dict[CellId, Cell]:
    if not sums:
        return {}
    cells = sums.pop("cell").tolist()
    return {CellId(*each): Cell({name: sums[name][place] for name in sums}) for place, each in enumerate(cells)}


def _canonical(sums: dict[str, Integers]) -> dict[str, Integers]:
    """Return sums with maps of GRID x GRID cells."""
    return {name: expanded(values) if name in ON_GRID else values for name, values in sums.items()}


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: values for name, values in arrays.items() if name.startswith(prefix)}


__all__ = ["EVERYTHING", "KEPT", "MOST_VALUES", "Block", "Cell", "Cells", "Key"]
