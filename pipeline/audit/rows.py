"""Rows as integers: what small cells keep in place of sums, and what all sums are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.blocks import Block, Coded
from pipeline.audit.canonical import expanded
from pipeline.audit.draws import Values, narrow
from pipeline.audit.fixed import MAP_BITS, SCALAR_BITS, SCALAR_LIMIT, Integers, fixed
from pipeline.audit.keys import Keys, mixed
from schemas.audit import BINS, GRID, Measure
from schemas.errors import InputError

#: The attribute of cells that hold all maps, whatever their groups.
EVERYTHING = ""
#: Values that an attribute may have: each is a group with sums of its own.
MOST_VALUES = 256
#: In a slot: the row is in no such cell, or in one that has sums and no need of it.
NOWHERE = -1


class Names:
    """Attributes and their values by number, as they come; number 0 is everything, of one value without a name."""

    def __init__(self) -> None:
        self.attributes: dict[str, int] = {EVERYTHING: 0}
        self.values: list[dict[str, int]] = [{"": 0}]

    def slot(self, attribute: str) -> int:
        """Return the number of an attribute, a new one where it is not known."""
        found = self.attributes.setdefault(attribute, len(self.values))
        if found == len(self.values):
            self.values.append({})
        return found

    def codes(self, attribute: str, names: Sequence[str]) -> npt.NDArray[np.int16]:
        """Return the numbers of values, new ones where they are not known; and behind them that of no value.

        Raises:
            InputError: the attribute has more than :data:`MOST_VALUES` values.
        """
        known = self.values[self.slot(attribute)]
        found = [known.setdefault(name, len(known)) for name in names]
        if len(known) > MOST_VALUES:
            raise InputError(
                f"--groups: column '{attribute}' has more than {MOST_VALUES} values; give a column of few "
                "values (one that names patients or videos belongs to --cluster)"
            )
        return np.array([*found, NOWHERE], np.int16)

    def pairs(self) -> list[tuple[str, str, int, int]]:
        """Return (attribute, value, number of the attribute, of the value) of all, sorted by name."""
        return sorted(
            (attribute, value, slot, code)
            for attribute, slot in self.attributes.items()
            for value, code in self.values[slot].items()
        )


@dataclass
class Rows:
    """T rows of one series.

    Attributes:
        target: (T,) int32 classes.
        outcome: (T,) int8.
        flags: (T,) uint8, a bit for each flag.
        slots: (T, S) int16: the value's number of each attribute, :data:`NOWHERE` where the row does not wait.
        values: (T, M) int32 in units of 2^-20, or ``UNDEFINED``.
        keys: (T,) uint64, of rows that are drawn; else None.
        maps: (T, gy, gx) int32 in units of 2^-16, all -1 where there is no mass; None of rows without maps.
    """

    target: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    flags: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int16]
    values: Values
    keys: Keys | None
    maps: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: npt.NDArray[Any] | slice) -> Rows:
        """Return some rows."""
        columns: dict[str, Any] = {name: None if each is None else each[rows] for name, each in vars(self).items()}
        return Rows(**columns)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Cells of the maps."""
        return None if self.maps is None else (self.maps.shape[1], self.maps.shape[2])

    def on_canonical_grid(self) -> Rows:
        """Return the rows with maps of GRID x GRID cells."""
        return self if self.maps is None or self.grid == (GRID, GRID) else replace(self, maps=expanded(self.maps))

    def in_order(self) -> Rows:
        """Return the rows by class, in an order that does not depend on how they came."""
        columns: list[npt.NDArray[Any]] = [self.outcome[:, None], self.flags[:, None], self.slots, self.values]
        if self.maps is not None:
            columns.append(self.maps.reshape(len(self), -1))
        numbers = np.concatenate(columns, 1).astype(np.int64).view(np.uint64)
        factors = mixed(np.arange(numbers.shape[1], dtype=np.uint64), 0) | np.uint64(1)
        with np.errstate(over="ignore"):
            place = numbers @ factors
            place = mixed(place if self.keys is None else place + self.keys, 1)
        return self.take(np.lexsort((place, self.target)))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns for storing: numbers byte by byte, so that their leading zeros lie together."""
        found: dict[str, npt.NDArray[Any]] = {"slots": self.slots, "outcome": self.outcome, "flags": self.flags}
        found |= {"target": self.target, "values": _planes(self.values)}
        if self.keys is not None:
            found["keys"] = self.keys
        if self.maps is not None:
            found["maps"] = _planes(self.maps.reshape(len(self), -1))
            found["grid"] = np.array(self.grid, np.int64)
        return found

    @classmethod
    def of_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Rows:
        """Return what :meth:`arrays` was made of."""
        rows = {name: arrays[name] for name in ("target", "outcome", "flags", "slots")}
        maps = None
        if "maps" in arrays:
            maps = _whole(arrays["maps"]).reshape(-1, *arrays["grid"].tolist())
        return cls(**rows, values=_whole(arrays["values"]), keys=arrays.get("keys"), maps=maps)


def rows_of(block: Block, names: Names) -> Rows:
    """Return a block's rows as integers.

    Raises:
        InputError: an attribute has more than :data:`MOST_VALUES` values.
    """
    count = len(block.target_class)
    coded = {name: each if isinstance(each, Coded) else Coded.of(each) for name, each in block.groups.items()}
    # Only values that occur: a dictionary may hold those of other units too.
    used = {name: np.unique(each.codes[each.codes >= 0]) for name, each in coded.items()}
    numbers = {
        name: names.codes(name, [each.names[code] for code in used[name].tolist()]) for name, each in coded.items()
    }
    slots = np.full((count, len(names.values)), NOWHERE, np.int16)
    slots[:, 0] = 0
    for name, each in coded.items():
        table = np.full(len(each.names) + 1, NOWHERE, np.int16)
        table[used[name]] = numbers[name][:-1]
        slots[:, names.slot(name)] = table[each.codes]
    defined = np.isfinite(block.values)
    values = np.clip(np.where(defined, block.values, 0.0), -SCALAR_LIMIT, SCALAR_LIMIT)
    maps = None
    if block.maps is not None:
        known = np.isfinite(block.maps[:, 0, 0])[:, None, None]
        maps = np.where(known, fixed(block.maps, MAP_BITS), -1).astype(np.int32)
    return Rows(
        block.target_class.astype(np.int32),
        block.outcome.astype(np.int8),
        np.packbits(block.flags, axis=1, bitorder="little")[:, 0],
        slots,
        narrow(fixed(values, SCALAR_BITS), defined),
        block.keys,
        maps,
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Return all rows; where their maps are of several grids, on the canonical one.

    Raises:
        ValueError: some are drawn, or have maps, and others do not.
    """
    if len(parts) == 1:
        return parts[0]
    if len({(part.keys is None, part.maps is None) for part in parts}) > 1:
        raise ValueError("rows of one series must all have keys, and all have maps, or none of them")
    if len({part.grid for part in parts}) > 1:
        parts = [part.on_canonical_grid() for part in parts]
    width = max(part.slots.shape[1] for part in parts)

    def slots(part: Rows) -> npt.NDArray[np.int16]:
        more = width - part.slots.shape[1]
        return np.pad(part.slots, ((0, 0), (0, more)), constant_values=NOWHERE) if more else part.slots

    columns: dict[str, Any] = {
        name: None if values is None else np.concatenate([getattr(part, name) for part in parts])
        for name, values in vars(parts[0]).items()
        if name != "slots"
    }
    return Rows(slots=np.concatenate([slots(part) for part in parts]), **columns)


def bins(values: Values, measures: Sequence[Measure]) -> Integers:
    """Return the bin (T, M) of each value of a measure's histogram; of undefined ones any."""
    low = np.array([measure.low for measure in measures])
    width = np.array([(measure.high - measure.low) / BINS for measure in measures])
    places = (values / float(1 << SCALAR_BITS) - low) / width
    found: Integers = np.clip(np.floor(places), 0, BINS - 1).astype(np.int64)
    return found


def unpacked(flags: npt.NDArray[np.uint8]) -> Integers:
    """Return flags (T, 3) as numbers."""
    return np.unpackbits(flags[:, None], axis=1, bitorder="little", count=3).astype(np.int64)


def _planes(values: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Return numbers (T, N) as bytes (N, 4, T)."""
    count, width = values.shape
    little = np.ascontiguousarray(values.astype("<i4").T).view(np.uint8).reshape(width, count, 4)
    return np.ascontiguousarray(little.transpose(0, 2, 1))


def _whole(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Return the numbers (T, N) of bytes (N, 4, T)."""
    little = np.ascontiguousarray(planes.transpose(2, 0, 1)).view("<i4")
    found: npt.NDArray[np.int32] = little[:, :, 0].astype(np.int32)
    return found


__all__ = ["EVERYTHING", "MOST_VALUES", "NOWHERE", "Names", "Rows", "bins", "joined", "rows_of", "unpacked"]
