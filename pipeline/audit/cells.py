"""Sums by cell: one cell per series, class, attribute, value and outcome; cells of several parts are added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.audit.blocks import Block, Numbers, partition
from pipeline.audit.draws import KEPT, Values, Waiting, draw
from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, SQUARE_BITS, Integers, check, floating
from pipeline.audit.keys import Keys
from schemas.audit import BINS, GRID, OUTCOMES, Measure
from schemas.errors import InputError

Floats = npt.NDArray[np.float64]

#: The attribute of cells that hold all maps, whatever their groups.
EVERYTHING = ""
#: Values that an attribute may have: each is a group with sums of its own.
MOST_VALUES = 256


class Key(NamedTuple):
    """What a cell is about.

    ``series`` counts (method, layer) pairs; ``attribute`` and ``value`` name a group, or are empty for all maps;
    ``outcome`` is an index into :data:`schemas.audit.OUTCOMES`.
    """

    series: int
    target_class: int
    attribute: str
    value: str
    outcome: int


@dataclass
class Cell:
    """Sums of one cell, all integers (see :mod:`pipeline.audit.fixed`).

    With M measures and B resamples: ``rows`` (), ``flags`` (3,), ``count``, ``total``, ``square`` (M,), ``histogram``
    (M, BINS), ``map_count`` (), ``map_total`` and ``map_square`` (GRID, GRID), ``drawn`` and ``drawn_total`` (B, M).
    """

    sums: dict[str, Integers] = field(default_factory=dict)

    def add(self, name: str, value: Integers) -> None:
        """Add ``value`` to the sums called ``name``."""
        if name in self.sums:
            np.add(self.sums[name], value, out=self.sums[name])
        else:
            self.sums[name] = np.array(value, np.int64)

    def merge(self, other: Cell) -> None:
        """Add another cell's sums.

        Raises:
            OverflowError: they leave 64 bits.
        """
        for name, value in other.sums.items():
            self.add(name, value)
            check(self.sums[name])

    # What the sums say -----------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Maps or images, the flagged ones too."""
        return int(self.sums["rows"])

    def count(self, measure: int) -> int:
        """Rows for which a measure is defined."""
        return int(self.sums["count"][measure])

    def mean(self, measure: int) -> float:
        """Mean of a measure; NaN of nothing."""
        n = self.count(measure)
        return float(floating(self.sums["total"][measure], SCALAR_BITS)) / n if n else float("nan")

    def variance(self, measure: int) -> float:
        """Unbiased variance of a measure; NaN below two rows."""
        n = self.count(measure)
        if n < 2:
            return float("nan")
        square = float(floating(self.sums["square"][measure], SCALAR_BITS))
        return max(0.0, (square - n * self.mean(measure) ** 2) / (n - 1))

    def resampled_means(self, measure: int) -> Floats:
        """Means (B,) of a measure over the bootstrap's resamples; NaN where a resample is empty."""
        drawn = self.sums["drawn"][:, measure].astype(np.float64)
        total = floating(self.sums["drawn_total"][:, measure], SCALAR_BITS)
        means: Floats = np.divide(total, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
        return means

    def quantile(self, measure: int, share: float, spec: Measure) -> float:
        """Quantile of a measure from its histogram, evenly spread over each bin; NaN of nothing."""
        bins = self.sums["histogram"][measure]
        total = int(bins.sum())
        if not total:
            return float("nan")
        below = np.concatenate([[0], np.cumsum(bins)])
        place = int(np.clip(np.searchsorted(below, share * total, side="right") - 1, 0, BINS - 1))
        inside = (share * total - below[place]) / max(int(bins[place]), 1)
        return spec.low + (place + min(1.0, float(inside))) * (spec.high - spec.low) / BINS

    @property
    def maps(self) -> int:
        """Maps that have mass."""
        return int(self.sums.get("map_count", np.int64(0)))

    def mean_map(self) -> Floats:
        """Mean density (GRID, GRID), 1 throughout for uniform maps; NaN of nothing."""
        if not self.maps:
            return np.full((GRID, GRID), np.nan)
        mean: Floats = floating(self.sums["map_total"], MAP_BITS) / self.maps
        return mean

    def variance_map(self) -> Floats:
        """Unbiased variance (GRID, GRID) of the density over maps; NaN below two."""
        n = self.maps
        if n < 2:
            return np.full((GRID, GRID), np.nan)
        square = floating(self.sums["map_square"], SQUARE_BITS)
        return np.maximum(0.0, (square - n * self.mean_map() ** 2) / (n - 1))


class Cells:
    """All cells, by key. ``measures`` are the columns of the values; ``resamples`` the bootstrap's B."""

    def __init__(self, measures: Sequence[Measure], resamples: int) -> None:
        self.measures = tuple(measures)
        self.resamples = resamples
        self._cells: dict[Key, Cell] = {}
        self._waiting: Waiting[Key] = Waiting(resamples)
        # Keys by series, attribute, value and class; made when it is asked for.
        self._index: dict[tuple[int, str, str], dict[int, list[Key]]] = {}
        self._indexed = 0
        self._values: dict[str, set[str]] = {}

    def add(self, block: Block) -> None:
        """Add the rows of a block.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
        """
        if not len(block.target_class):
            return
        numbers = Numbers(block, self.measures, self.resamples)
        for attribute, values in ((EVERYTHING, None), *block.groups.items()):
            found = partition(block, values)
            if found is None:
                continue
            groups, order, starts = found
            stops = np.append(starts[1:], len(order))
            keys = [Key(block.series, target, attribute, value, outcome) for target, value, outcome in groups]
            cells = [self._cell(key) for key in keys]
            for name, sums in numbers.sums(order, starts, stops):
                for cell, each in zip(cells, sums, strict=True):
                    cell.add(name, each)
            if numbers.drawn:
                for key, start, stop in zip(keys, starts.tolist(), stops.tolist(), strict=True):
                    self._draw(key, numbers, order[start:stop])

    @property
    def cells(self) -> dict[Key, Cell]:
        """All cells, with the sums of their resamples."""
        self._settle(self._waiting.names())
        return self._cells

    def _draw(self, key: Key, numbers: Numbers, rows: npt.NDArray[np.intp]) -> None:
        """Draw rows of a cell, or let them wait while they are few."""
        if numbers.keys is not None and self._small(key, len(rows)):
            self._waiting.add(key, numbers.keys[rows], numbers.narrow(rows))
        else:
            self._settle([key] if key in self._waiting else [])
            self._add_drawn(key, *draw(numbers.weights[rows], numbers.narrow(rows)))

    def _wait(self, key: Key, keys: Keys, values: Values) -> None:
        """Add rows of another part's small cell."""
        small = self._small(key, len(keys))
        self._waiting.add(key, keys, values)
        if not small:
            self._settle([key])

    def _small(self, key: Key, more: int) -> bool:
        return "drawn" not in self._cells[key].sums and self._waiting.count(key) + more <= KEPT

    def _settle(self, keys: list[Key]) -> None:
        for key, drawn, total in self._waiting.drawn(keys):
            self._add_drawn(key, drawn, total)

    def _add_drawn(self, key: Key, drawn: Integers, total: Integers) -> None:
        self._cells[key].add("drawn", drawn)
        self._cells[key].add("drawn_total", total)

    def _cell(self, key: Key) -> Cell:
        found = self._cells.get(key)
        if found is None:
            found = self._cells[key] = Cell()
            values = self._values.setdefault(key.attribute, set())
            values.add(key.value)
            if len(values) > MOST_VALUES:
                raise InputError(
                    f"--groups: column '{key.attribute}' has more than {MOST_VALUES} values; give a column of few "
                    "values (one that names patients or videos belongs to --cluster)"
                )
        return found

    def merge(self, other: Cells) -> None:
        """Add another's cells.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
            OverflowError: the sums leave 64 bits.
        """
        for key, cell in other._cells.items():
            self._cell(key).merge(cell)
            if "drawn" in cell.sums and key in self._waiting:
                self._settle([key])
        for key in other._waiting.names():
            self._wait(key, *other._waiting.rows(key))

    def collect(
        self,
        series: int,
        target_class: int | None = None,
        attribute: str = EVERYTHING,
        value: str = "",
        outcomes: Iterable[int] = range(len(OUTCOMES)),
    ) -> Cell | None:
        """Return the sum of the cells of some outcomes (None: of all classes); None where there are none."""
        wanted = set(outcomes)
        found: Cell | None = None
        self._settle(self._waiting.names())
        classes = self._of(series, attribute, value)
        for keys in classes.values() if target_class is None else [classes.get(target_class, [])]:
            for key in keys:
                if key.outcome in wanted:
                    found = found or Cell()
                    found.merge(self._cells[key])
        return found

    def classes(self, series: int) -> list[int]:
        """Classes that have rows, ascending."""
        return sorted(self._of(series, EVERYTHING, ""))

    def values(self, series: int, attribute: str) -> list[str]:
        """Values of an attribute, in order."""
        self._of(series, attribute, "")
        return sorted(value for number, name, value in self._index if (number, name) == (series, attribute))

    def _of(self, series: int, attribute: str, value: str) -> dict[int, list[Key]]:
        if self._indexed != len(self._cells):  # cells are never taken away
            self._index = {}
            for key in sorted(self._cells):
                by_class = self._index.setdefault((key.series, key.attribute, key.value), {})
                by_class.setdefault(key.target_class, []).append(key)
            self._indexed = len(self._cells)
        return self._index.get((series, attribute, value), {})

    # Storing ---------------------------------------------------------------------------------------------------

    def arrays(self, prefix: str) -> dict[str, npt.NDArray[Any]]:
        """Return everything as named arrays, sorted by key, for an ``.npz`` file."""
        keys = sorted(self._cells)
        found: dict[str, npt.NDArray[Any]] = {
            f"{prefix}/series": np.array([key.series for key in keys], np.int64),
            f"{prefix}/target_class": np.array([key.target_class for key in keys], np.int64),
            f"{prefix}/attribute": np.array([key.attribute for key in keys], np.str_),
            f"{prefix}/value": np.array([key.value for key in keys], np.str_),
            f"{prefix}/outcome": np.array([key.outcome for key in keys], np.int64),
        }
        for name in sorted({name for cell in self._cells.values() for name in cell.sums}):
            having = [number for number, key in enumerate(keys) if name in self._cells[key].sums]
            found[f"{prefix}/of/{name}"] = np.array(having, np.int64)
            found[f"{prefix}/sums/{name}"] = np.stack([self._cells[keys[number]].sums[name] for number in having])
        return found | self._waiting_arrays(prefix, keys)

    def _waiting_arrays(self, prefix: str, keys: list[Key]) -> dict[str, npt.NDArray[Any]]:
        """Return the rows of small cells, in an order that does not depend on how they came."""
        rows = [(number, *self._waiting.rows(key)) for number, key in enumerate(keys) if key in self._waiting]
        if not rows:
            return {}
        cell = np.concatenate([np.full(len(each), number, np.int64) for number, each, _ in rows])
        key = np.concatenate([each for _, each, _ in rows])
        values = np.concatenate([each for _, _, each in rows])
        order = np.lexsort((*values.T, key, cell))
        return {
            f"{prefix}/waiting/cell": cell[order],
            f"{prefix}/waiting/key": key[order],
            f"{prefix}/waiting/values": values[order],
        }

    def load(self, prefix: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Add what :meth:`arrays` returned.

        Raises:
            InputError: an attribute has more than :data:`MOST_VALUES` values.
            OverflowError: the sums leave 64 bits.
        """
        columns = [arrays[f"{prefix}/{name}"].tolist() for name in Key._fields]
        keys = [Key(*row) for row in zip(*columns, strict=True)]
        cells = [self._cell(key) for key in keys]
        for name in [name for name in arrays if name.startswith(f"{prefix}/sums/")]:
            sums = arrays[name]
            short = name.split("/sums/", 1)[1]
            for place, number in enumerate(arrays[f"{prefix}/of/{short}"].tolist()):
                cells[number].add(short, sums[place])
                check(cells[number].sums[short])
                if short == "drawn" and keys[number] in self._waiting:
                    self._settle([keys[number]])
        if f"{prefix}/waiting/cell" in arrays:
            of, key, values = (arrays[f"{prefix}/waiting/{name}"] for name in ("cell", "key", "values"))
            starts = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
            for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(of)], strict=True):
                self._wait(keys[int(of[start])], key[start:stop], values[start:stop])


__all__ = ["EVERYTHING", "MOST_VALUES", "Block", "Cell", "Cells", "Key"]
