"""What a run exports to Prometheus, by Ray's own agents (``ray.util.metrics``); Ray puts ``ray_`` before each name.

All of it is recorded by the driver, so counts agree with the summary and with the lake, and a worker that dies takes
no count along. No label is a unit or an image. Two traps of Ray shape it (measured with Ray 2.60):

- The sum of a histogram is rebuilt from the middles of its buckets (2,000 times 1.0 in a bucket up to 1.0 came out as
  1,000), so seconds by stage are counters, and only the spread of whole units is a histogram.
- A gauge that is not set again ages out after twenty seconds, so all are set each second; a dead worker's go by
  themselves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.engine.outcome import Outcome, Pool, WorkerInfo
from pipeline.engine.progress import ProgressMonitor
from schemas.documents import Attempt
from schemas.unit import Unit

if TYPE_CHECKING:  # which imports Ray
    from pipeline.engine.dispatcher import Monitor

#: Upper bounds of the buckets of a unit's seconds: from a shard of thumbnails to hours of Score-CAM.
BUCKETS = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)


@dataclass(frozen=True)
class Metric:
    """A metric as it is named here; ``labels`` besides ``run_id``, which all have."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name where it is scraped."""
        return f"ray_{self.name}"


METRICS = (
    Metric("camlake_images_total", "counter", "Images of committed units, by status; all but ok failed.", ("status",)),
    Metric("camlake_maps_total", "counter", "Heatmaps of committed units; labels in a job that makes labels."),
    Metric("camlake_written_bytes_total", "counter", "Bytes of the objects of committed units."),
    Metric("camlake_units_total", "counter", "Units with a result: committed or quarantined.", ("result",)),
    Metric("camlake_retries_total", "counter", "Failed attempts that are repeated, by kind of failure.", ("reason",)),
    Metric("camlake_worker_deaths_total", "counter", "Workers that died or were ended, by kind.", ("reason",)),
    Metric(
        "camlake_stage_seconds_total",
        "counter",
        "Seconds of committed units by stage, over all workers; stages overlap.",
        ("stage",),
    ),
    Metric("camlake_unit_seconds", "histogram", "Seconds from a unit's start to its commit."),
    Metric("camlake_units_planned", "gauge", "Units of the plan."),
    Metric("camlake_units_left", "gauge", "Units without a result, those in flight among them."),
    Metric("camlake_units_in_flight", "gauge", "Units that workers hold: up to two each."),
    Metric("camlake_images_in_progress", "gauge", "Images explained in units that are not committed yet."),
    Metric("camlake_workers", "gauge", "Workers that are ready, and those that start or wait for room.", ("state",)),
    Metric("camlake_eta_seconds", "gauge", "Seconds that the rest is expected to take; from the first commit on."),
    Metric("camlake_last_commit_timestamp_seconds", "gauge", "Unix time of the run's last commit."),
    Metric(
        "camlake_gpu_memory_allocated_bytes",
        "gauge",
        "GPU memory that a worker's tensors hold; where workers have GPUs.",
        ("worker",),
    ),
    Metric(
        "camlake_gpu_memory_peak_bytes",
        "gauge",
        "The most that a worker's tensors have held; where workers have GPUs.",
        ("worker",),
    ),
    Metric("camlake_audit_maps_total", "counter", "Maps that an audit has seen; run_id is that of the lake."),
    Metric("camlake_audit_parts_total", "counter", "Parts that an audit has written; run_id is that of the lake."),
)


class Recorder:
    """Records the metrics of one run; this process must be connected to Ray."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics

        self._run = {"run_id": run_id}
        self._made: dict[str, Any] = {}
        for each in METRICS:
            given: dict[str, Any] = {"description": each.about, "tag_keys": ("run_id", *each.labels)}
            if each.kind == "histogram":
                made = metrics.Histogram(each.name, boundaries=list(BUCKETS), **given)
            else:
                made = (metrics.Counter if each.kind == "counter" else metrics.Gauge)(each.name, **given)
            self._made[each.name] = made

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter; of nothing there is no series."""
        if value > 0:
            self._made[name].inc(value, {**self._run, **labels})

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._made[name].set(value, {**self._run, **labels})

    def observe(self, name: str, value: float) -> None:
        """Add an observation to a histogram."""
        self._made[name].observe(value, self._run)


class MetricsMonitor:
    """The dispatcher's monitor that records metrics.

    Args:
        recorder: of the run.
        progress: is told the same, before; gives what is left, and the expected time.
    """

    def __init__(self, recorder: Recorder, progress: ProgressMonitor) -> None:
        self._recorder = recorder
        self._progress = progress
        self._images = 0
        self._last_commit: float | None = None

    def worker_ready(self, info: WorkerInfo) -> None:
        """Nothing: :meth:`pool` counts workers."""

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        """A worker died."""
        self._recorder.add("camlake_worker_deaths_total", 1, reason=kind)

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        """Workers have no place yet: the gauge of workers by state tells."""

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        add = self._recorder.add
        for status, count in outcome.images.items():
            add("camlake_images_total", count, status=status)
        add("camlake_maps_total", outcome.maps)
        add("camlake_written_bytes_total", outcome.bytes)
        add("camlake_units_total", 1, result="committed")
        for stage, seconds in outcome.seconds.items():
            if stage != "total":
                add("camlake_stage_seconds_total", seconds, stage=stage)
        self._recorder.observe("camlake_unit_seconds", outcome.seconds.get("total", 0.0))
        self._last_commit = time.time()

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""
        if final:
            self._recorder.add("camlake_units_total", 1, result="quarantined")
        else:
            self._recorder.add("camlake_retries_total", 1, reason=attempt.kind)

    def in_progress(self, images: int) -> None:
        """Images explained in units that are not committed yet."""
        self._images = images

    def pool(self, pool: Pool) -> None:
        """The workers, each second: the time to set the gauges, or they age out."""
        put = self._recorder.set
        put("camlake_units_planned", self._progress.units)
        put("camlake_units_left", self._progress.left)
        put("camlake_units_in_flight", pool.in_flight)
        put("camlake_images_in_progress", self._images)
        put("camlake_workers", pool.ready, state="ready")
        put("camlake_workers", pool.starting, state="starting")
        if (eta := self._progress.eta()) is not None:
            put("camlake_eta_seconds", eta)
        if self._last_commit is not None:
            put("camlake_last_commit_timestamp_seconds", self._last_commit)
        for worker, (allocated, peak) in pool.gpu_memory.items():
            put("camlake_gpu_memory_allocated_bytes", allocated, worker=worker)
            put("camlake_gpu_memory_peak_bytes", peak, worker=worker)


class Monitors:
    """Tells several monitors the same, in their order."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = monitors

    def worker_ready(self, info: WorkerInfo) -> None:
        """A worker has loaded its replica."""
        for each in self._monitors:
            each.worker_ready(info)

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        """A worker died."""
        for each in self._monitors:
            each.worker_lost(name, reason, kind)

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        """Workers have no place yet."""
        for each in self._monitors:
            each.workers_waiting(waiting, workers, wanted)

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        for each in self._monitors:
            each.unit_done(outcome)

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""
        for each in self._monitors:
            each.unit_failed(unit, attempt, final)

    def in_progress(self, images: int) -> None:
        """Images explained in units that are not committed yet."""
        for each in self._monitors:
            each.in_progress(images)

    def pool(self, pool: Pool) -> None:
        """The workers, each second."""
        for each in self._monitors:
            each.pool(pool)
