from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.sources.ahead import map_ahead


def test_results_keep_the_order_and_work_overlaps() -> None:
    both = threading.Barrier(2, timeout=5)

    def wait(number: int) -> int:
        both.wait()  # passes only if two run at a time
        return number

    assert list(map_ahead(wait, range(10), threads=2)) == list(range(10))


def test_no_more_is_begun_than_asked_for() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    results = map_ahead(str, items(), threads=2, ahead=5)
    assert next(results) == "0"
    assert len(drawn) == 5
    results.close()  # type: ignore[attr-defined]
    assert len(drawn) == 5


def test_an_error_comes_at_its_turn() -> None:
    def invert(number: int) -> float:
        return 1 / number

    results = map_ahead(invert, [1, 2, 0, 4], threads=2)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
