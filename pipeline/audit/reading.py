"""Cells as they are read: keys at once, sums when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.audit.cell import Cell, Key
from pipeline.audit.fixed import Integers
from pipeline.audit.index import Index
from pipeline.audit.rows import EVERYTHING
from schemas.audit import OUTCOMES, Measure


class CellReader(ABC):
    """Sums by cell. ``measures`` are the columns of the values; ``resamples`` the bootstrap's B."""

    measures: tuple[Measure, ...]
    resamples: int

    @abstractmethod
    def series(self) -> list[int]:
        """Series that have cells, ascending."""

    @abstractmethod
    def index(self, series: int) -> Index:
        """Return the keys of a series' cells."""

    @abstractmethod
    def names(self, series: int) -> tuple[str, ...]:
        """Return what sums the cells of a series have."""

    @abstractmethod
    def sums(self, series: int, place: int, name: str) -> Integers:
        """Return the sums called ``name`` of the cell at a place of the index; they must not be changed."""

    @abstractmethod
    def bulk(self, series: int, start: int, stop: int, names: Sequence[str]) -> dict[str, Integers]:
        """Return sums (K, ...) by name of the cells from one place of the index to another; those of maps canonical.

        ``names`` are some of :meth:`names` without ``rows``, which the index knows; resamples not with others. The
        cells of a class are neighbours, and readers are quickest when they go through the classes in order.
        """

    @abstractmethod
    def total(self, series: int, attribute: str, value: str, outcome: int) -> Cell | None:
        """Return the sum of a group's cells of one outcome over all classes; None where there are none."""

    @property
    def cells(self) -> Mapping[Key, Cell]:
        """All cells, in order of their keys; nothing is kept of those that were read."""
        return _All(self)

    def collect(
        self,
        series: int,
        target_class: int | None = None,
        attribute: str = EVERYTHING,
        value: str = "",
        outcomes: Iterable[int] = range(len(OUTCOMES)),
    ) -> Cell | None:
        """Return the sum of the cells of some outcomes (None: of all classes); None where there are none."""
        if target_class is None:
            whole = [self.total(series, attribute, value, outcome) for outcome in outcomes]
            found = [each for each in whole if each is not None]
            return added(found) if found else None
        index = self.index(series)
        at = [index.find(target_class, attribute, value, outcome) for outcome in outcomes]
        places = [place for place in at if place is not None]
        return self.at(series, places) if places else None

    def at(self, series: int, places: Sequence[int]) -> Cell:
        """Return the sum of the cells at some places of the index."""
        return Cell(Sums(self, series, tuple(places)))

    def classes(self, series: int) -> list[int]:
        """Classes that have rows, ascending."""
        return [int(each) for each in self.index(series).classes(EVERYTHING)]

    def values(self, series: int, attribute: str) -> list[str]:
        """Values of an attribute, in order."""
        return self.index(series).values(attribute)


def added(cells: Sequence[Cell]) -> Cell:
    """Return the sum of cells."""
    if len(cells) == 1:
        return cells[0]
    found = Cell()
    for cell in cells:
        found.merge(cell)
    return found


def stacked(items: Sequence[Sequence[Cell]], names: Sequence[str]) -> dict[str, Integers]:
    """Return the sums (K, ...) by name of K items of one or more cells each; quickest where all are neighbours.

    Args:
        items: K of them.
        names: as :meth:`CellReader.bulk` takes them.
    """
    cells = [cell for item in items for cell in item]
    found = _neighbours(cells)
    if found is None:
        sums: dict[str, list[Integers]] = {name: [] for name in names}
        for item in items:  # one after the other, so that what lies in files is read once
            for name, values in sums.items():
                values.append(sum((cell.sums[name] for cell in item[1:]), start=item[0].sums[name]))
        return {name: np.stack(values) for name, values in sums.items()}
    reader, series, start = found
    starts = np.cumsum([0, *(len(item) for item in items)])[:-1]
    together = reader.bulk(series, start, start + len(cells), names)
    return {name: np.add.reduceat(values, starts, axis=0) for name, values in together.items()}


def _neighbours(cells: Sequence[Cell]) -> tuple[CellReader, int, int] | None:
    """Return reader, series and first place of cells that lie one after the other; None where they do not."""
    first = cells[0].sums
    if not isinstance(first, Sums) or len(first.places) > 1:
        return None
    for place, cell in enumerate(cells, start=first.places[0]):
        sums = cell.sums
        if not isinstance(sums, Sums) or sums.reader is not first.reader or sums.places != (place,):
            return None
        if sums.series != first.series:
            return None
    return first.reader, first.series, first.places[0]


class Sums(dict[str, Integers]):
    """The sums of some cells together, by name; each is made when it is asked for, and not kept."""

    __slots__ = ("places", "reader", "series")

    def __init__(self, reader: CellReader, series: int, places: tuple[int, ...]) -> None:
        super().__init__()
        self.reader, self.series, self.places = reader, series, places

    def __getitem__(self, name: str) -> Integers:
        if name not in self:
            raise KeyError(name)
        first, *rest = self.places
        found = self.reader.sums(self.series, first, name)
        for place in rest:
            found = found + self.reader.sums(self.series, place, name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.reader.names(self.series)

    def __iter__(self) -> Iterator[str]:
        return iter(self.reader.names(self.series))

    def __len__(self) -> int:
        return len(self.reader.names(self.series))

    def get(self, name: str, otherwise: Any = None) -> Any:
        """See :meth:`dict.get`."""
        return self[name] if name in self else otherwise  # noqa: SIM401

    def keys(self) -> Any:
        """See :meth:`dict.keys`."""
        return list(self)

    def values(self) -> Any:
        """See :meth:`dict.values`."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """See :meth:`dict.items`."""
        return [(name, self[name]) for name in self]


class _All(Mapping[Key, Cell]):
    """All cells of a reader."""

    def __init__(self, reader: CellReader) -> None:
        self._reader = reader

    def __getitem__(self, key: Key) -> Cell:
        place = self._reader.index(key.series).find(key.target_class, key.attribute, key.value, key.outcome)
        if place is None or key.series not in self._reader.series():
            raise KeyError(key)
        return self._reader.at(key.series, (place,))

    def __iter__(self) -> Iterator[Key]:
        for series in self._reader.series():
            yield from self._reader.index(series)

    def __len__(self) -> int:
        return sum(len(self._reader.index(series)) for series in self._reader.series())
