"""Images gathered by their size, so that those of one size can be explained together, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Buckets(Generic[Item]):
    """Lists of items of one size. What comes out depends on nothing but what goes in, and in which order.

    Args:
        capacity: of a bucket of a size (H, W), at least 1.
        most: pixels that are held at most, or one image.
    """

    def __init__(self, capacity: Callable[[tuple[int, int]], int], most: int) -> None:
        self._capacity = capacity
        self._most = most
        self._held = 0
        self._items: dict[tuple[int, int], list[tuple[Item, int]]] = {}

    def add(self, size: tuple[int, int], item: Item, pixels: int) -> Iterator[list[Item]]:
        """Take an item in, and yield the buckets that are full then, or that must go because too much is held."""
        bucket = self._items.setdefault(size, [])
        bucket.append((item, pixels))
        self._held += pixels
        if len(bucket) >= self._capacity(size):
            yield self._taken(size)
        while self._held > self._most and self._items:
            # Of equally full ones the oldest.
            yield self._taken(max(self._items, key=lambda each: len(self._items[each])))

    def rest(self) -> Iterator[list[Item]]:
        """Yield what is left, the oldest bucket first."""
        while self._items:
            yield self._taken(next(iter(self._items)))

    def _taken(self, size: tuple[int, int]) -> list[Item]:
        bucket = self._items.pop(size)
        self._held -= sum(pixels for _, pixels in bucket)
        return [item for item, _ in bucket]
