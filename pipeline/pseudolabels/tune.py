"""Chooses the background rule and the refinement on a few labelled images, and reports on the others.

A hash of the image's id decides to which it belongs. What is chosen depends on nothing but the first, and what is
reported on nothing but the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import functional

from pipeline.lake.originals import Originals
from pipeline.pseudolabels.collection import Item, LabelLake
from pipeline.pseudolabels.confusion import ClassResult, Confusion, Totals, class_results, totals
from pipeline.pseudolabels.evaluate import Pair, true_mask
from pipeline.pseudolabels.label import Stack, refined_by_pamr
from pipeline.pseudolabels.sizes import Sizes, resized
from pipeline.pseudolabels.split import is_drawn
from pipeline.pseudolabels.sweep import Point, Sweep, best_of, threshold_of
from pipeline.pseudolabels.truth import Truth
from pipeline.sources.decode import decode
from schemas.errors import CamlakeError, InputError, LakeError
from schemas.pseudolabels import PamrRefinement

#: What is tried: the scores as they are stored, or refined by PAMR.
Candidate = Literal["stored", "pamr"]


def candidates(labels: LabelLake, pamr: bool) -> list[Candidate]:
    """Return which refinements can be compared.

    Args:
        labels: the lake.
        pamr: compare with PAMR, if its scores are not refined.

    Raises:
        InputError: nothing can be compared; or PAMR is asked for, and scores are refined already.
    """
    settings = labels.settings
    if not settings.files.soft:
        raise InputError(
            f"{labels.store.uri} has no scores to tune with; make it with pseudo_labels.files.soft=true, best with "
            "refine.method=none, so that the refinement can be chosen, too"
        )
    if settings.refine.method == "crf":
        raise InputError(
            f"{labels.store.uri} holds scores of a dense CRF, from which no threshold can be chosen; make it with "
            "pseudo_labels.refine.method=none"
        )
    if settings.refine.method == "pamr":
        if pamr:
            raise InputError(
                f"--pamr: the scores of {labels.store.uri} are refined by PAMR already; make it with "
                "pseudo_labels.refine.method=none to compare"
            )
        return ["stored"]
    return ["stored", "pamr"] if pamr else ["stored"]


@dataclass
class Tuned:
    """What a part of the images came to: sweeps by refinement, of either split, and the labels as they are."""

    chosen_on: dict[Candidate, Sweep] = field(default_factory=dict)
    reported_on: dict[Candidate, Sweep] = field(default_factory=dict)
    labels: Confusion = field(default_factory=Confusion)
    images: tuple[int, int] = (0, 0)

    def merge(self, other: Tuned) -> None:
        """Add what another part came to."""
        for mine, theirs in ((self.chosen_on, other.chosen_on), (self.reported_on, other.reported_on)):
            for candidate, sweep in theirs.items():
                mine.setdefault(candidate, Sweep()).merge(sweep)
        self.labels.merge(other.labels)
        self.images = self.images[0] + other.images[0], self.images[1] + other.images[1]


@dataclass(frozen=True)
class Tuner:
    """Counts parts; pickles for workers.

    Args:
        labels: the lake, with scores.
        truth: the true masks.
        fraction: of the images, on which is chosen.
        seed: of the hash.
        tried: refinements.
        source_options: of the pictures' file system, which PAMR needs.
    """

    labels: LabelLake
    truth: Truth
    fraction: float
    seed: int
    tried: Sequence[Candidate]
    source_options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: list[Pair]) -> Tuned:
        """Count a part.

        Raises:
            CamlakeError: a file or a picture cannot be read, or label and truth are of different sizes.
        """
        found = Tuned()
        pictures = self._pictures([pair.item for pair in pairs]) if "pamr" in self.tried else {}
        for pair in pairs:
            labels = self.labels.read(pair.item.mask)
            truth = true_mask(self.truth, pair, labels, self.labels)
            choosing = is_drawn(pair.item.image_id, self.fraction, self.seed)
            if not choosing:
                found.labels.add(truth, labels)
            if pair.item.soft is None:
                raise LakeError(f"image '{pair.item.image_id}' has no scores; run 'camlake verify'")
            scores, ids = self.labels.scores(pair.item.soft)
            sweeps = found.chosen_on if choosing else found.reported_on
            for candidate in self.tried:
                shown = scores
                if candidate == "pamr" and len(ids):
                    shown = refined(scores, pictures[pair.item.image_id], self.labels)
                sweeps.setdefault(candidate, Sweep()).add(truth, shown, ids)
            found.images = found.images[0] + choosing, found.images[1] + (not choosing)
        return found

    def _pictures(self, items: Sequence[Item]) -> dict[str, bytes]:
        """Return the encoded pictures of a part."""
        by_unit: dict[str, list[str]] = {}
        for item in items:
            by_unit.setdefault(str(item.unit), []).append(item.image_id)
        found: dict[str, bytes] = {}
        originals = Originals(self.labels.lake, self.source_options, most_read=None)
        for unit, ids in by_unit.items():
            wanted = set(ids)
            rows = [row for row in self.labels.lake.unit_images(unit).to_pylist() if row["image_id"] in wanted]
            for row, data in originals.stream(rows):
                if isinstance(data, CamlakeError):
                    raise LakeError(f"--pamr: the picture of image '{row['image_id']}' cannot be had: {data}") from data
                found[row["image_id"]] = data
        return found


def refined(scores: Any, picture: bytes, labels: LabelLake) -> Any:
    """Return the classes' scores (K, H, W) float32 refined by PAMR with its default settings, as a job would.

    Args:
        scores: of seeds.
        picture: the encoded image.
        labels: the lake of the seeds.

    Raises:
        LakeError: the picture has another size than the scores.
    """
    maps = torch.from_numpy(scores)
    known = torch.isfinite(maps)
    height, width = maps.shape[1:]
    pixels = decode(picture, exif=labels.lake.manifest.job["model"]["preprocess"]["exif"]).pixels
    if tuple(pixels.shape[1:]) != (height, width):
        raise LakeError(
            f"a picture is of {tuple(pixels.shape[1:])} pixels and its scores of {(height, width)}; restore it"
        )
    base = Sizes((1.0,), labels.settings.max_pixels, 1).base(height, width)
    image = resized(pixels, base).to(torch.float32).div_(255)
    small = maps.nan_to_num(0.0)
    if base != (height, width):
        small = functional.interpolate(small[None], base, mode="bilinear", align_corners=False)[0]
    found = refined_by_pamr([image], [[Stack(0.0, small)]], PamrRefinement())[0][0].maps
    if base != (height, width):
        found = functional.interpolate(found[None], (height, width), mode="bilinear", align_corners=False)[0]
    return torch.where(known, found, torch.nan).numpy()


@dataclass(frozen=True)
class Choice:
    """A refinement with the best rule for it, on the images that were chosen on."""

    candidate: Candidate
    point: Point


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and what it comes to on the other images, beside the labels as they are.

    ``tried`` are the best rules of each refinement and kind of rule, by falling mIoU.
    """

    labels: str
    truth: str
    fraction: float
    seed: int
    images: tuple[int, int]
    tried: Sequence[Choice]
    classes: Sequence[ClassResult]
    totals: Totals
    before: Totals

    @property
    def choice(self) -> Choice:
        """What was chosen."""
        return self.tried[0]


def make_tuning(
    tuned: Tuned,
    labels: LabelLake,
    truth: str,
    fraction: float,
    seed: int,
    name: Callable[[int], str],
) -> Tuning:
    """Choose, and report.

    Raises:
        InputError: one of the two splits has no image.
    """
    if not min(tuned.images):
        which = "chosen on" if not tuned.images[0] else "left to report on"
        raise InputError(
            f"--fraction {fraction:g} of {sum(tuned.images)} images: none is {which}; give another fraction or seed, "
            "or more images"
        )
    tried = []
    for candidate, sweep in tuned.chosen_on.items():
        # A power of refined scores is another thing than a refined power, which a job would compute.
        plain = candidate == "stored" and labels.settings.refine.method == "none"
        for rule in ("constant", "power") if plain else ("constant",):
            best = best_of(sweep.points(name, (rule,)))
            if best is not None:
                tried.append(Choice(candidate, best))
    if not tried:
        raise InputError(
            "--truth: the images to choose on have no pixel that the truth does not ignore; give a fraction"
        )
    # Stable: of equals the plainer one.
    tried.sort(key=lambda choice: -(choice.point.totals.miou or 0.0))
    chosen = tried[0]
    value = chosen.point.value
    edge = value if chosen.point.rule == "constant" else threshold_of(value)
    classes = class_results(tuned.reported_on[chosen.candidate].at(edge), name)
    before = totals(class_results(tuned.labels.pairs, name))
    return Tuning(labels.store.uri, truth, fraction, seed, tuned.images, tried, classes, totals(classes), before)
