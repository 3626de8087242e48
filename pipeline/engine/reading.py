"""Encoded images from a source, read ahead of their use and decoded on threads, in order and within bounds."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.engine.clock import StageClock
from pipeline.sources.base import Sample, Source
from schemas.unit import Unit
from schemas.view import View

if TYPE_CHECKING:
    from torch import Tensor


class ReadAhead:
    """Reads a unit's samples on a thread of its own, at most ``max_bytes`` of encoded images ahead.

    Iterating yields the samples in the source's order and raises what the source raised. Only bytes are read ahead:
    decoding, which can kill a process, is left to whoever computes the unit.
    """

    def __init__(self, source: Source, unit: Unit, *, max_bytes: int, clock: StageClock) -> None:
        self._samples: deque[Sample] = deque()
        self._held = 0
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._done = False
        self._stop = False
        self._error: Exception | None = None
        self._thread = threading.Thread(
            target=self._read, args=(source, unit, clock), name=f"read-{unit.unit_id}", daemon=True
        )
        self._thread.start()

    def _read(self, source: Source, unit: Unit, clock: StageClock) -> None:
        try:
            samples = source.read(unit)
            while True:
                with clock.measure("read"):
                    sample = next(samples, None)
                if sample is None or not self._put(sample):
                    break
        except Exception as error:  # noqa: BLE001 - handed over to the iterating thread, which raises it
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _put(self, sample: Sample) -> bool:
        size = len(sample.data or b"")
        with self._changed:
            while self._samples and self._held + size > self._max_bytes and not self._stop:
                self._changed.wait()
            self._samples.append(sample)
            self._held += size
            self._changed.notify_all()
            return not self._stop

    def __iter__(self) -> Iterator[Sample]:
        while True:
            with self._changed:
                while not self._samples and not self._done:
                    self._changed.wait()
                if not self._samples:
                    break
                sample = self._samples.popleft()
                self._held -= len(sample.data or b"")
                self._changed.notify_all()
            yield sample
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading; samples not yet taken are dropped."""
        with self._changed:
            self._stop = True
            self._samples.clear()
            self._changed.notify_all()


@dataclass(slots=True)
class Prepared:
    """A sample after decoding and preprocessing.

    ``tensor`` and ``view`` are None where ``status`` is not ``ok``. ``tensor`` is what the job's preprocessing makes:
    (3, H, W) float32 for heatmaps, a :class:`pipeline.pseudolabels.sizes.Scaled` for labels. The encoded bytes are
    gone; their ``sha256`` stays.
    """

    sample: Sample
    status: str
    error: str | None = None
    sha256: bytes | None = None
    tensor: Any = None
    view: View | None = None
    width: int | None = None
    height: int | None = None
    decoder: str | None = None
    exif_orientation: int | None = None


def prepare(
    sample: Sample,
    preprocess: Callable[[Tensor], tuple[Any, View]],
    exif: Literal["ignore", "apply"],
    clock: StageClock,
) -> Prepared:
    """Decode and preprocess one sample; what goes wrong with it becomes its status."""
    from pipeline.sources.decode import DecodeError, decode

    if sample.data is None or sample.error is not None:
        return Prepared(sample, sample.status, sample.error or "the source gave no bytes")
    with clock.measure("decode"):
        data, sample.data = sample.data, None
        digest = hashlib.sha256(data).digest()
        if sample.byte_size is None:
            sample.byte_size = len(data)
        try:
            decoded = decode(data, exif=exif)
            # Refuses images so thin that the resize would be enormous.
            tensor, view = preprocess(decoded.pixels)
        except DecodeError as error:
            return Prepared(sample, "decode_error", str(error), digest)
        height, width = decoded.pixels.shape[-2:]
    return Prepared(sample, "ok", None, digest, tensor, view, width, height, decoded.decoder, decoded.exif_orientation)


def prepare_all(
    samples: Iterator[Sample],
    task: Callable[[Sample], Prepared],
    pool: ThreadPoolExecutor,
    *,
    ahead: int,
    clock: StageClock,
    overlap: bool = True,
) -> Iterator[Prepared]:
    """Yield ``task(sample)`` in order, at most ``ahead`` of them running or finished before they are taken.

    Args:
        samples: to prepare.
        task: of one sample.
        pool: the threads that run it.
        ahead: largest number of samples in hand.
        clock: gets the seconds that the caller waits.
        overlap: prepare on while the caller works on what it took. False prepares ``ahead`` samples at a time and none
            while the caller works: on a CPU whose cores all compute, a decoding thread holds up every parallel region.
    """
    pending: deque[Future[Prepared]] = deque()
    exhausted = False
    while pending or not exhausted:
        start = time.perf_counter()
        if overlap or not pending:
            while not exhausted and len(pending) < ahead:
                sample = next(samples, None)
                if sample is None:
                    exhausted = True
                else:
                    pending.append(pool.submit(task, sample))
            if not overlap:
                wait(pending)
        prepared = pending.popleft().result() if pending else None
        clock.add("wait", time.perf_counter() - start)
        if prepared is not None:
            yield prepared
