"""Threads ahead, and calls made once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.lake.parallel import Once, ahead


def test_ahead_keeps_order_and_is_bounded() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            drawn.append(i)
            yield i

    def slow(i: int) -> int:
        time.sleep(0.001 * (i % 3))
        return i * i

    results = ahead(slow, items(), threads=2)
    assert next(results) == 0
    assert len(drawn) <= 6
    assert list(results) == [i * i for i in range(1, 100)]


def test_ahead_raises_in_order_and_stops() -> None:
    called: list[int] = []

    def fails(i: int) -> int:
        called.append(i)
        if i == 3:
            raise ValueError("three")
        return i

    results = ahead(fails, range(1000), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(called) < 20


def test_once_shares_calls_between_threads_and_evicts() -> None:
    calls: list[str] = []
    gate = threading.Event()

    def function(key: str) -> str:
        calls.append(key)
        assert gate.wait(10)
        return key.upper()

    once = Once(function, 2)
    results = ahead(once, ["a"] * 8, threads=8)
    gate.set()
    assert list(results) == ["A"] * 8
    assert calls == ["a"]
    once("b"), once("a"), once("c"), once("a")
    assert calls == ["a", "b", "c"]
    once("b")
    assert calls == ["a", "b", "c", "b"]


def test_once_does_not_keep_failures() -> None:
    outcomes = [ValueError("first"), None]

    def function(key: str) -> str:
        error = outcomes.pop(0)
        if error is not None:
            raise error
        return key

    once = Once(function, 2)
    with pytest.raises(ValueError, match="first"):
        once("a")
    assert once("a") == "a"
