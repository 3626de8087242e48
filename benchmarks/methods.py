"""The gradient methods: ours against grad-cam, torchcam and the bare forward, in one alternating run.

    python -m benchmarks.methods [--model resnet50] [--weights URI] [--images GLOB] [--threads 2] [--json FILE]

Ours explains all images, methods and targets in one pass, compiled where no gradient has to be computed. The peers
run one pass per method and per target, as their documentation shows; each of them lacks one of the six methods, which
is added to it in a few lines on its own base class, as somebody who wants these six maps from it would do.
"bare forwards" is the same network in its fastest form (batch norm folded, channels-last, compiled) over the same
images.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

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
    command,
    fastest,
    load_images,
    load_subject,
    make_parser,
    model_config,
    places,
    say,
    title,
    top_classes,
)
from benchmarks.peers import Peer, TorchcamPackage, agreement, installed, quiet
from pipeline.attributor import Attribution, Attributor

LIMIT = "bare forwards"
SIX = ("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam")
SMOOTH = "smooth_grad_cam_pp"
SAMPLES, LEVEL, TARGETS = 8, 0.15, 5

SIX_WORK = "CAM, Grad-CAM, Grad-CAM++, LayerCAM, HiResCAM, XGrad-CAM in one pass"
FIVE_WORK = "the same for five targets per image"
SMOOTH_WORK = "Smooth Grad-CAM++, 8 samples"
BY_GRADIENT = ", without the closed form"


@dataclass(frozen=True)
class Case:
    """What all contestants are given; ``targets`` are classes per image, the predicted one first."""

    subject: Subject
    images: Tensor
    targets: list[list[int]]
    eager: bool

    @property
    def predicted(self) -> list[int]:
        """One class per image."""
        return [classes[0] for classes in self.targets]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return (self.images.shape[-2], self.images.shape[-1])


def ours(case: Case) -> list[Contestant]:
    """Our contestants, named by their work."""
    layers, head = case.subject.replica.layers, case.subject.replica.head
    closed = head is not None and head.layer == case.subject.layer
    six: list[str | dict[str, object]] = [method for method in SIX if method != "cam" or closed]
    smooth: dict[str, object] = {"name": SMOOTH, "samples": SAMPLES, "noise_level": LEVEL}

    form: dict[str, Any] = {"batch_size": len(case.images), "compile": not case.eager}

    def task(attributor: Attributor, targets: list[int] | list[list[int]]) -> Callable[[], Attribution]:
        return lambda: attributor(case.images, targets, image_seeds=range(len(case.images)))

    def by_gradient(methods: list[str | dict[str, object]]) -> Attributor:
        # Without the head nothing is known of what follows the layer, so every gradient is a backward pass.
        return Attributor(case.subject.replica.model, methods, layers=layers, **form)

    def make(methods: list[str | dict[str, object]]) -> Attributor:
        return case.subject.attributor(methods, **form)

    contestants = [
        Contestant(_alone(case), task(make(["grad_cam"]), case.predicted)),
        Contestant(SIX_WORK, task(make(six), case.predicted)),
        Contestant(FIVE_WORK, task(make(six), case.targets)),
        Contestant(SMOOTH_WORK, task(make([smooth]), case.predicted)),
    ]
    if closed:
        five: list[str | dict[str, object]] = [method for method in six if method != "cam"]
        contestants += [
            Contestant(SIX_WORK.removeprefix("CAM, ") + BY_GRADIENT, task(by_gradient(five), case.predicted)),
            Contestant(FIVE_WORK + BY_GRADIENT, task(by_gradient(five), case.targets)),
            Contestant(SMOOTH_WORK + BY_GRADIENT, task(by_gradient([smooth]), case.predicted)),
        ]
    return contestants


def _alone(case: Case) -> str:
    return f"Grad-CAM alone, {title(case.subject.replica.config.name.rpartition(':')[2])}"


def methods_of(peer: Peer, case: Case) -> list[str]:
    """The methods of the shared pass that a peer has or is given, and that fit the layer."""
    head = case.subject.replica.head
    has_head = head is not None and head.layer == case.subject.layer
    return [method for method in SIX if method in {*peer.classes, *peer.added} and (method != "cam" or has_head)]


def theirs(case: Case, peer: Peer, all_passes: bool) -> list[Contestant]:
    """A peer's contestants: one per method; Smooth Grad-CAM++ and what shares a forward for torchcam."""
    model, layer, images = copy.deepcopy(case.subject.plain), case.subject.layer, case.images

    def one(method: str) -> Callable[[], Tensor]:
        return lambda: peer.maps(model, layer, method, images, case.predicted)

    methods = methods_of(peer, case)
    contestants = [Contestant(f"{peer.name} {method}", one(method)) for method in methods]
    if all_passes:

        def every() -> None:
            for rank in zip(*case.targets, strict=True):
                for method in methods:
                    peer.maps(model, layer, method, images, rank)

        contestants.append(Contestant(f"{peer.name} {FIVE_WORK}", every))
    if isinstance(peer, TorchcamPackage):
        torchcam = peer

        def kept(targets: list[list[int]]) -> Callable[[], None]:
            return lambda: torchcam.graph_kept(model, layer, methods, images, targets)

        contestants += [
            Contestant(
                f"{peer.name} {SMOOTH}",
                lambda: torchcam.maps(
                    model, layer, SMOOTH, images, case.predicted, num_samples=SAMPLES, std=LEVEL * _range(images)
                ),
            ),
            Contestant(f"{peer.name} kept {SIX_WORK}", kept([[target] for target in case.predicted])),
            Contestant(f"{peer.name} kept {FIVE_WORK}", kept(case.targets)),
        ]
    return contestants


def _range(images: Tensor) -> float:
    return float((images.amax((1, 2, 3)) - images.amin((1, 2, 3))).mean())


def compare(case: Case, peer: Peer, timings: dict[str, Timing], report: Report, all_passes: bool) -> None:
    """Add a peer's rows."""
    classes = len(case.targets[0])
    maps: Attribution = timings[SIX_WORK].result
    methods = methods_of(peer, case)
    found = {
        method: agreement(peer, maps[method], timings[f"{peer.name} {method}"].result, case.size) for method in methods
    }
    right = [difference for method, difference in found.items() if method not in peer.wrong]
    for method in methods:
        if method in peer.wrong:
            report.notes.append(f"{peer.name}'s {method} differs by {found[method]:.2g}: {peer.wrong[method]}")
    seconds = {method: timings[f"{peer.name} {method}"].median for method in methods}
    total = sum(seconds.values())
    five = timings[f"{peer.name} {FIVE_WORK}"].median if all_passes else classes * total
    if not all_passes:
        report.notes.append(
            f"{peer.name}'s {classes} targets per image are counted as {classes} times its passes for one; "
            "--all-passes runs them"
        )
    alone = _alone(case)
    report.rows += [
        Row(alone, peer.name, timings[alone].median, seconds["grad_cam"], found["grad_cam"]),
        Row(SIX_WORK, peer.name, timings[SIX_WORK].median, total, max(right)),
        Row(FIVE_WORK, peer.name, timings[FIVE_WORK].median, five, max(right)),
    ]
    for method in peer.added.keys() & seconds.keys():
        own = total - seconds[method]
        report.notes.append(
            f"{peer.name} has no {method}: it was added on its base class and takes {seconds[method]:.3f} s; "
            f"the sum of its own {len(methods) - 1} passes is {own:.3f} s, {own / timings[SIX_WORK].median:.2f}x ours"
        )
    if not isinstance(peer, TorchcamPackage):
        return
    kept = f"{peer.name}, one forward"
    for work in (SIX_WORK, FIVE_WORK):
        report.rows.append(Row(work, kept, timings[work].median, timings[f"{peer.name} kept {work}"].median))
    report.notes.append(f"'{kept}': the graph of one forward is kept for all methods, which its documents do not show")
    smooth = timings[f"{peer.name} {SMOOTH}"].median
    for work in (SMOOTH_WORK, SMOOTH_WORK + BY_GRADIENT):
        if work in timings:
            report.rows.append(Row(work, peer.name, timings[work].median, smooth))
    report.notes.append(f"{peer.name}'s {SMOOTH} has no map to agree with: {peer.wrong[SMOOTH]}")


def check_order(case: Case, timings: dict[str, Timing]) -> float:
    """Return the largest difference between one class alone and the same among five, over all methods."""
    alone: Attribution = timings[SIX_WORK].result
    among: Attribution = timings[FIVE_WORK].result
    first = places(among.selection, case.predicted)
    return max(float((among[method][first] - alone[method]).abs().max()) for method in alone.maps)


def prepare(options: argparse.Namespace) -> Case:
    """Return what all contestants are given; equal in every process."""
    subject = load_subject(model_config(options.model, options, [options.layer] if options.layer else None))
    images = load_images(subject.replica, options)
    return Case(subject, images, top_classes(subject.replica.model, images, TARGETS), options.eager)


def our_contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the bare forward and ours."""
    case = prepare(options)
    ready = case.images.contiguous(memory_format=torch.channels_last)
    bare_forward = fastest(case.subject.replica.model, ready, options.eager)
    return [Contestant(LIMIT, lambda: bare_forward(ready)), *ours(case)]


def peer_contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the peers."""
    case = prepare(options)
    peers = [peer for peer in installed() if peer is not None]
    return [contestant for peer in peers for contestant in theirs(case, peer, options.all_passes)]


def run(options: argparse.Namespace) -> Report:
    """Time all contestants and return the rows."""
    case, clock = prepare(options), CLOCKS[options.clock]
    peers = [peer for peer in installed() if peer is not None]
    makes = partial(our_contestants, options), partial(peer_contestants, options)
    with quiet(), gathered(*makes, together=options.together, clock=clock) as everybody:
        timings = alternate(everybody, options.repeats, clock=clock, say=say)
        report = Report()
        report.notes.append(
            f"{title(options.model)} at {case.subject.layer}, {len(case.images)} images of "
            f"{case.size[0]}x{case.size[1]}, median of {options.repeats} rounds"
        )
        for peer in peers:
            compare(case, peer, timings, report, options.all_passes)
    if not options.together:
        report.notes.append(APART_NOTE)
    if options.clock == "cpu":
        report.notes.append(CPU_NOTE)
    bare = timings[LIMIT].median
    for contestant in ours(case):
        forwards = SAMPLES if contestant.name.startswith(SMOOTH_WORK) else 1
        limit = LIMIT if forwards == 1 else f"{forwards} x {LIMIT}"
        report.rows.append(Row(contestant.name, limit, timings[contestant.name].median, forwards * bare))
    report.notes.append(f"one class alone and the same class among five differ by {check_order(case, timings):.1g}")
    if SMOOTH_WORK + BY_GRADIENT in timings:
        report.notes.append(
            "behind global average pooling the gradient does not depend on the input, so ours takes it from the "
            "head's weights; 'without the closed form' takes it from backward passes, as at any other layer"
        )
    return report


PARSER = make_parser("methods", __doc__, repeats=5)
PARSER.add_argument("--model", default="resnet50", help="torchvision name (default: %(default)s)")
PARSER.add_argument("--layer", help="target layer (default: the last spatial one)")
PARSER.add_argument("--all-passes", action="store_true", help="run every pass of the peers for five targets (slow)")
add_form_option(PARSER)
add_clock_option(PARSER)
add_process_option(PARSER)
add_model_options(PARSER, count=16)
main = command("benchmarks.methods", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
