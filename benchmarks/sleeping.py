"""A worker that computes nothing and takes as long as a GPU would: what :mod:`benchmarks.scaling` runs many of.

It is the job's own worker, which reads shards, commits to a lake and answers the driver as ever. Three things stand in:
images are handed on without being decoded, the compute stage sleeps, and each image's map is the same. PyTorch is
imported nowhere, so that 64 of them fit into the memory of one machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.engine.clock import StageClock
from pipeline.engine.outcome import WorkerInfo
from pipeline.engine.reading import Prepared
from pipeline.engine.worker import AttributionWorker
from pipeline.lake.sink import MapSet, MapTargets, UnitResult
from pipeline.sources import open_source
from pipeline.sources.base import Sample
from schemas.job import Job
from schemas.registries import SINKS, implementation
from schemas.tables import FLAGS, STATISTICS

_SIDE = 7


class SleepingWork:
    """A unit whose compute stage sleeps; in the place of :class:`pipeline.engine.explainer.UnitWork`."""

    masks_scored = 0

    def __init__(self, method: str, layer: str, seconds: float, on_images: Callable[[int], None]) -> None:
        self._method = method
        self._layer = layer
        self._seconds = seconds
        self._on_images = on_images
        self._rows: list[dict[str, Any]] = []

    def add_all(self, prepared: Iterator[Prepared], clock: StageClock) -> None:
        """Take all images, and sleep."""
        for item in prepared:
            sample = item.sample
            self._rows.append({"image_id": sample.image_id, "uri": sample.uri, "status": item.status})
        with clock.measure("compute"):
            time.sleep(self._seconds)
        self._on_images(len(self._rows))

    def result(self, unit_id: str, attempt: str, worker: str, seconds: dict[str, float]) -> UnitResult:
        """Return a map per image, all of them alike."""
        count = len(self._rows)
        row, column = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
        maps = np.broadcast_to(row * column, (count, _SIDE, _SIDE))
        targets = MapTargets(
            image_index=np.arange(count),
            target_class=np.zeros(count, np.int32),
            target_name=["0"] * count,
            target_kind=["predicted"] * count,
            target_rank=np.zeros(count, np.int32),
            is_label=[None] * count,
            is_predicted=np.ones(count, bool),
            logit=np.ones(count, np.float32),
            probability=np.ones(count, np.float32),
        )
        statistics = {
            name: np.full(count, name not in FLAGS, bool if name in FLAGS else np.float32) for name in STATISTICS
        }
        statistics["vmax"] = maps.max((1, 2))
        map_set = MapSet(self._method, self._layer, False, targets, maps, statistics)
        return UnitResult(unit_id, attempt, worker, self._rows, [map_set], seconds)

    def close(self) -> None:
        """There is nothing to let go of."""


class SleepingExplainer:
    """In the place of :class:`pipeline.engine.explainer.Explainer`."""

    def __init__(self, method: str, layer: str, seconds: float) -> None:
        self._arguments = method, layer, seconds

    def unit(self, on_images: Callable[[int], None]) -> SleepingWork:
        """Begin a unit."""
        return SleepingWork(*self._arguments, on_images)


class SleepingWorker(AttributionWorker):
    """The job's worker with a compute stage that sleeps."""

    #: Of a unit.
    seconds = 1.0

    def start(self) -> WorkerInfo:
        """Open source and sink; there is no replica to load."""
        assert self.manifest is not None
        self.use(self.job)
        self.source = open_source(self.job.source)
        self.sink = implementation(SINKS, "sink", self.job.kind).SINK(self.job.output, self.manifest)
        return WorkerInfo(self.name, "stand-in", "sleep", 0)

    def use(self, job: Job) -> None:
        """Sleep instead of explaining."""
        assert self.manifest is not None
        method = self.manifest.methods[0]
        self.explainer = SleepingExplainer(method.key, "+".join(method.layers), self.seconds)  # type: ignore[assignment]

    def prepared(self, samples: Iterator[Sample], clock: StageClock) -> Iterator[Prepared]:
        """Hand the images on as they are."""
        for sample in samples:
            yield Prepared(sample, "ok")


def sleeping_worker(seconds: float) -> type[SleepingWorker]:
    """Return a class of workers whose units compute for ``seconds``."""

    class Worker(SleepingWorker):
        pass

    Worker.seconds = seconds
    return Worker
