"""How faithful is each method, and each convention of Score-CAM? Average drop, increase, deletion and insertion.

    python -m benchmarks.faithfulness [--model torchvision:resnet18] [--weights URI] [--images GLOB] [--count N]
        [--minutes M] [--threads N] [--json FILE]

For the predicted class of each image, by its softmax probability. A map is scaled to [0, 1] by its own minimum and
maximum and enlarged bilinearly to the input. For drop and increase it is multiplied with the normalised image, so that
what it hides becomes the mean colour, not black. Deletion removes pixels to the mean colour; insertion puts them into a
blurred image (Gaussian, sigma 5, 11 pixels). See ``pipeline/cam/faithfulness.py`` for the formulas.

"kept" is the mean of the scaled map: drop and increase reward a map for hiding little, deletion and insertion do not.
Figures are comparable only with the same class, removal, score, layer and mean as above. Without ``--weights`` the
network is untrained, and without ``--images`` the images are smooth random fields: then the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.exactness import generated_images, machine, read_images
from pipeline.attributor import Attributor
from pipeline.cam.faithfulness import faithfulness, scaled_masks
from pipeline.cam.score_cam import CONVENTIONS
from pipeline.models import load_replica
from pipeline.models.replica import Replica
from schemas.errors import CamlakeError
from schemas.job import Model, Preprocess
from schemas.registries import METHODS

MEASURES = ("drop", "increase", "deletion", "insertion", "kept")
_PERCENT = ("drop", "increase", "kept")
_HEADINGS = ("avg drop %", "increase %", "deletion", "insertion", "kept %")
_ANCHOR = "score_cam (authors)"
# Two maps that differ less are one map: their measures are taken once.
_SAME = 1e-5


@dataclass
class Results:
    """The measures of each image by method, and which methods had the same maps throughout."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)
    full: list[float] = field(default_factory=list)

    def keep_twins(self, labels: Sequence[str], first: Sequence[int]) -> None:
        """Take note of which maps of one more image equal which earlier one; a twin must be one on every image."""
        place = {label: first[position] for position, label in enumerate(labels)}
        found = {label: labels[position] for label, position in place.items() if labels[position] != label}
        if len(self.full) > 1:  # two may be equal by way of a third, which only some images have
            found = {label: twin for label, twin in self.twins.items() if place[label] == place[twin]}
        self.twins = found

    def mean(self, method: str, measure: str) -> tuple[float, float]:
        """Mean over images and its standard error."""
        return mean_and_error(self.values[method][measure])

    def against(self, method: str, anchor: str, measure: str) -> tuple[float, float]:
        """Mean of the paired differences from ``anchor`` and its standard error."""
        pairs = zip(self.values[method][measure], self.values[anchor][measure], strict=True)
        return mean_and_error([mine - theirs for mine, theirs in pairs])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error of the mean over the values that are numbers; NaN where too few are."""
    numbers = [value for value in values if not math.isnan(value)]
    if not numbers:
        return math.nan, math.nan
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1)
    return mean, math.sqrt(variance / len(numbers))


def methods_of(replica: Replica) -> dict[str, dict[str, Any]]:
    """Return label in the table -> method: all that the model allows, Score-CAM in each convention."""
    names = [name for name in METHODS if name != "score_cam" and (name != "cam" or replica.head is not None)]
    methods: dict[str, dict[str, Any]] = {name: {"name": name} for name in names}
    for convention in CONVENTIONS:
        methods[f"score_cam ({convention})"] = {
            "name": "score_cam",
            "label": f"score_cam_{convention}",
            "convention": convention,
        }
    return methods


def baselines(grid: tuple[int, int], number: int) -> dict[str, Tensor]:
    """Return maps that know nothing of the image: uniform noise of its own for each image, and a central Gaussian."""
    generator = torch.Generator().manual_seed(number)
    across = [(torch.arange(side) + 0.5) / side - 0.5 for side in grid]
    distance = across[0][:, None] ** 2 + across[1][None, :] ** 2
    return {"random map": torch.rand(grid, generator=generator), "centre": torch.exp(-distance / (2 * 0.25**2))}


def measure(
    replica: Replica,
    images: Tensor,
    *,
    steps: int,
    batch: int,
    minutes: float | None,
    report: Callable[[Results], None],
) -> Results:
    """Measure all methods on image after image; stops before the next one once ``minutes`` have passed."""
    methods = methods_of(replica)
    # One call for all methods: conventions whose masks are the same share their forwards.
    attributor = Attributor(
        replica.model, list(methods.values()), layers=replica.layers[-1:], head=replica.head, mask_batch=batch
    )
    keys = dict(zip(methods, (info.key for info in attributor.method_infos()), strict=True))
    results = Results()
    started = time.monotonic()
    for number, image in enumerate(images):
        if minutes is not None and number and time.monotonic() - started > 60 * minutes:
            break
        attribution = attributor(image)
        target = int(attribution.selection.target[0])

        def score(candidates: Tensor, target: int = target) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = replica.model(candidates)
            return logits.double().softmax(1)[:, target]

        maps = {label: attribution[key][0] for label, key in keys.items()}
        maps |= baselines((maps["grad_cam"].shape[0], maps["grad_cam"].shape[1]), number)
        masks = torch.cat([scaled_masks(each[None], attribution.size) for each in maps.values()])
        first = _first_of_equals(masks)
        distinct = sorted(set(first))
        outcome = faithfulness(score, image, masks[distinct], steps=steps, batch=batch)
        results.full.append(outcome.full)
        labels = list(maps)
        for place, label in enumerate(labels):
            row = distinct.index(first[place])
            columns = results.values.setdefault(label, {name: [] for name in MEASURES})
            for name in MEASURES:
                columns[name].append(float(getattr(outcome, name)[row]))
        results.keep_twins(labels, first)
        report(results)
    return results


def _first_of_equals(masks: Tensor) -> list[int]:
    """Return for each mask the position of the first one that equals it up to rounding."""
    positions: list[int] = []
    for place, mask in enumerate(masks):
        equal = (
            other for other in range(place) if positions[other] == other and (masks[other] - mask).abs().max() < _SAME
        )
        positions.append(next(equal, place))
    return positions


def table(results: Results) -> list[str]:
    """Return the lines of both tables: means, and paired differences from the authors' Score-CAM."""

    def cell(mean: float, error: float, measure: str, sign: str = "") -> str:
        factor, digits = (100, 1) if measure in _PERCENT else (1, 3)
        return f"{factor * mean:{sign}.{digits}f} ± {factor * error:.{digits}f}"

    def block(row: Callable[[str, str], str], labels: Sequence[str]) -> list[str]:
        lines = [f"{'method':<22} " + " ".join(f"{heading:>16}" for heading in _HEADINGS)]
        for label in labels:
            cells = " ".join(f"{row(label, measure):>16}" for measure in MEASURES)
            twin = f"  the same maps as {results.twins[label]}" if label in results.twins else ""
            lines.append(f"{label:<22} {cells}{twin}")
        return lines

    labels = list(results.values)
    others = [label for label in labels if label != _ANCHOR and label not in results.twins]
    return [
        f"Mean over {len(results.full)} images ± its standard error (lower is better: drop, deletion):",
        *block(lambda label, measure: cell(*results.mean(label, measure), measure), labels),
        "",
        f"Difference from {_ANCHOR} on the same image, mean ± standard error:",
        *block(lambda label, measure: cell(*results.against(label, _ANCHOR, measure), measure, "+"), others),
    ]


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torchvision:resnet18", help="as in the job file (default: %(default)s)")
    parser.add_argument("--weights", default="random", help="URI or name of weights (default: untrained)")
    parser.add_argument("--images", help="glob of image files or tar shards (default: generated)")
    parser.add_argument("--count", type=int, default=2, help="images, the first that match (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no further image after this time")
    parser.add_argument("--steps", type=int, default=16, help="parts of deletion and insertion (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="images per forward (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of generated images (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--json", type=Path, help="write the figures of each image there, after each image")
    options = parser.parse_args(arguments)
    for name in ("count", "steps", "batch", "size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: {getattr(options, name)} is too small; give 1 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return 0, or 2 for wrong input."""
    options = _arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.monotonic()

    def report(results: Results) -> None:
        done, seconds = len(results.full), time.monotonic() - started
        print(f"{done} images, {seconds / done:.0f} s each", file=sys.stderr, flush=True)
        if options.json:
            document = {"machine": machine(), "model": options.model, "steps": options.steps, "full": results.full}
            values = {
                label: {name: [None if math.isnan(value) else value for value in row] for name, row in columns.items()}
                for label, columns in results.values.items()
            }
            text = json.dumps(document | {"values": values, "same_maps": results.twins}, indent=1)
            options.json.write_text(text + "\n")

    try:
        preprocess = Preprocess()
        if not options.images:  # they are fed as they are made
            preprocess = Preprocess(crop=options.size, resize=options.size, mean=(0, 0, 0), std=(1, 1, 1))
        replica = load_replica(Model(name=options.model, weights=options.weights, preprocess=preprocess))
        if options.images:
            images = read_images(options.images, replica, options.count)
        else:
            images = generated_images(options.count, (options.size, options.size))
        results = measure(
            replica, images, steps=options.steps, batch=options.batch, minutes=options.minutes, report=report
        )
    except CamlakeError as error:
        print(f"benchmarks.faithfulness: {error}", file=sys.stderr)
        return 2
    print(f"Machine: {machine()}")
    print(f"Model: {options.model}, layer {replica.layers[-1].name}")
    print("\n".join(table(results)))
    if options.weights == "random" or not options.images:
        print("\nThese numbers mean nothing: give --weights and --images of real ones.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
