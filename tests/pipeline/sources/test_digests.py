"""The set of digests does what a set of texts does, in a fraction of its memory."""

from __future__ import annotations

import tracemalloc

import pytest

from pipeline.sources.digests import Digests


def test_it_is_a_set() -> None:
    texts = [f"{number * 7919 % 5000:06d}-train" for number in range(12_000)]
    digests, reference = Digests(), set[str]()
    for text in texts:
        assert digests.add(text) == (text not in reference)
        reference.add(text)
    assert len(digests) == len(reference) == 5000
    assert all(text in digests for text in reference)
    assert not any(f"{text}x" in digests for text in reference) and 7 not in digests


def test_texts_of_one_place_in_the_table_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # The lowest bits choose the place, and zero is what a free place holds.
    monkeypatch.setattr(Digests, "_digest", lambda self, text: (int(text) << 32) or 1)
    digests = Digests()
    assert all(digests.add(str(number)) for number in range(900))
    assert not any(digests.add(str(number)) for number in range(900)) and "900" not in digests


def test_it_takes_a_few_bytes_per_text() -> None:
    count = 20_000
    tracemalloc.start()
    digests = Digests()
    for number in range(count):
        digests.add(f"{number:06d}-train-{number:06d}")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 40 * count
