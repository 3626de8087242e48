"""Threads that hide the latency of a store."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

THREADS = 16


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``, computed by threads a bounded number of items ahead.

    An exception of a call is raised at its place in the order; calls that have not begun are then dropped.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="lake") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Once(Generic[Key, Result]):
    """Caches ``function(key)`` for the ``most`` keys used last; threads that ask for one key share one call.

    ``functools.lru_cache`` lets two threads that miss at once make the call twice, which here is a request twice. A
    call that fails is not kept.
    """

    def __init__(self, function: Callable[[Key], Result], most: int) -> None:
        self._function = function
        self._most = most
        self._lock = threading.Lock()
        self._found: OrderedDict[Key, Future[Result]] = OrderedDict()

    def __call__(self, key: Key) -> Result:
        with self._lock:
            future = self._found.get(key)
            mine = future is None
            if future is None:
                future = self._found[key] = Future()
            self._found.move_to_end(key)
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        if mine:
            try:
                future.set_result(self._function(key))
            except BaseException as error:
                with self._lock:
                    if self._found.get(key) is future:
                        del self._found[key]
                future.set_exception(error)
                raise
        return future.result()
