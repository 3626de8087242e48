"""Reading ahead within bounds, in order, and with errors where they belong."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from pipeline.engine.clock import StageClock
from pipeline.engine.reading import Prepared, ReadAhead, prepare, prepare_all
from pipeline.engine.worker import tolerate_damage
from pipeline.sources.base import Sample, Source, UnitError
from pipeline.sources.decode import DecodeError
from schemas.unit import Unit
from schemas.view import View

UNIT = Unit("000000-x", 0, "x.tar")


class Memory(Source):
    """Yields given samples; counts how far it was read."""

    def __init__(self, samples: list[Sample], error: Exception | None = None) -> None:
        self.samples, self.error, self.read_so_far = samples, error, 0

    def plan(self) -> Iterator[Unit]:
        yield UNIT

    def read(self, unit: Unit) -> Iterator[Sample]:
        for sample in self.samples:
            self.read_so_far += 1
            yield sample
        if self.error:
            raise self.error


def samples(count: int, size: int = 100) -> list[Sample]:
    return [Sample(f"i{number}", "x.tar", bytes(size)) for number in range(count)]


def test_order_is_kept() -> None:
    ahead = ReadAhead(Memory(samples(50)), UNIT, max_bytes=10_000, clock=StageClock())
    assert [sample.image_id for sample in ahead] == [f"i{number}" for number in range(50)]


def test_no_more_than_the_bound_is_held() -> None:
    source = Memory(samples(50, size=1000))
    ahead = ReadAhead(source, UNIT, max_bytes=5000, clock=StageClock())
    time.sleep(0.2)
    assert source.read_so_far <= 6
    assert sum(1 for _ in ahead) == 50


def test_a_sample_larger_than_the_bound_still_passes() -> None:
    ahead = ReadAhead(Memory(samples(3, size=1000)), UNIT, max_bytes=10, clock=StageClock())
    assert sum(1 for _ in ahead) == 3


def test_closing_stops_the_thread() -> None:
    before = threading.active_count()
    ahead = ReadAhead(Memory(samples(50, size=1000)), UNIT, max_bytes=1000, clock=StageClock())
    next(iter(ahead))
    ahead.close()
    ahead._thread.join(2)
    assert threading.active_count() == before


def test_the_sources_error_comes_after_its_good_samples() -> None:
    ahead = ReadAhead(Memory(samples(3), OSError("reset")), UNIT, max_bytes=1000, clock=StageClock())
    iterator = iter(ahead)
    assert [next(iterator).image_id for _ in range(3)] == ["i0", "i1", "i2"]
    with pytest.raises(OSError, match="reset"):
        next(iterator)


def test_damage_becomes_a_sample_that_says_so() -> None:
    ahead = ReadAhead(Memory(samples(2), UnitError("x.tar is cut at 1024")), UNIT, max_bytes=1000, clock=StageClock())
    got = list(tolerate_damage(ahead, UNIT))
    assert [sample.image_id for sample in got] == ["i0", "i1", "000000-x#damaged"]
    assert got[-1].error == "x.tar is cut at 1024" and got[-1].data is None


def test_preparing_keeps_the_order_and_the_bound() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def task(sample: Sample) -> Prepared:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (int(sample.image_id[1:]) % 3))
        with lock:
            running -= 1
        return Prepared(sample, "ok")

    with ThreadPoolExecutor(4) as pool:
        done = list(prepare_all(iter(samples(30)), task, pool, ahead=3, clock=StageClock()))
    assert [item.sample.image_id for item in done] == [f"i{number}" for number in range(30)]
    assert most <= 3


def test_without_overlap_nothing_is_prepared_while_the_caller_works() -> None:
    finished = 0
    lock = threading.Lock()

    def task(sample: Sample) -> Prepared:
        nonlocal finished
        time.sleep(0.002)
        with lock:
            finished += 1
        return Prepared(sample, "ok")

    seen = []
    with ThreadPoolExecutor(2) as pool:
        for item in prepare_all(iter(samples(10)), task, pool, ahead=4, clock=StageClock(), overlap=False):
            before = finished
            time.sleep(0.005)
            assert finished == before
            seen.append((item.sample.image_id, finished))
    assert seen == [(f"i{number}", min(10, (number // 4 + 1) * 4)) for number in range(10)]


def preprocess(pixels: torch.Tensor) -> tuple[torch.Tensor, View]:
    return pixels.float(), View(0, 0, pixels.shape[2], pixels.shape[1])


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_good_image_is_prepared_and_its_bytes_let_go() -> None:
    data = png(5, 4)
    item = prepare(Sample("a", "u", data), preprocess, "ignore", StageClock())
    assert (item.status, item.width, item.height, item.view) == ("ok", 5, 4, View(0, 0, 5, 4))
    assert item.sample.data is None and item.sample.byte_size == len(data)
    assert item.sha256 is not None and len(item.sha256) == 32
    assert item.tensor is not None and item.tensor[:, 0, 0].tolist() == [1, 2, 3]


def test_an_image_that_preprocessing_refuses_is_a_status_too() -> None:
    def refuse(pixels: torch.Tensor) -> tuple[torch.Tensor, View]:
        raise DecodeError("too thin")

    item = prepare(Sample("a", "u", png(5, 4)), refuse, "ignore", StageClock())
    assert (item.status, item.error) == ("decode_error", "too thin")


def test_a_bad_image_is_a_status_with_its_reason() -> None:
    item = prepare(Sample("a", "u", b"<html>"), preprocess, "ignore", StageClock())
    assert item.status == "decode_error" and item.error and item.sha256 is not None
    missing = prepare(Sample("a", "u", None, error="no member"), preprocess, "ignore", StageClock())
    assert (missing.status, missing.error) == ("read_error", "no member")
