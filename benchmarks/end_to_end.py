"""The whole job (read, decode, compute, write) against its compute core alone.

    python -m benchmarks.end_to_end [--weights URI] [--images GLOB] [--threads 2] [--json FILE]

The job is the real one: Ray, one worker, shards and lake on local disk, and both in an S3-compatible server on this
machine. The core is the same Attributor on tensors that are decoded and preprocessed already,
in a process that keeps freed memory as a worker's does. Both are timed over the
same images: those of all shards but the first, which for the job is the time from the first commit to the last, so
that the start of Ray and the loading of the model do not count. A ratio of 0.9 says that the job runs at 90% of the
core's speed. The S3 server takes its share of the same cores.
"""

from __future__ import annotations

import argparse
import io
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from PIL import Image
from torch import Tensor

from benchmarks.apart import process
from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import (
    add_model_options,
    command,
    encoded_images,
    generated_images,
    make_parser,
    model_config,
    positive,
    say,
    title,
)
from pipeline.cam.base import MapBatch
from pipeline.cam.fusion import scaled_by_maximum
from pipeline.engine.allocator import ALLOCATOR
from pipeline.engine.clock import STAGES
from pipeline.engine.explain import build_attributor
from pipeline.engine.outcome import Outcome, Tally
from pipeline.engine.progress import ProgressMonitor
from pipeline.engine.run import RunResult, attribute
from pipeline.lake import open_lake
from pipeline.models.replica import Replica, load_replica
from pipeline.sources.decode import decode
from schemas.errors import CamlakeError
from schemas.job import Compute, Job, Output, Source, Targets, Workers
from schemas.methods import MethodEntry

#: Maps by (image, class), scaled to a largest absolute value of 1.
Maps = dict[tuple[int, int], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a job reads and writes: ``shards`` are URIs; ``lake`` returns a fresh one each time."""

    name: str
    shards: list[str]
    lake: Callable[[], str]
    storage_options: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A job's method, model and images (encoded, one list per shard)."""

    name: str
    method: str
    model: str
    shards: list[list[bytes]]

    @property
    def timed(self) -> int:
        """Images that count: all but the first shard's."""
        return sum(len(shard) for shard in self.shards[1:])


class Stopwatch(ProgressMonitor):
    """The job's progress monitor, which also keeps the time of each commit."""

    def __init__(self, units: int, before: Tally, stream: TextIO | None = None) -> None:
        super().__init__(units, before, stream)
        self.commits: list[float] = []

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""
        self.commits.append(time.perf_counter())
        super().unit_done(outcome)


@dataclass(frozen=True)
class JobRun:
    """A finished job."""

    result: RunResult
    seconds: float
    lake: str


def make_job(work: Work, place: Place, lake: str, options: argparse.Namespace) -> Job:
    """Return the job of a work at a place: one worker with all threads."""
    threads = torch.get_num_threads()
    entry: MethodEntry = {"name": work.method}  # type: ignore[assignment]  # validated into a specification
    return Job(
        source=Source(uri=place.shards, format="webdataset", storage_options=place.storage_options),
        model=model_config(work.model, options),
        targets=Targets(predicted=True),
        methods=[entry],
        output=Output(uri=lake, storage_options=place.storage_options),
        workers=Workers(max=1, cpus=threads),
        compute=Compute(
            batch_size=min(options.batch_size, max(len(shard) for shard in work.shards)),
            mask_batch=options.mask_batch,
            threads=threads,
            decode_threads=threads,
        ),
    )


def connect() -> None:
    """Start a local Ray that has room for the worker, where none runs."""
    import ray

    if not ray.is_initialized():
        cpus = torch.get_num_threads()
        ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def job_run(work: Work, place: Place, options: argparse.Namespace) -> JobRun:
    """Run the whole job into a fresh lake.

    Raises:
        CamlakeError: an image failed, or the job was interrupted.
    """
    lake, threads = place.lake(), torch.get_num_threads()
    job = make_job(work, place, lake, options)
    result = attribute(job, connect, say=lambda line: None, stream=io.StringIO(), monitor=Stopwatch)
    torch.set_num_threads(threads)
    if result.success is None:
        raise CamlakeError(f"the job '{work.name}' on {place.name} was interrupted; run the benchmark again")
    if result.monitor.done.failed_images or result.success.quarantined:
        raise CamlakeError(f"the job '{work.name}' on {place.name} did not explain every image; see its lake {lake}")
    assert isinstance(result.monitor, Stopwatch)
    commits = result.monitor.commits
    return JobRun(result, commits[-1] - commits[0], lake)


def core(work: Work, job: Job, replica: Replica) -> Callable[[], Maps]:
    """Return the compute core over the images of all shards but the first, a session per shard as the job has it."""
    attributor = build_attributor(job, replica, job.compute.batch_size)
    size = job.compute.batch_size
    shards = [torch.stack([replica.preprocess(decode(data).pixels)[0] for data in shard]) for shard in work.shards[1:]]
    firsts = [len(work.shards[0])]
    for shard in work.shards[1:-1]:
        firsts.append(firsts[-1] + len(shard))

    def run() -> Maps:
        found: Maps = {}
        for first, images in zip(firsts, shards, strict=True):
            session = attributor.session()
            batches: list[MapBatch] = []
            for part in torch.split(images, size):
                batches += session.add(part).maps
            for batch in batches + session.finish():
                scaled = scaled_by_maximum(batch.maps)
                for image, target, maps in zip(batch.image.tolist(), batch.target.tolist(), scaled, strict=True):
                    found[first + image, target] = maps
        return found

    return run


def core_alone(work: Work, job: Job) -> list[Contestant]:
    """Return the core, for a process that has the settings of a worker's."""
    return [Contestant("core", core(work, job, load_replica(job.model)))]


def lake_maps(lake: str, storage_options: dict[str, Any]) -> Maps:
    """Read all maps of a lake, scaled."""
    found: Maps = {}
    for row, values in open_lake(lake, storage_options).heatmaps(scaled=True):
        number = re.search(r"image-(\d+)", row["image_id"])
        assert number is not None
        found[int(number.group(1)), row["target_class"]] = torch.from_numpy(values.copy())
    return found


def difference(core_maps: Maps, stored: Maps) -> float:
    """Largest difference of a stored map from the core's; storing rounds to float16.

    Raises:
        CamlakeError: a map is missing.
    """
    missing = [key for key in core_maps if key not in stored]
    if missing:
        raise CamlakeError(
            f"the lake lacks {len(missing)} of {len(core_maps)} maps, such as (image, class) {missing[0]}"
        )
    return max(float((maps - stored[key]).abs().max()) for key, maps in core_maps.items())


def write_shards(shards: list[list[bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of WebDataset tars with the images in order."""
    number = 0
    for index, images in enumerate(shards):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for data in images:
                suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
                member = tarfile.TarInfo(f"image-{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                number += 1
        yield f"shard-{index:06d}.tar", buffer.getvalue()


def generated_jpegs(count: int) -> list[bytes]:
    """Return JPEG files of smooth random fields with some grain, of the usual 500x375 pixels."""
    generator = torch.Generator().manual_seed(1)
    files = []
    for field in generated_images(count, (375, 500)):
        pixels = field * 50 + 128 + 8 * torch.randn(field.shape, generator=generator)
        array = pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "jpeg", quality=90)
        files.append(buffer.getvalue())
    return files


def make_work(options: argparse.Namespace) -> list[Work]:
    """Return both works with their images."""
    count = max(options.count, options.score_count)
    data = encoded_images(options.images, count) if options.images else generated_jpegs(count)

    def shards(total: int, each: int) -> list[list[bytes]]:
        return [data[start : min(start + each, total)] for start in range(0, total, each)]

    grad_cam = shards(options.count, options.shard_images)
    score_cam = shards(options.score_count, 1)
    return [
        Work(f"Grad-CAM, {title(options.model)}", "grad_cam", options.model, grad_cam),
        Work(f"Score-CAM, {title(options.score_model)}", "score_cam", options.score_model, score_cam),
    ]


def places(work: Work, folder: Path, s3: Any) -> list[Place]:
    """Write a work's shards to local disk, and to a bucket where there is a server."""
    names = []
    files = dict(write_shards(work.shards))
    home = Path(tempfile.mkdtemp(dir=folder))
    for name, data in files.items():
        (home / name).write_bytes(data)
        names.append(str(home / name))
    found = [Place("local disk", names, lambda: tempfile.mkdtemp(prefix="lake-", dir=home), {})]
    if s3 is not None:
        bucket = s3.store()
        uris = [bucket.put(f"shards/{name}", data) for name, data in files.items()]
        lakes = iter(range(10**6))
        found.append(Place("S3 server", uris, lambda: bucket.url(f"lake-{next(lakes)}"), bucket.storage_options))
    return found


def s3_server(stack: ExitStack) -> Any:
    """Start an S3-compatible server until ``stack`` closes; None, and a line that says so, where moto is missing."""
    try:
        from tests.s3_server import S3Server
    except ImportError as error:
        say(f"no S3-compatible server ({error}), its rows are left out; pip install 'camlake[test]'")
        return None
    server = S3Server()
    stack.callback(server.stop)
    return server


def run(options: argparse.Namespace) -> Report:
    """Time both works at each place."""
    import ray

    if options.count <= options.shard_images or options.score_count < 2:
        raise CamlakeError("the first shard does not count, so two are needed: raise --count or --score-count")
    report = Report()
    started = not ray.is_initialized()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        server = None if options.no_s3 else s3_server(stack)
        if started:
            stack.callback(ray.shutdown)
        for work in make_work(options):
            measure(work, places(work, folder, server), options, report)
    return report


def measure(work: Work, where: list[Place], options: argparse.Namespace, report: Report) -> None:
    """Time a work's core and its jobs in alternation, and add the rows."""
    job = make_job(work, where[0], where[0].lake(), options)
    # A worker is a fresh process each time, so there is nothing to warm up.
    jobs = [
        Contestant(place.name, partial(job_run, work, place, options), lambda: None, lambda run: run.seconds)
        for place in where
    ]
    with process(partial(core_alone, work, job), ALLOCATOR) as cores:
        timings = alternate([*cores, *jobs], options.repeats, say=lambda line: say(f"{work.name}: {line}"))
    core_s = timings["core"].median
    for place in where:
        timing = timings[place.name]
        finished: JobRun = timing.result
        same = difference(timings["core"].result, lake_maps(finished.lake, place.storage_options))
        report.rows.append(
            Row(f"{work.name}, {work.timed} images, {place.name}", "core alone", timing.median, core_s, same)
        )
        report.notes.append(
            f"{work.name}, {place.name}: {work.timed / timing.median:.2f} images/s, core alone "
            f"{work.timed / core_s:.2f} images/s"
        )
        for worker, seconds in sorted(finished.result.monitor.seconds.items()):
            stages = ", ".join(f"{stage} {seconds[stage]:.2f}" for stage in STAGES)
            report.notes.append(f"{work.name}, {place.name}, {worker} seconds over all shards: {stages}")


PARSER = make_parser("end_to_end", __doc__, repeats=3)
PARSER.add_argument("--model", default="resnet50", help="of Grad-CAM; torchvision name (default: %(default)s)")
PARSER.add_argument("--score-model", default="resnet18", help="of Score-CAM (default: %(default)s)")
PARSER.add_argument("--score-count", type=positive, default=3, help="images for Score-CAM (default: %(default)s)")
PARSER.add_argument("--shard-images", type=positive, default=32, help="images per shard (default: %(default)s)")
PARSER.add_argument("--batch-size", type=positive, default=16, help="images per forward (default: %(default)s)")
PARSER.add_argument("--mask-batch", type=positive, default=32, help="masked images per forward (default: %(default)s)")
PARSER.add_argument("--no-s3", action="store_true", help="leave the S3-compatible server out")
add_model_options(PARSER, count=128)
main = command("benchmarks.end_to_end", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
