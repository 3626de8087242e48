"""Peak memory of the compute core: bounded by the chunk, whatever the channels, the images and the classes.

    python -m benchmarks.memory [--model resnet18] [--weights URI] [--size 224] [--mask-batch 16] [--batch-size 8]

Every case runs in a fresh process, which loads the model, explains one image with Grad-CAM, and then measures by how
much its peak resident memory grows over the case. Images come batch by batch and maps are dropped as they come, as a
job that writes them does; the cases go round in the --count images. grad-cam's Score-CAM, where it is installed,
shows what holding all masks of an image takes. Unless --size is given, the input is 128x128: that takes minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Report, machine
from benchmarks.inputs import (
    add_model_options,
    command,
    load_images,
    load_subject,
    make_parser,
    model_config,
    positive,
    say,
    title,
)
from benchmarks.peers import GradCamPackage, installed, quiet
from pipeline.attributor import Attributor
from pipeline.cam.selection import TargetSelector
from pipeline.models.replica import Replica, load_replica
from schemas.errors import CamlakeError
from schemas.job import Targets

SCORE_CAM, GRADIENT, SMOOTH = "Score-CAM", "five gradient methods", "Smooth Grad-CAM++"
PEER = "grad-cam's Score-CAM"
METHODS: dict[str, list[Any]] = {
    SCORE_CAM: ["score_cam"],
    GRADIENT: ["grad_cam", "grad_cam_pp", "hires_cam", "layer_cam", "xgrad_cam"],
    SMOOTH: [{"name": "smooth_grad_cam_pp", "samples": 2}],
}
#: Masked images per forward of grad-cam, which has no option for it.
PEER_CHUNK = 16
#: Has glibc give freed blocks back at once: the peak is then what is held, without the gaps of its heap.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    """What one process computes. ``batch_size`` is images per pass, ``mask_batch`` masked images per forward."""

    work: str
    layer: str
    images: int = 1
    targets: int = 1
    batch_size: int | None = None
    mask_batch: int | None = None


@dataclass(frozen=True)
class Peak:
    """What a case took: ``peak_mb`` is the growth of peak resident memory in MB (10^6 bytes)."""

    work: str
    images: int
    channels: int
    targets: int
    batch_size: int | None
    mask_batch: int | None
    peak_mb: float


@dataclass
class MemoryReport(Report):
    """A report whose rows are peaks instead of seconds."""

    peaks: list[Peak] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The report as the JSON file has it."""
        return {"machine": machine(), "rows": [asdict(peak) for peak in self.peaks], "notes": self.notes, **self.extra}

    def table(self) -> str:
        """The report for people."""
        width = max([len("work"), *(len(peak.work) for peak in self.peaks)])
        heads = ("images", "channels", "targets", "batch", "masks", "peak MB")
        lines = [f"Machine: {machine()}", "", f"{'work':<{width}}" + "".join(f"{head:>10}" for head in heads)]
        for peak in self.peaks:
            sizes = (peak.images, peak.channels, peak.targets, peak.batch_size or "-", peak.mask_batch or "-")
            lines.append(f"{peak.work:<{width}}" + "".join(f"{size:>10}" for size in sizes) + f"{peak.peak_mb:>10.1f}")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)])


def cases(options: argparse.Namespace, peer: bool) -> Iterator[Case]:
    """Yield the cases: each sweep changes one size and keeps the others."""
    few, many = options.layers
    score = partial(Case, SCORE_CAM, batch_size=options.batch_size)
    gradient = partial(Case, GRADIENT, few)
    chunk, batch = options.mask_batch, options.batch_size
    for images in (1, 2, 4):
        yield score(few, images, mask_batch=chunk)
    yield score(many, mask_batch=chunk)
    yield score(few, targets=10, mask_batch=chunk)
    for other in (max(1, chunk // 2), 2 * chunk):
        yield score(few, mask_batch=other)
    for passes in (1, 4, 16):
        yield gradient(passes * batch, batch_size=batch)
    yield gradient(batch, 10, batch_size=batch)
    for other in (2 * batch, 4 * batch):
        yield gradient(4 * batch, batch_size=other)
    for passes, targets in ((1, 1), (4, 1), (1, 10)):
        yield Case(SMOOTH, few, passes * batch, targets, batch_size=batch)
    if peer:
        for layer, images in ((few, 1), (many, 1), (few, 2)):
            yield Case(PEER, layer, images, mask_batch=PEER_CHUNK)


def measure(case: Case, options: argparse.Namespace, threads: int) -> Peak:
    """Run a case in this process, which must be a fresh one, and return by how much its peak memory grew."""
    torch.set_num_threads(threads)
    config = model_config(options.model, options, [case.layer])
    if case.work == PEER:
        with quiet():
            package, subject = GradCamPackage(), load_subject(config)
            replica, images = subject.replica, load_images(subject.replica, options)
            package.maps(subject.plain, case.layer, "grad_cam", images[:1], [0])
            run: Callable[[], object] = partial(
                package.maps, subject.plain, case.layer, "score_cam", _some(images, 0, case.images), [0] * case.images
            )
            grown = growth(run)
    else:
        replica = load_replica(config)
        images = load_images(replica, options)
        _attributor(replica, Case(GRADIENT, case.layer), ["grad_cam"])(images[:1])
        grown = growth(partial(stream, _attributor(replica, case, METHODS[case.work]), case, images))
    channels = replica.layer_infos[0].channels
    return Peak(case.work, case.images, channels, case.targets, case.batch_size, case.mask_batch, grown / 1e6)


def _attributor(replica: Replica, case: Case, methods: list[Any]) -> Attributor:
    return Attributor(
        replica.model,
        methods,
        layers=replica.layers,
        head=replica.head,
        find_layer=replica.layer,
        batch_size=case.batch_size,
        mask_batch=case.mask_batch or 1,
    )


def stream(attributor: Attributor, case: Case, images: Tensor) -> None:
    """Explain ``case.images`` images in one session, and keep nothing.

    Raises:
        CamlakeError: not every map was given.
    """
    session = attributor.session(TargetSelector(Targets(top_k=case.targets)))
    size = case.batch_size or 1
    maps = 0
    for start in range(0, case.images, size):
        part = _some(images, start, min(size, case.images - start))
        maps += sum(len(batch.maps) for batch in session.add(part, range(start, start + len(part))).maps)
    maps += sum(len(batch.maps) for batch in session.finish())
    expected = case.images * case.targets * len(METHODS[case.work])
    if maps != expected:
        raise CamlakeError(
            f"{case} gave {maps} maps instead of {expected}; give a model of {case.targets} classes or more"
        )


def _some(images: Tensor, start: int, count: int) -> Tensor:
    return images[torch.arange(start, start + count) % len(images)]


def growth(run: Callable[[], object]) -> int:
    """Return by how many bytes the peak resident memory of this process during ``run`` exceeds what it had before.

    Where the kernel does not let the peak be reset (other systems than Linux), it is what exceeds the earlier peak,
    which is less.
    """
    gc.collect()
    # What loading the model left over is given back: the case would grow into it unseen.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        say("the peak of memory cannot be reset here; growth is counted from the peak of loading the model")
    before = peak_bytes()
    run()
    return peak_bytes() - before


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes, since it was reset last."""
    if _STATUS.exists():
        # Not ru_maxrss, which starts at what the parent had.
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(case: Case, options: argparse.Namespace) -> Peak:
    """Return the median peak of a case over ``options.repeats`` processes.

    Raises:
        CamlakeError: the case's process died.
    """
    peaks = []
    for _ in range(options.repeats):
        with environment(MALLOC), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                peaks.append(pool.submit(measure, case, options, torch.get_num_threads()).result())
            except BrokenProcessPool:
                raise CamlakeError(f"the process of {case} died; it may have run out of memory") from None
    median = statistics.median(peak.peak_mb for peak in peaks)
    return Peak(**{**asdict(peaks[0]), "peak_mb": median})


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started inside; what the user has set stays."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def run(options: argparse.Namespace) -> Report:
    """Measure every case and return the rows."""
    report = MemoryReport()
    grad_cam, _ = installed()
    for case in cases(options, peer=grad_cam is not None):
        peak = in_fresh_process(case, options)
        report.peaks.append(peak)
        say(f"{case}: {peak.peak_mb:.1f} MB")
    replica = load_replica(model_config(options.model, options, list(options.layers)))
    height, width = replica.preprocess.input_size
    report.notes += [
        f"{title(options.model)} at {height}x{width}; peak MB is by how many 10^6 bytes resident memory grew, batch is "
        "images per pass, masks is masked images per forward",
        f"{SMOOTH} keeps running sums of gradients per class, up to a fixed size (then it runs its samples again)",
    ]
    for layer in replica.layer_infos:
        masks = layer.channels * height * width * 4 / 1e6
        report.notes.append(
            f"arithmetic, not measured: all {layer.channels} masks of one image at {layer.name} are {masks:.1f} MB at "
            f"the input's resolution, and its masked images {3 * masks:.1f} MB"
        )
    return report


PARSER = make_parser("memory", __doc__, repeats=1)
PARSER.add_argument("--model", default="resnet18", help="torchvision name (default: %(default)s)")
PARSER.add_argument(
    "--layers",
    nargs=2,
    default=["layer2", "layer4"],
    metavar=("FEW", "MANY"),
    help="target layers of few and of many channels (default: layer2 layer4)",
)
PARSER.add_argument("--batch-size", type=positive, default=8, help="images per pass (default: %(default)s)")
PARSER.add_argument("--mask-batch", type=positive, default=16, help="masked images per forward (default: %(default)s)")
add_model_options(PARSER, count=4)
PARSER.set_defaults(size=128)
main = command("benchmarks.memory", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
