"""Exact Score-CAM: ours against grad-cam, torchcam and bare forwards, in one alternating run.

    python -m benchmarks.score_cam [--model resnet18 resnet50 mobilenet_v2] [--weights URI] [--images GLOB]

The limit is one bare forward per *distinct* mask: the same network in its fastest form (batch norm folded,
channels-last, compiled) over masked images that are ready. Each peer is compared with ours in its convention.
Ours and
the limit run in a process that keeps freed memory, as a job's workers do, the peers in one with malloc's defaults.
On a CPU a round takes minutes, so there is one image and one round unless more are asked for.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.apart import gathered
from benchmarks.harness import Contestant, Report, Row, Timing, alternate
from benchmarks.inputs import (
    APART_NOTE,
    CLOCKS,
    CPU_NOTE,
    Subject,
    add_clock_option,
    add_form_option,
    add_model_options,
    add_process_option,
    bare_forward,
    command,
    fastest,
    load_images,
    load_subject,
    make_parser,
    model_config,
    places,
    positive,
    say,
    title,
    top_classes,
)
from benchmarks.peers import Peer, agreement, installed, quiet
from pipeline.attributor import Attributor
from pipeline.cam.masks import distinct_masks
from pipeline.models.optimise import outputs

LIMIT = "bare forwards"
TARGETS = 5
#: Chunks of masked images that the bare forwards go round in; together more than a cache holds.
POOL = 6

ONE_WORK = "Score-CAM exact, one class"
FIVE_WORK = "Score-CAM exact, five classes"
#: Ours with one saving left out each, and with none.
LEVERS: dict[str, dict[str, bool]] = {
    "ours without the stem's linearity": {"stem": False},
    "ours without torch.compile": {"compile": False},
    "ours without Winograd's method": {"winograd": False},
    "ours without any of these": {"compile": False, "stem": False, "winograd": False},
}
CONVENTIONS = {"grad-cam": "grad_cam", "torchcam": "torchcam"}


@dataclass(frozen=True)
class Case:
    """What all contestants are given.

    ``masks`` are the distinct ones of all images, ``chunk`` is masks per forward.
    ``window`` is the mean share of the image that the bounding box of a mask's support covers.
    """

    subject: Subject
    images: Tensor
    targets: list[list[int]]
    channels: int
    masks: int
    chunk: int
    pool: list[Tensor]
    eager: bool
    window: float

    def make_forward(self) -> Callable[[Tensor], Tensor]:
        """Return the bare forward, compiled unless it is to be eager."""
        return fastest(self.subject.replica.model, self.pool[0], self.eager)

    @property
    def predicted(self) -> list[int]:
        """One class per image."""
        return [classes[0] for classes in self.targets]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return (self.images.shape[-2], self.images.shape[-1])


def make_case(subject: Subject, images: Tensor, chunk: int, eager: bool = True) -> Case:
    """Count the distinct masks, and make masked images for the bare forwards.

    The null mask counts once for all images.
    """
    _, grids = outputs(subject.replica.model, subject.replica.layers, images)
    activation = grids[subject.layer]
    sets = distinct_masks(activation)
    masks = sum(len(each.grids) for each in sets) + any(each.has_null for each in sets)
    size = images.shape[-2:]

    def masked() -> Iterator[Tensor]:
        for image, each in zip(images, sets, strict=True):
            for grid in torch.split(each.grids, chunk):
                large = functional.interpolate(grid[:, None], size, mode="bilinear", align_corners=False)
                if len(large) == chunk:
                    yield (image * large).contiguous(memory_format=torch.channels_last)

    windows = torch.cat(
        [_windows(grid, (size[0], size[1])) for each in sets for grid in torch.split(each.grids, chunk)]
    )
    pool = [part for part, _ in zip(masked(), range(POOL), strict=False)]
    if not pool:
        pool = [images[:1].expand(chunk, -1, -1, -1).contiguous(memory_format=torch.channels_last)]
    targets = top_classes(subject.replica.model, images, TARGETS)
    return Case(subject, images, targets, activation.shape[1], masks, chunk, pool, eager, float(windows.mean()))


def _windows(grids: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the share of the image that the bounding box of each mask (n, h, w) covers once it is enlarged."""
    support = functional.interpolate(grids[:, None], size, mode="bilinear", align_corners=False)[:, 0] > 0
    share = torch.ones(len(grids))
    for axis in (1, 2):
        along = support.any(axis).float()
        reach = along.shape[1] - along.argmax(1) - along.flip(1).argmax(1)
        share = share * torch.where(along.any(1), reach, 0) / along.shape[1]
    return share


def bare(case: Case, forward: Callable[[Tensor], Tensor]) -> Callable[[], int]:
    """Return bare forwards for as many masked images as there are distinct masks; the last is filled up, as ours is."""

    def run() -> int:
        forwards = -(-case.masks // case.chunk)
        for number in range(forwards):
            forward(case.pool[number % len(case.pool)])
        return forwards

    return run


def ours(case: Case, convention: str, *, compile: bool = True, stem: bool = True) -> Attributor:
    """Return our Score-CAM in a peer's convention."""
    return case.subject.attributor(
        [{"name": "score_cam", "convention": convention}],
        mask_batch=case.chunk,
        batch_size=len(case.images),
        compile=compile and not case.eager,
        stem=stem,
    )


def theirs(case: Case, peer: Peer, ranks: int) -> Callable[[], Tensor]:
    """Return a peer's Score-CAM of the first ``ranks`` classes; image by image, since it holds all masks at once.

    What it returns are the maps of the first class.
    """
    model: nn.Module = copy.deepcopy(case.subject.plain)

    def run() -> Tensor:
        found = []
        for rank in range(ranks):
            for image, classes in zip(case.images, case.targets, strict=True):
                maps = peer.maps(model, case.subject.layer, "score_cam", image[None], [classes[rank]])
                if rank == 0:
                    found.append(maps)
        return torch.cat(found)

    return run


def prepare(model: str, options: argparse.Namespace, *, winograd: bool = True) -> Case:
    """Return what all contestants are given; equal in every process."""
    subject = load_subject(model_config(model, options), winograd=winograd)
    return make_case(subject, load_images(subject.replica, options), options.mask_batch, options.eager)


def our_contestants(model: str, options: argparse.Namespace) -> list[Contestant]:
    """Return the bare forwards and ours."""
    case = prepare(model, options)
    forward = case.make_forward()

    def mine(name: str, convention: str, targets: list[list[int]], winograd: bool = True, **form: bool) -> Contestant:
        attributor = ours(case if winograd else prepare(model, options, winograd=False), convention, **form)
        return Contestant(name, lambda: attributor(case.images, targets), lambda: attributor.warm_up(case.size))

    one = [[target] for target in case.predicted]
    found = [Contestant(LIMIT, bare(case, forward), lambda: forward(case.pool[0]))]
    found += [mine(f"{ONE_WORK} {convention}", convention, one) for convention in CONVENTIONS.values()]
    found.append(mine(FIVE_WORK, "torchcam", case.targets))
    if options.levers:
        found += [mine(name, "torchcam", one, **form) for name, form in LEVERS.items()]
    return found


def peer_contestants(model: str, options: argparse.Namespace) -> list[Contestant]:
    """Return the peers; a chunk of forwards is warm-up enough where a run takes minutes."""
    case = prepare(model, options)

    def warm_up() -> Tensor:
        return bare_forward(case.subject.plain, case.pool[0].contiguous())

    found = []
    for peer in (peer for peer in installed() if peer is not None):
        found.append(Contestant(f"{peer.name} one", theirs(case, peer, 1), warm_up))
        if options.all_passes:
            found.append(Contestant(f"{peer.name} all", theirs(case, peer, len(case.targets[0])), warm_up))
    return found


def add_rows(report: Report, case: Case, peers: list[Peer], timings: dict[str, Timing], name: str) -> None:
    """Add a model's rows: against the peers, and against the limit."""
    five, bare_s = timings[FIVE_WORK], timings[LIMIT].median
    one_ours = timings[f"{ONE_WORK} torchcam"]
    first = places(five.result.selection, case.predicted)
    for peer in peers:
        mine, other = timings[f"{ONE_WORK} {CONVENTIONS[peer.name]}"], timings[f"{peer.name} one"]
        same = agreement(peer, mine.result["score_cam"], other.result, case.size)
        report.rows.append(Row(f"{ONE_WORK}: {name}", peer.name, mine.median, other.median, same))
        passes = timings.get(f"{peer.name} all")
        seconds = passes.median if passes else len(case.targets[0]) * other.median
        # The five classes are computed in torchcam's convention; another peer's maps are another convention's.
        among = agreement(peer, five.result["score_cam"][first], other.result, case.size)
        report.rows.append(
            Row(f"{FIVE_WORK}: {name}", peer.name, five.median, seconds, among if peer.name == "torchcam" else None)
        )
    report.rows += [
        Row(f"{ONE_WORK}: {name}", f"{case.masks} {LIMIT}", one_ours.median, bare_s),
        Row(f"{FIVE_WORK}: {name}", f"{case.masks} {LIMIT}", five.median, bare_s),
    ]
    report.rows += [
        Row(f"{ONE_WORK}: {name}", lever, one_ours.median, timings[lever].median)
        for lever in LEVERS
        if lever in timings
    ]
    total = case.channels * len(case.images)
    report.notes.append(
        f"{name} at {case.subject.layer}: {total} channels of {len(case.images)} image(s), {case.masks} distinct masks "
        f"({total / case.masks:.2f} channels per mask; their supports' bounding boxes cover {case.window:.0%} of the "
        f"image), {case.masks / bare_s:.1f} bare forwards/s in chunks of "
        f"{case.chunk}, {case.masks / one_ours.median:.1f} masks/s ours"
    )


def run(options: argparse.Namespace) -> Report:
    """Time all contestants for each model and return the rows."""
    report = Report()
    peers: list[Peer] = [peer for peer in installed() if peer is not None]
    clock = CLOCKS[options.clock]
    for model in options.model:
        case = prepare(model, options)
        say(f"{title(model)}: {case.masks} distinct masks")
        makes = partial(our_contestants, model, options), partial(peer_contestants, model, options)
        with quiet(), gathered(*makes, together=options.together, clock=clock) as everybody:
            timings = alternate(everybody, options.repeats, clock=clock, say=say)
            add_rows(report, case, peers, timings, title(model))
    if not options.together:
        report.notes.append(APART_NOTE)
    if options.clock == "cpu":
        report.notes.append(CPU_NOTE)
    if peers and not options.all_passes:
        report.notes.append(
            f"the peers' {TARGETS} classes are counted as {TARGETS} times their pass for one, which is what they do; "
            "--all-passes runs them"
        )
    return report


PARSER = make_parser("score_cam", __doc__, repeats=1)
PARSER.add_argument(
    "--model",
    nargs="+",
    default=["resnet18", "resnet50", "mobilenet_v2"],
    help="torchvision names (default: %(default)s)",
)
PARSER.add_argument("--mask-batch", type=positive, default=32, help="masked images per forward (default: %(default)s)")
PARSER.add_argument("--all-passes", action="store_true", help="run every pass of the peers for five classes (slow)")
PARSER.add_argument("--levers", action="store_true", help="also time ours with one saving left out each")
add_form_option(PARSER)
add_clock_option(PARSER)
add_process_option(PARSER)
add_model_options(PARSER, count=1)
main = command("benchmarks.score_cam", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
