"""``camlake plan``: what a job will cost, before anything is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated, Any

import torch
import typer

from jobs.config import absolute, load_any_job
from jobs.run import main_of, plain_errors
from pipeline.engine.clock import StageClock
from pipeline.engine.progress import clock_time, megabytes
from pipeline.engine.targets import in_words
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import arrays
from pipeline.lake.sink import UnitResult
from pipeline.pseudolabels.names import check_plan
from pipeline.pseudolabels.result import LabelResult
from pipeline.sources import open_source
from pipeline.sources.base import Sample
from schemas.errors import InputError
from schemas.job import Job
from schemas.label_job import LabelJob
from schemas.unit import Unit

#: A single image that takes longer is sample enough.
_LONG_SECONDS = 5.0
#: Bytes of a row of the maps table, compressed; of the labels table without its run-length code.
_ROW_BYTES = 60
#: Stages in which a worker does nothing else, of labels more than one.
_COMPUTE = ("compute", "refine", "write")
_FORWARDS = {"map": "clean, noised and masked", "label": "scales, mirror images, noised and masked"}


@dataclass(frozen=True)
class Sampled:
    """What a few images of the first unit told. Times in seconds, sizes in bytes.

    ``maps`` are rows of the maps table, or of the labels table.
    """

    images: int
    explained: int
    failed: dict[str, int]
    encoded_bytes: int
    maps: int
    map_bytes: int
    forwards: int
    read_decode_seconds: float
    compute_seconds: float
    device: str


@dataclass(frozen=True)
class Totals:
    """Sums over the plan; ``images`` is None where only reading the shards would tell."""

    units: int
    bytes: int | None
    images: int | None


def plan(
    job_file: Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file; any fsspec URI.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field: --set targets.top_k=3")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Images to explain here for the timing.")] = 16,
) -> None:
    """Check a job and print what it will cost: units, images, forwards, hours, bytes. Writes nothing.

    With a section pseudo_labels it is a job of labels, as 'camlake pseudo-labels' runs it.

    Exit codes: 0 the job can run; 2 wrong input.
    """
    with plain_errors():
        estimate(absolute(load_any_job(job_file, overrides)), sample)


def estimate(job: Job, sample: int) -> None:
    """Print the estimate for a job, from its plan and a few of its images."""
    on_gpu = job.workers.gpus > 0 and torch.cuda.is_available()
    worker = AttributionWorker(job, None, "plan", device="cuda" if on_gpu else "cpu")
    worker.start()
    if isinstance(job, LabelJob):
        check_plan(lambda: open_source(job.source).plan(), job.source)
    units = worker.source.plan()
    first = next(units, None)
    if first is None:
        raise InputError(f"source.uri: {', '.join(job.source.uris)} holds no unit; check the pattern")
    totals = _totals(first, units)
    info = worker.replica.info()
    print(f"model     {info.name} on {worker.replica.device}, {info.num_classes} classes, {info.precision}")
    for layer in info.layers:
        print(f"layer     {layer.name}: {layer.channels} channels on a grid of {layer.height}x{layer.width}")
    print(f"targets   {in_words(job.targets, info.num_classes)}")
    measured = _measure(job, worker, first, sample)
    images = totals.images or _images(totals, measured, sample)
    about = "" if totals.images else "about "
    size = "" if totals.bytes is None else f", {megabytes(totals.bytes)}"
    print(f"inputs    {totals.units} units, {about}{images} images{size}")
    failed = ", ".join(f"{count} {status}" for status, count in measured.failed.items())
    print(f"sample    {measured.images} images of unit {first.unit_id}" + (f"; of them {failed}" if failed else ""))
    if not measured.explained:
        raise InputError(
            f"none of the {measured.images} sampled images of unit {first.unit_id} could be explained ({failed}); "
            "look at source.format, source.label and the files"
        )
    each = measured.maps / measured.explained
    row = "label" if isinstance(job, LabelJob) else "map"
    print(f"{row + 's':9s} {each:.1f} per image of {', '.join(sorted({method.key for method in job.methods}))}")
    if isinstance(job, LabelJob):
        print(f"from      {how_made(job)}")
    print(f"forwards  {measured.forwards / measured.explained:.1f} per image ({_FORWARDS[row]}; padding counted)")
    seconds = max(measured.compute_seconds, measured.read_decode_seconds / job.compute.decode_threads)
    per_image = seconds / measured.explained
    hours = images * per_image / 3600
    print(
        f"timing    {per_image * 1000:.1f} ms per image on {measured.device} "
        f"(compute {measured.compute_seconds / measured.explained * 1000:.1f}, read and decode "
        f"{measured.read_decode_seconds / measured.images * 1000:.1f} on {job.compute.decode_threads} threads)"
    )
    for count in sorted({job.workers.min, job.workers.max}):
        print(f"time      {clock_time(hours * 3600 / count)} ({hours / count:.2f} h) on {count} such worker(s)")
    if job.workers.gpus > 0 and not on_gpu:
        print("note      timed on the CPU, as no GPU is here; GPU workers will be many times faster")
    total = images * measured.map_bytes / measured.explained
    if isinstance(job, LabelJob):
        size = f"{measured.map_bytes / measured.explained:.0f} bytes per image with its rows"
    else:
        size = f"{measured.map_bytes / max(measured.maps, 1):.0f} bytes per map with its row"
    print(f"output    about {round(images * each)} {row}s, {megabytes(total)} in {job.output.uri} ({size})")


def how_made(job: LabelJob) -> str:
    """Say in words what labels are made of."""
    settings = job.pseudo_labels
    scales = ", ".join(f"{scale:g}" for scale in settings.scales)
    mirrored = "with mirror images" if settings.flip else "without mirror images"
    refined = "not refined" if settings.refine.method == "none" else f"refined by {settings.refine.method}"
    return f"scales {scales}, {mirrored}; background rule {settings.background.rule}; {refined}"


def _images(totals: Totals, measured: Sampled, sample: int) -> int:
    """Estimate the number of images from the bytes of the shards, or of units that are as large as the first."""
    if measured.images < sample or totals.bytes is None:
        return totals.units * measured.images
    # A sample of a tar takes two headers and paddings besides the image, some 1.5 kB.
    return round(totals.bytes / (measured.encoded_bytes / measured.images + 1536))


def _measure(job: Job, worker: AttributionWorker, unit: Unit, sample: int) -> Sampled:
    """Explain a few images of ``unit``: one alone first, and ``sample`` of them unless that one took long."""
    measured = _explain(job, worker, unit, 1)
    if measured.compute_seconds > _LONG_SECONDS or sample == 1:
        return measured
    return _explain(job, worker, unit, sample)


def _explain(job: Job, worker: AttributionWorker, unit: Unit, count: int) -> Sampled:
    rows = 0

    def counted(module: object, inputs: tuple[Any, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    size = min(job.compute.batch_size, count)
    worker.use(job.model_copy(update={"compute": job.compute.model_copy(update={"batch_size": size})}))
    clock = StageClock()
    samples = list(islice(_timed(worker.source.read(unit), clock), count))
    encoded = sum(len(sample.data or b"") for sample in samples)
    hook = worker.replica.model.register_forward_pre_hook(counted)
    work = worker.explainer.unit()
    try:
        work.add_all(worker.prepared(iter(samples), clock), clock)
        result = work.result(unit.unit_id, "plan", "plan", {})
        number, stored = _stored(job, result)
    finally:
        hook.remove()
        work.close()
    statuses = Counter(str(row["status"]) for row in result.images)
    explained = statuses.pop("ok", 0)
    seconds = clock.seconds()
    return Sampled(
        images=len(samples),
        explained=explained,
        failed=dict(statuses),
        encoded_bytes=encoded,
        maps=number,
        map_bytes=stored + number * _ROW_BYTES,
        forwards=rows,
        read_decode_seconds=seconds["read"] + seconds["decode"],
        compute_seconds=sum(seconds.get(stage, 0.0) for stage in _COMPUTE),
        device=str(worker.replica.device),
    )


def _stored(job: Job, result: UnitResult) -> tuple[int, int]:
    """Return how many maps or labels a result has, and the bytes that the lake would store of them, without rows."""
    if isinstance(result, LabelResult):
        codes = [code or "" for image in result.labels for code in image.rows["rle_counts"].to_pylist()]
        files = sum(piece.size for image in result.labels for piece in image.files.values())
        return len(codes), files + sum(map(len, codes))
    stored = 0
    for maps in result.map_sets:
        values, _ = arrays.quantise(maps.maps, job.output.dtype, maps.signed)
        stored += sum(len(data) for name, data in arrays.encode(values, {}).items() if name != arrays.METADATA)
    return sum(len(maps.targets) for maps in result.map_sets), stored


def _timed(samples: Iterator[Sample], clock: StageClock) -> Iterator[Sample]:
    while True:
        with clock.measure("read"):
            sample = next(samples, None)
        if sample is None:
            return
        yield sample


def _totals(first: Unit, rest: Iterator[Unit]) -> Totals:
    units, size, images = 0, 0, 0
    sized = counted = True
    for unit in chain([first], rest):
        units += 1
        sized = sized and unit.byte_size is not None
        counted = counted and unit.images is not None
        size += unit.byte_size or 0
        images += unit.images or 0
    return Totals(units, size if sized else None, images if counted else None)


if __name__ == "__main__":
    main_of(plan)
