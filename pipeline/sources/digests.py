"""A set of texts in 16 to 40 bytes each, to tell which of millions of names were there before."""

from __future__ import annotations

import hashlib
import os
from array import array

_FIRST = 1 << 10
#: Share of the table that may be filled; more makes the search for a free place long.
_FULL = 0.6


class Digests:
    """Remembers texts by 64-bit digests, in a table of its own: a Python set of texts takes 130 bytes and more of each.

    Two texts may be taken for one: of a million with a probability of 3e-8. The digests are keyed at random, so that it
    does not happen to the same texts again.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._table = array("Q", bytes(8 * _FIRST))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self._table[self._place(self._digest(text))])

    def add(self, text: str) -> bool:
        """Remember a text; False where it was there before."""
        digest = self._digest(text)
        place = self._place(digest)
        if self._table[place]:
            return False
        self._table[place] = digest
        self._count += 1
        if self._count > _FULL * len(self._table):
            self._grow()
        return True

    def _digest(self, text: str) -> int:
        # Zero marks a free place.
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=self._key).digest(), "big") or 1

    def _place(self, digest: int) -> int:
        """Where a digest stands, or the free place where it would."""
        table = self._table
        last = len(table) - 1
        place = digest & last
        while table[place] not in (0, digest):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
        for digest in old:
            if digest:
                self._table[self._place(digest)] = digest
