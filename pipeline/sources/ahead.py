"""Ordered work ahead on threads: hides the latency of stores within a fixed bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 8, ahead: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, at most ``ahead`` of them begun and not yet taken.

    ``ahead`` is twice ``threads`` where not given. What the function raises is raised at its item's turn. ``items`` is
    drawn by the calling thread. Closing the iterator waits for what runs and starts nothing more.
    """
    limit = ahead or 2 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="camlake-source") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= limit:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
