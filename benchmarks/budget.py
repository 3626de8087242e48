"""Score-CAM with a budget against the exact map: how near it comes for how many masked forwards.

    python -m benchmarks.budget [--model resnet50] [--weights URI] [--images GLOB] [--count 40] [--scores FOLDER]

First the scores of all masks of each image are computed once (on two CPU cores a minute and a half per image of a
ResNet-50; with --scores they are kept, and a run that is broken off goes on). From them come the error curve and its
tail, with exactly the code that chooses masks and predicts in a job. Then the whole method is timed, budgeted and
exact against each peer, on --timed images, and its maps are compared with those of the curve.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import (
    Subject,
    add_form_option,
    add_model_options,
    command,
    load_images,
    load_subject,
    make_parser,
    model_config,
    positive,
    say,
    title,
    top_classes,
)
from benchmarks.peers import Peer, installed, quiet
from pipeline.cam.base import MaskGroup
from pipeline.cam.mask_budget import MaskBudget, budget_of
from pipeline.cam.mask_stream import MaskJob, MaskStream
from pipeline.cam.masked_forward import MaskedNetwork
from pipeline.cam.masks import MaskSet, distinct_masks, scaled_after_enlarging
from pipeline.cam.plan import as_spec
from pipeline.cam.score_cam import ScoreCAM
from pipeline.models.compiled import compiled
from pipeline.models.optimise import outputs
from schemas.errors import InputError
from schemas.methods import ScoreCAMSpec

#: Shares of the distinct masks at which the curve is taken, and correlations to expect for budgets that go on.
SHARES = (0.02, 0.03, 0.05, 0.08, 0.11, 0.15, 0.25, 0.5)
WANTED = (0.95, 0.97, 0.98, 0.99, 0.995)
#: Where a budget looks for the first time.
FIRST = 0.03
#: Score-CAM as the authors have it, with the packages' weights (softmax of logits), and the paper's second version.
CONVENTIONS: dict[str, dict[str, str]] = {
    "authors": {"convention": "authors"},
    "logits": {"convention": "paper", "score": "logit"},
    "paper": {"convention": "paper"},
}


@dataclass(frozen=True)
class Scored:
    """An image's masks and their exact scores.

    ``activation`` (C, h, w); ``masks`` the distinct ones; ``logits`` (U + 1, K), of the null mask in the last row;
    ``target`` is the predicted class.
    """

    activation: Tensor
    masks: MaskSet
    logits: Tensor
    target: int

    @property
    def count(self) -> int:
        """Distinct masks, U."""
        return len(self.masks.grids)

    def scores(self, method: ScoreCAM) -> Tensor:
        """What the method weights by, of each distinct mask: (U + 1, 1) float64."""
        logits = self.logits.double()
        scores = logits.softmax(1) if method.needs_probability else logits
        return scores[:, [self.target]]


def score_all(subject: Subject, network: MaskedNetwork, image: Tensor) -> Scored:
    """Run every distinct mask of an image (3, H, W), scaled after it is enlarged, and the null mask."""
    logits, grids = outputs(subject.replica.model, subject.replica.layers, image[None])
    activation = grids[subject.layer]
    masks = distinct_masks(activation)[0]
    masks = masks.with_grids(scaled_after_enlarging(masks.grids, (image.shape[1], image.shape[2]), False))
    group = MaskGroup(subject.layer, "after", False)
    classes = torch.arange(logits.shape[1])
    stream = MaskStream(network, False, "softmax")
    stream.push_null(image, len(classes), group)
    job = MaskJob(0, group, image, activation[0], masks, classes, classes)
    stream.push(job)
    list(stream.run(drain=True))
    found = torch.cat([job.logit, stream.null_logits[None]])
    return Scored(activation[0], masks, found, int(logits[0].argmax()))


def all_scores(subject: Subject, images: Tensor, options: argparse.Namespace) -> Iterator[Scored]:
    """Yield the exact scores of each image, from ``--scores`` where they are there."""
    network = MaskedNetwork(subject.replica.model, options.mask_batch, None, None if options.eager else compiled)
    for number, image in enumerate(images):
        path = None
        if options.scores is not None:
            options.scores.mkdir(parents=True, exist_ok=True)
            content = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
            path = options.scores / f"{subject.replica.digest[:12]}-{subject.layer}-{content}.pt"
        if path is not None and path.exists():
            document = torch.load(path)
            yield Scored(**document | {"masks": MaskSet(**document["masks"])})
            continue
        scored = score_all(subject, network, image)
        say(f"image {number + 1} of {len(images)}: {scored.count} masks scored")
        if path is not None:
            partial = path.with_suffix(".partial")
            torch.save(vars(scored) | {"masks": vars(scored.masks)}, partial)
            partial.rename(path)
        yield scored


def method_of(convention: str, budget: float | None = None, wanted: float = 0.0) -> ScoreCAM:
    """Return the method as a job has it."""
    spec = as_spec({"name": "score_cam", "budget": budget, "expected_correlation": wanted, **CONVENTIONS[convention]})
    assert isinstance(spec, ScoreCAMSpec)
    return ScoreCAM(spec)


def budgeted(scored: Scored, method: ScoreCAM) -> MaskBudget:
    """Return the budget at its end, with the scores (U, 1) that it has or predicts."""
    assert method.budget is not None
    exact = scored.scores(method)
    budget = budget_of(method.budget, scored.masks, scored.activation)
    while len(chosen := budget.next_masks()):
        budget.tell(chosen, exact[chosen])
    return budget


def map_of(scored: Scored, method: ScoreCAM, scores: Tensor) -> Tensor:
    """Return the map (cells,) float64 from the scores (U, 1) of the distinct masks."""
    every = torch.cat([scores, scored.scores(method)[-1:]])[scored.masks.channel, 0]
    weight = every.softmax(0) if method.needs_null else torch.where(scored.masks.constant, 0.0, every)
    return (weight @ scored.activation.flatten(1).double()).relu()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation; 1 of two maps that are equal, also where they are constant."""
    if torch.equal(a, b):
        return 1.0
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1].nan_to_num(0.0))


def by_norm(scored: Scored, method: ScoreCAM, share: float) -> float:
    """What the literature's budget comes to: the channels of largest norm only (Faster-Score-CAM and others)."""
    exact = scored.scores(method)[:-1]
    energy = torch.zeros(scored.count + 1, scored.activation[0].numel())
    energy.index_add_(0, scored.masks.channel, scored.activation.flatten(1))
    kept = energy[:-1].norm(dim=1).topk(math.ceil(share * scored.count)).indices
    chosen = torch.zeros(len(exact), dtype=torch.bool)
    chosen[kept] = True
    # A weight of nothing: no score in the sum, or none in the softmax.
    nothing = -torch.inf if method.needs_null else 0.0
    return correlation(
        map_of(scored, method, torch.where(chosen[:, None], exact, nothing)), map_of(scored, method, exact)
    )


@dataclass(frozen=True)
class Point:
    """One point of a curve: shares of the masks, correlations with the exact maps, and those expected; per image."""

    budget: str
    share: Tensor
    found: Tensor
    expected: Tensor

    def document(self) -> dict[str, Any]:
        """The point as the JSON file has it."""
        return {
            "budget": self.budget,
            "share_mean": float(self.share.mean()),
            "share_max": float(self.share.max()),
            "correlation_median": float(self.found.median()),
            "correlation_p5": float(self.found.quantile(0.05)),
            "correlation_min": float(self.found.min()),
            "expected_median": float(self.expected.nanmedian()),
            "below_expected": float((self.found < self.expected).float().mean()),
        }

    def line(self) -> str:
        """The point for people."""
        values = self.document()
        numbers = "".join(f"{values[name]:>9.4f}" for name in list(values)[1:])
        return f"{self.budget:<44}{numbers}"


HEADER = f"{'budget':<44}{'share':>9}{'most':>9}{'median':>9}{'5th pct':>9}{'least':>9}{'expected':>9}{'missed':>9}"


def point(name: str, images: list[Scored], run: Callable[[Scored], tuple[float, float, float]]) -> Point:
    """Return (share, correlation, expected) of every image as one point."""
    rows = torch.tensor([run(each) for each in images], dtype=torch.float64)
    return Point(name, rows[:, 0], rows[:, 1], rows[:, 2])


def curve(images: list[Scored], convention: str) -> Iterator[Point]:
    """Yield the points of a convention: fixed shares, budgets that go on, and the literature's choice of channels."""
    exact = method_of(convention)

    def ours(method: ScoreCAM) -> Callable[[Scored], tuple[float, float, float]]:
        def run(scored: Scored) -> tuple[float, float, float]:
            budget = budgeted(scored, method)
            assert budget.scores is not None
            assert budget.expected is not None
            reference = map_of(scored, exact, scored.scores(exact)[:-1])
            found = correlation(map_of(scored, method, budget.scores), reference)
            return budget.scored / scored.count, found, float(budget.expected[0])

        return run

    for share in SHARES:
        yield point(f"{share:.0%} of the masks", images, ours(method_of(convention, share)))
    for wanted in WANTED:
        name = f"until {wanted} is expected (first at {FIRST:.0%})"
        yield point(name, images, ours(method_of(convention, FIRST, wanted)))
    for share in SHARES:
        name = f"{share:.0%}: channels of largest norm alone"
        yield point(name, images, lambda scored, share=share: (share, by_norm(scored, exact, share), torch.nan))  # type: ignore[misc]


def timed(
    subject: Subject, images: Tensor, scored: list[Scored], peers: list[Peer], options: argparse.Namespace
) -> Iterator[Row]:
    """Yield the rows of the whole method, budgeted, against the peers' and our own exact one."""
    targets = [classes[0] for classes in top_classes(subject.replica.model, images, 1)]
    budget: dict[str, object] = {"budget": FIRST, "expected_correlation": options.expected}
    sizes: dict[str, Any] = {"mask_batch": options.mask_batch, "batch_size": len(images), "compile": not options.eager}

    def ours(method: dict[str, object]) -> Contestant:
        attributor = subject.attributor([{"name": "score_cam", **CONVENTIONS[options.convention], **method}], **sizes)
        name = "budget" if method else "ours, exact"
        size = (images.shape[-2], images.shape[-1])
        return Contestant(name, lambda: attributor(images, targets)["score_cam"], lambda: attributor.warm_up(size))

    def theirs(peer: Peer) -> Contestant:
        def run() -> None:
            for image, target in zip(images, targets, strict=True):
                peer.maps(subject.plain, subject.layer, "score_cam", image[None], [target])

        return Contestant(peer.name, run, lambda: None)

    with quiet():
        everybody = [ours(budget), ours({}), *(theirs(peer) for peer in peers)]
        timings = alternate(everybody, options.repeats, say=say)
    mine = timings["budget"]
    method = method_of(options.convention)
    exact = [map_of(each, method, each.scores(method)[:-1]) for each in scored]
    worst = min(correlation(a.flatten(), b) for a, b in zip(mine.result, exact, strict=True))
    work = f"Score-CAM with a budget, {title(options.model)}, {len(images)} images"
    for name in [each.name for each in everybody[1:]]:
        yield Row(work, name, mine.median, timings[name].median, 1 - worst)


def run(options: argparse.Namespace) -> Report:
    """Take the curves, time the method and return the report."""
    if options.timed > options.count:
        raise InputError(f"--timed {options.timed} is more than --count {options.count}; raise --count")
    subject = load_subject(model_config(options.model, options))
    # From the middle of each stretch, so that all shards are seen and none by its first image.
    wide = argparse.Namespace(**vars(options) | {"count": options.count * options.every})
    images = load_images(subject.replica, wide)[options.every // 2 :: options.every]
    scored = list(all_scores(subject, images, options))
    report = Report()
    peers: list[Peer] = [peer for peer in installed() if peer is not None]
    report.rows += timed(subject, images[: options.timed], scored[: options.timed], peers, options)
    report.notes.append("agreement is 1 - the least correlation with the exact map, of the timed images")
    report.notes.append(
        f"{title(options.model)} at {subject.layer}, {len(images)} images, "
        f"{sum(each.count for each in scored) / len(scored):.0f} distinct masks each"
    )
    for convention in CONVENTIONS:
        points = list(curve(scored, convention))
        report.extra.setdefault("curves", {})[convention] = [each.document() for each in points]
        lines = "\n".join(["", f"  {HEADER}", *(f"  {each.line()}" for each in points)])
        report.notes.append(f"{convention}: correlation with the exact map by share of the masks scored:{lines}")
    return report


PARSER = make_parser("budget", __doc__, repeats=1)
PARSER.add_argument("--model", default="resnet50", help="torchvision name (default: %(default)s)")
PARSER.add_argument("--every", type=positive, default=1, help="take every n-th image (default: %(default)s)")
PARSER.add_argument(
    "--convention", choices=CONVENTIONS, default="authors", help="of the timed run (default: %(default)s)"
)
PARSER.add_argument(
    "--expected", type=float, default=0.98, help="correlation that the timed run waits for (default: %(default)s)"
)
PARSER.add_argument("--mask-batch", type=positive, default=32, help="masked images per forward (default: %(default)s)")
PARSER.add_argument("--timed", type=positive, default=2, help="images of the timed run (default: %(default)s)")
PARSER.add_argument("--scores", type=Path, metavar="FOLDER", help="keep the exact scores there, and use those there")
add_form_option(PARSER)
add_model_options(PARSER, count=40)
main = command("benchmarks.budget", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
