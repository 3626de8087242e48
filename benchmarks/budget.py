"""Score-CAM with a budget against the exact map: how near it comes for how many masked forwards.

    python -m benchmarks.budget [--model resnet50] [--weights URI] [--images GLOB] [--count 40] [--scores FOLDER]

First the scores of all masks of each image are computed once (on two CPU cores a minute and a half per image of a
ResNet-50; with --scores they are kept, and a run that is broken off goes on). From them come the error curve and its
tail, with exactly the code that chooses masks and predicts in a job. And the whole method is timed, budgeted on all
images and exact on --timed ones, against each peer, and its maps are compared with the exact ones.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.apart import gathered
from benchmarks.exact_scores import Scored, all_scores
from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import (
    APART_NOTE,
    Subject,
    add_form_option,
    add_model_options,
    add_process_option,
    command,
    fastest,
    load_images,
    load_subject,
    make_parser,
    model_config,
    none_or_more,
    positive,
    say,
    title,
    top_classes,
)
from benchmarks.peers import Peer, installed, quiet
from pipeline.cam.faithfulness import faithfulness, scaled_masks
from pipeline.cam.mask_budget import MaskBudget, budget_of
from pipeline.cam.plan import as_spec
from pipeline.cam.score_cam import ScoreCAM
from schemas.errors import InputError
from schemas.methods import ScoreCAMSpec

#: Shares of the distinct masks at which the curve is taken, and correlations to expect for budgets that go on.
SHARES = (0.02, 0.03, 0.05, 0.08, 0.11, 0.15, 0.25)
WANTED = (0.95, 0.97, 0.98, 0.99, 0.995)
#: Shares whose maps' faithfulness is measured, and in how many steps pixels are deleted and inserted.
JUDGED, STEPS = (0.02, 0.05, 0.11), 8
#: Where a budget looks for the first time.
FIRST = 0.03
BUDGET, EXACT = "ours, with a budget", "ours, exact"
#: Score-CAM as the authors have it, with the packages' weights (softmax of logits), and the paper's second version.
CONVENTIONS: dict[str, dict[str, str]] = {
    "authors": {"convention": "authors"},
    "logits": {"convention": "paper", "score": "logit"},
    "paper": {"convention": "paper"},
}


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


def by_norm(scored: Scored, method: ScoreCAM, share: float) -> Tensor:
    """Return the map (cells,) of the channels of largest norm alone, as the literature's budgets have it."""
    exact = scored.scores(method)[:-1]
    energy = torch.zeros(scored.count + 1, scored.activation[0].numel())
    energy.index_add_(0, scored.masks.channel, scored.activation.flatten(1))
    kept = energy[:-1].norm(dim=1).topk(math.ceil(share * scored.count)).indices
    chosen = torch.zeros(len(exact), dtype=torch.bool)
    chosen[kept] = True
    # A weight of nothing: no score in the sum, or none in the softmax.
    nothing = -torch.inf if method.needs_null else 0.0
    return map_of(scored, method, torch.where(chosen[:, None], exact, nothing))


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
    references = {id(each): exact_map(each, exact) for each in images}

    def ours(method: ScoreCAM) -> Callable[[Scored], tuple[float, float, float]]:
        def run(scored: Scored) -> tuple[float, float, float]:
            budget = budgeted(scored, method)
            assert budget.scores is not None
            assert budget.expected is not None
            found = correlation(map_of(scored, method, budget.scores), references[id(scored)])
            return budget.scored / scored.count, found, float(budget.expected[0])

        return run

    def largest(share: float) -> Callable[[Scored], tuple[float, float, float]]:
        def run(scored: Scored) -> tuple[float, float, float]:
            return share, correlation(by_norm(scored, exact, share), references[id(scored)]), torch.nan

        return run

    for share in SHARES:
        yield point(f"{share:.0%} of the masks", images, ours(method_of(convention, share)))
    for wanted in WANTED:
        name = f"until {wanted} is expected (first at {FIRST:.0%})"
        yield point(name, images, ours(method_of(convention, FIRST, wanted)))
    for share in SHARES:
        yield point(f"{share:.0%}: channels of largest norm alone", images, largest(share))


def exact_map(scored: Scored, method: ScoreCAM) -> Tensor:
    """Return the exact map (cells,) float64."""
    return map_of(scored, method, scored.scores(method)[:-1])


def faithfulness_table(subject: Subject, images: Tensor, scored: list[Scored], eager: bool) -> list[str]:
    """Return lines that tell average drop, increase, deletion and insertion by budget, in the authors' convention."""
    exact = method_of("authors")
    size = (images.shape[-2], images.shape[-1])
    batch = 2 * STEPS - 1
    example = images[:1].expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    forward = fastest(subject.replica.model, example, eager)
    found: dict[str, list[list[float]]] = {}
    for number, (image, each) in enumerate(zip(images, scored, strict=True)):
        maps = {f"{share:.0%} of the masks": method_of("authors", share) for share in JUDGED}
        maps |= {f"until {wanted} is expected": method_of("authors", FIRST, wanted) for wanted in (0.98,)}
        drawn = {
            name: map_of(each, exact, scores)
            for name, method in maps.items()
            if (scores := budgeted(each, method).scores) is not None
        }
        drawn |= {f"{share:.0%}: largest norm alone": by_norm(each, exact, share) for share in JUDGED}
        drawn["exact"] = exact_map(each, exact)

        def score(frames: Tensor, target: int = each.target) -> Tensor:
            full = torch.cat([frames, frames.new_zeros((batch - len(frames), *frames.shape[1:]))])
            logits = forward(full.contiguous(memory_format=torch.channels_last))
            return logits[: len(frames)].softmax(1)[:, target]

        grid = each.activation.shape[-2:]
        masks = scaled_masks(torch.stack([values.view(grid) for values in drawn.values()]).float(), size)
        measured = faithfulness(score, image, masks, steps=STEPS, batch=batch)
        for row, name in enumerate(drawn):
            columns = (measured.drop, measured.increase, measured.deletion, measured.insertion)
            found.setdefault(name, []).append([float(column[row]) for column in columns])
        say(f"faithfulness of image {number + 1} of {len(images)}")
    header = f"{'budget':<34}{'drop':>9}{'increase':>9}{'deletion':>9}{'insertion':>10}"
    means = {name: torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist() for name, rows in found.items()}
    return [header, *(f"{name:<34}{a:>9.4f}{b:>9.4f}{c:>9.4f}{d:>10.4f}" for name, (a, b, c, d) in means.items())]


def prepare(options: argparse.Namespace) -> tuple[Subject, Tensor]:
    """Return the model and every ``--every``-th image; equal in every process."""
    subject = load_subject(model_config(options.model, options))
    # From the middle of each stretch, so that all shards are seen and none by its first image.
    wide = argparse.Namespace(**vars(options) | {"count": options.count * options.every})
    return subject, load_images(subject.replica, wide)[options.every // 2 :: options.every]


def our_contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the budget over all images, and ours without one over the first ``--timed``."""
    subject, images = prepare(options)
    targets = _predicted(subject, images)
    sizes: dict[str, Any] = {"mask_batch": options.mask_batch, "batch_size": 1, "compile": not options.eager}
    size = (images.shape[-2], images.shape[-1])

    def ours(name: str, count: int, method: dict[str, object]) -> Contestant:
        attributor = subject.attributor([{"name": "score_cam", **CONVENTIONS[options.convention], **method}], **sizes)
        return Contestant(
            name,
            lambda: attributor(images[:count], targets[:count])["score_cam"],
            lambda: attributor.warm_up(size),
        )

    return [
        ours(BUDGET, len(images), {"budget": FIRST, "expected_correlation": options.expected}),
        ours(EXACT, options.timed, {}),
    ]


def peer_contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return the peers over the first ``--timed`` images."""
    subject, images = prepare(options)
    targets = _predicted(subject, images)

    def theirs(peer: Peer) -> Contestant:
        def run() -> None:
            for image, target in zip(images[: options.timed], targets, strict=False):
                peer.maps(subject.plain, subject.layer, "score_cam", image[None], [target])

        return Contestant(peer.name, run, lambda: None)

    return [theirs(peer) for peer in installed() if peer is not None]


def _predicted(subject: Subject, images: Tensor) -> list[int]:
    return [classes[0] for classes in top_classes(subject.replica.model, images, 1)]


def timed(scored: list[Scored], options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the whole method, in seconds per image, against the peers' and our own exact one.

    A budget takes more for one image than for another, so it runs on all of them; what is exact takes the same time
    for each (ours nearly) and runs on the first ``--timed``.
    """
    makes = partial(our_contestants, options), partial(peer_contestants, options)
    with quiet(), gathered(*makes, together=options.together) as everybody:
        timings = alternate(everybody, options.repeats, say=say)
    mine = timings.pop(BUDGET)
    method = method_of(options.convention)
    found = torch.tensor(
        [
            correlation(values.flatten(), exact_map(each, method))
            for values, each in zip(mine.result, scored, strict=True)
        ]
    )
    work = f"Score-CAM with a budget, {title(options.model)}, per image"
    for name, timing in timings.items():
        yield Row(work, name, mine.median / len(scored), timing.median / options.timed, 1 - float(found.min()))


def run(options: argparse.Namespace) -> Report:
    """Take the curves, time the method and return the report."""
    if options.timed > options.count:
        raise InputError(f"--timed {options.timed} is more than --count {options.count}; raise --count")
    subject, images = prepare(options)
    scored = list(all_scores(subject, images, options))
    report = Report()
    if options.timed:
        report.rows += timed(scored, options)
        report.notes += () if options.together else (APART_NOTE,)
        report.notes.append(
            f"seconds per image: the budget's over {len(images)} images, the others' over {options.timed}; agreement "
            "is 1 - the least correlation with the exact map"
        )
    report.notes.append(
        f"{title(options.model)} at {subject.layer}, {len(images)} images, "
        f"{sum(each.count for each in scored) / len(scored):.0f} distinct masks each"
    )
    for convention in CONVENTIONS:
        points = list(curve(scored, convention))
        report.extra.setdefault("curves", {})[convention] = [each.document() for each in points]
        lines = "\n".join(["", f"  {HEADER}", *(f"  {each.line()}" for each in points)])
        report.notes.append(f"{convention}: correlation with the exact map by share of the masks scored:{lines}")
    if options.faithfulness:
        table = faithfulness_table(subject, images, scored, options.eager)
        report.notes.append("\n  ".join(["faithfulness, mean over the images (authors):", *table]))
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
PARSER.add_argument(
    "--timed", type=none_or_more, default=1, help="images of the exact runs; 0: time nothing (default: %(default)s)"
)
PARSER.add_argument("--scores", type=Path, metavar="FOLDER", help="keep the exact scores there, and use those there")
PARSER.add_argument("--faithfulness", action="store_true", help="also measure drop, increase, deletion and insertion")
add_form_option(PARSER)
add_process_option(PARSER)
add_model_options(PARSER, count=40)
main = command("benchmarks.budget", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main(None))
