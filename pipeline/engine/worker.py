"""The replica's side: one model, and units turned into committed results. Works with and without Ray.

PyTorch is imported by what needs it, once a worker starts: workers of a class that computes without it are a third as
large, and ``benchmarks.scaling`` runs 64 of them on one machine.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.engine.clock import StageClock
from pipeline.engine.outcome import Outcome, Progress, WorkerInfo
from pipeline.engine.reading import Prepared, ReadAhead, prepare, prepare_all
from pipeline.engine.watchdog import Watchdog, stacks
from pipeline.lake.sink import Sink
from pipeline.sources import open_source
from pipeline.sources.base import Sample, UnitError
from schemas.documents import Manifest
from schemas.errors import InputError
from schemas.job import Job
from schemas.registries import EXPLAINERS, SINKS, implementation
from schemas.unit import Unit

if TYPE_CHECKING:
    import torch

    from pipeline.engine.explainer import Explainer, UnitWork


class AttributionWorker:
    """Holds a replica and processes units; the actor that the dispatcher talks to.

    Args:
        job: the resolved job.
        manifest: the lake's manifest; None writes nothing (``plan`` times a few images this way).
        name: the worker's name, as commits record it.
        device: torch device; None takes the GPU that Ray assigned, or else the CPU.
    """

    def __init__(self, job: Job, manifest: Manifest | None, name: str, device: str | None = None) -> None:
        self.job = job
        self.manifest = manifest
        self.name = name
        self._device = device or ("cuda" if job.workers.gpus > 0 else "cpu")
        # Only one unit at a time is decoded and computed: a crash there is charged to the right one.
        self._computing = threading.Lock()
        self._writing = threading.Lock()
        self._images_done = 0
        self._written = 0
        self._current: tuple[str, float, UnitWork] | None = None
        self._clocks: dict[str, StageClock] = {}
        # The GPU, once the replica is on it.
        self._cuda: torch.device | None = None
        self._watchdog = Watchdog(job.workers.stall_seconds)

    def __repr__(self) -> str:
        """What Ray puts before the lines that it forwards from here."""
        return self.name

    def start(self) -> WorkerInfo:
        """Load the replica and open source and sink.

        Raises:
            InputError: the model, the weights or the source cannot be had, or the weights are not the lake's any more.
            AccessError: a store cannot be used: rights, credentials, bucket.
        """
        import torch

        from pipeline.models.replica import load_replica

        # Here, in one thread: two that decode and are the first to import parts of it at once find it half made.
        importlib.import_module("torchvision.transforms.v2")
        job = self.job
        if self._device == "cpu":
            torch.set_num_threads(job.compute.threads or max(1, int(job.workers.cpus)))
        method_layers = [layer for method in job.methods for layer in method.layers or ()]
        self.replica = load_replica(
            job.model, device=self._device, method_layers=method_layers, winograd=job.compute.winograd
        )
        if self.manifest is not None and self.replica.digest != self.manifest.model.digest:
            raise InputError(
                f"model.weights: {job.model.weights} changed since the run began "
                f"(digest {self.replica.digest[:12]}, the lake has {self.manifest.model.digest[:12]}); "
                "restore the weights, or write to another output.uri"
            )
        if self.replica.device.type == "cuda":
            self._cuda = self.replica.device
        self.use(job)
        if self.manifest is not None:
            self.explainer.warm_up()
        self.source = open_source(job.source)
        self.sink: Sink | None = None
        if self.manifest is not None:
            self.sink = implementation(SINKS, "sink", job.kind).SINK(job.output, self.manifest)
        self._pool = ThreadPoolExecutor(job.compute.decode_threads, thread_name_prefix="decode")
        return WorkerInfo(self.name, socket.gethostname(), str(self.replica.device), os.getpid())

    def use(self, job: Job) -> None:
        """Explain as ``job`` has it, which may differ from the worker's own in how it is computed."""
        self.job = job
        self.explainer: Explainer = implementation(EXPLAINERS, "explainer", job.kind).EXPLAINER(job, self.replica)

    def prepared(self, samples: Iterator[Sample], clock: StageClock) -> Iterator[Prepared]:
        """Decode and preprocess ``samples`` on the worker's threads, in order."""
        import torch

        task = partial(prepare, preprocess=self.explainer.preprocess, exif=self.job.model.preprocess.exif, clock=clock)
        size = self.explainer.ahead
        overlap = self._device != "cpu" or self.job.workers.cpus > torch.get_num_threads()
        ahead = 2 * size if overlap else size
        return prepare_all(samples, task, self._pool, ahead=ahead, clock=clock, overlap=overlap)

    def isolated(self, samples: Iterator[Sample], clock: StageClock) -> Iterator[Prepared]:
        """Decode and preprocess ``samples`` one by one in a process of their own, which may die of one."""
        from pipeline.engine.isolated import Setup
        from pipeline.engine.isolation import IMAGE_SECONDS, IsolatedPreparer
        from pipeline.models.factory import parse_name

        name = parse_name(self.job.model.name)
        # A user's module may register decoders of its own.
        imports = [name.module] if name.library == "factory" else []
        setup = Setup(self.explainer.preprocess, self.job.model.preprocess.exif, imports)
        # The image has to end before the worker is taken for hung.
        preparer = IsolatedPreparer(setup, min(IMAGE_SECONDS, self.job.workers.stall_seconds / 2))
        try:
            for sample in samples:
                yield preparer(sample, clock)
        finally:
            preparer.close()

    def process(self, unit: Unit, attempt: str, careful: bool = False) -> Outcome:
        """Explain every image of ``unit`` and commit the result; returns what the commit says.

        While one unit computes, the next one's bytes are read and the last one's result is written.

        Args:
            unit: to explain.
            attempt: the attempt's id, in the names of all that it writes.
            careful: the unit is suspected of having killed a worker: its images are decoded in another process.
        """
        if self.sink is None:
            raise RuntimeError("the worker was started without a manifest; it cannot write")
        clock, began = StageClock(), time.perf_counter()
        self._clocks[attempt] = clock
        try:
            return self._process(unit, attempt, careful, clock, began)
        finally:
            del self._clocks[attempt]

    def _process(self, unit: Unit, attempt: str, careful: bool, clock: StageClock, began: float) -> Outcome:
        assert self.sink is not None
        ahead = ReadAhead(self.source, unit, max_bytes=self.job.compute.read_ahead_mb * 2**20, clock=clock)
        with ExitStack() as stack:
            try:
                with self._computing:
                    work = self.explainer.unit(self._count)
                    stack.callback(work.close)
                    self._images_done = 0
                    self._current = (unit.unit_id, time.monotonic(), work)
                    prepared = self.isolated if careful else self.prepared
                    work.add_all(prepared(tolerate_damage(ahead, unit), clock), clock)
                    with clock.measure("compute"):
                        result = work.result(unit.unit_id, attempt, self.name, {})
            finally:
                ahead.close()
                # Of another unit where this one waited for its turn and failed before it had it.
                if self._current is not None and self._current[0] == unit.unit_id:
                    self._current, self._images_done = None, 0
            with self._writing:
                clock.add("total", time.perf_counter() - began)
                commit = self.sink.write(replace(result, seconds=clock.seconds())).commit
                self._written += 1
        return Outcome(
            unit_id=unit.unit_id,
            attempt=commit.attempt,
            worker=commit.worker,
            images=commit.images,
            maps=commit.maps,
            bytes=sum(item.size for item in commit.objects),
            seconds=dict(commit.seconds),
        )

    def _count(self, images: int) -> None:
        self._images_done += images

    def progress(self) -> Progress:
        """Say what is going on; the driver asks each second, and ends a worker that shows no progress for too long."""
        seconds = sum(sum(clock.seconds().values()) for clock in list(self._clocks.values()))
        current = self._current
        if current is None:
            found = Progress(0, (self._written, seconds), gpu_memory=gpu_memory(self._cuda))
        else:
            unit_id, since, work = current
            mark = (self._written, seconds, self._images_done, work.masks_scored, since)
            found = Progress(self._images_done, mark, unit_id, time.monotonic() - since, gpu_memory(self._cuda))
        self._watchdog.see(found.mark, bool(self._clocks))
        return found

    def stack(self) -> str:
        """Return what each thread is doing, for the log of whoever ends this worker."""
        return stacks()


def gpu_memory(device: torch.device | None) -> tuple[int, int] | None:
    """Return the bytes that tensors of this process hold on a GPU and the most that they held; None without one."""
    if device is None:
        return None
    import torch

    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


def tolerate_damage(samples: Iterator[Sample] | ReadAhead, unit: Unit) -> Iterator[Sample]:
    """Yield ``samples``; where the shard is damaged, end with a sample that says so, so that the good ones are kept."""
    try:
        yield from samples
    except UnitError as error:
        yield Sample(f"{unit.unit_id}#damaged", unit.uri, None, error=str(error))
