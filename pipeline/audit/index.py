"""Which cells there are, in order, as arrays: a lake of many classes and groups has hundreds of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from pipeline.audit.cell import Key
from schemas.audit import OUTCOMES

#: (attribute, value).
Pair = tuple[str, str]


class Index(Sequence[Key]):
    """The keys of one series' cells, ascending by class, attribute, value and outcome.

    Args:
        series: of the keys.
        pairs: all (attribute, value), sorted.
        target: (K,) classes.
        pair: (K,) places among ``pairs``.
        outcome: (K,).
        rows: (K,) rows of each cell.

    The cells may come in any order; each once.
    """

    def __init__(
        self,
        series: int,
        pairs: Sequence[Pair],
        target: npt.NDArray[np.int64],
        pair: npt.NDArray[np.int64],
        outcome: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> None:
        self.series, self.pairs = series, list(pairs)
        self._place = {each: place for place, each in enumerate(self.pairs)}
        codes = (target * len(self.pairs) + pair) * len(OUTCOMES) + outcome
        self.order = np.argsort(codes, kind="stable")
        self._codes = codes[self.order]
        self.rows = rows[self.order]

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, place: int) -> Key: ...
    @overload
    def __getitem__(self, place: slice) -> list[Key]: ...
    def __getitem__(self, place: int | slice) -> Key | list[Key]:
        if isinstance(place, slice):
            return [self._key(code) for code in self._codes[place].tolist()]
        return self._key(int(self._codes[place]))

    def _key(self, code: int) -> Key:
        rest, outcome = divmod(code, len(OUTCOMES))
        target, pair = divmod(rest, len(self.pairs))
        return Key(self.series, target, *self.pairs[pair], outcome)

    def find(self, target: int, attribute: str, value: str, outcome: int) -> int | None:
        """Return the place of a cell; None where there is none."""
        pair = self._place.get((attribute, value))
        if pair is None:
            return None
        code = (target * len(self.pairs) + pair) * len(OUTCOMES) + outcome
        place = int(np.searchsorted(self._codes, code))
        return place if place < len(self) and self._codes[place] == code else None

    def classes(self, attribute: str) -> npt.NDArray[np.int64]:
        """Return the classes (C,) that have cells of an attribute, ascending."""
        target, _ = self._split()
        return np.unique(target[self.places(attribute)])

    def places(self, attribute: str) -> npt.NDArray[np.int64]:
        """Return the places of an attribute's cells, ascending."""
        _, pair = self._split()
        mine = np.array([name == attribute for name, _ in self.pairs], np.bool_)
        return np.flatnonzero(mine[pair]) if len(self) else np.empty(0, np.int64)

    def values(self, attribute: str) -> list[str]:
        """Return the values of an attribute that have cells, in order."""
        _, pair = self._split()
        return [self.pairs[each][1] for each in np.unique(pair).tolist() if self.pairs[each][0] == attribute]

    def spans(self) -> list[tuple[str, int, int, int]]:
        """Return (attribute, class, first place, one past the last) of cells of one attribute and class, in order."""
        target, pair = self._split()
        names = sorted({attribute for attribute, _ in self.pairs})
        of_pair = np.array([names.index(attribute) for attribute, _ in self.pairs], np.int64)
        attribute = of_pair[pair]
        both = target * len(names) + attribute
        starts = np.flatnonzero(np.append(True, both[1:] != both[:-1])[: len(both)]).tolist()
        ends = [*starts[1:], len(self)] if starts else []
        return [
            (names[attribute[start]], int(target[start]), start, end) for start, end in zip(starts, ends, strict=True)
        ]

    def columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (K,) classes, places among :attr:`pairs`, and outcomes."""
        target, pair = self._split()
        return target, pair, self._codes % len(OUTCOMES)

    def _split(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        target, pair = np.divmod(self._codes // len(OUTCOMES), max(1, len(self.pairs)))
        return target, pair


def together(series: int, parts: Sequence[Index]) -> Index:
    """Return one index of several whose cells differ."""
    pairs = sorted({pair for part in parts for pair in part.pairs})
    place = {pair: number for number, pair in enumerate(pairs)}
    columns: list[list[npt.NDArray[np.int64]]] = [[], [], [], []]
    for part in parts:
        target, pair = part._split()
        of_pair = np.array([place[each] for each in part.pairs], np.int64)
        for column, values in zip(
            columns, (target, of_pair[pair], part._codes % len(OUTCOMES), part.rows), strict=True
        ):
            column.append(values)
    joined = [np.concatenate([np.empty(0, np.int64), *column]) for column in columns]
    return Index(series, pairs, *joined)
