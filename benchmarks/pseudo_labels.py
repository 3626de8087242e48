"""Pseudo-labels: images per second at one scale and at four scales with flips, against the forwards alone.

    python -m benchmarks.pseudo_labels [--model resnet50] [--weights URI] [--images GLOB] [--refine pamr] [--threads 1]

Ours is what a worker does with an image once it is decoded and brought to its scales: maps of all scales and mirror
images, their sum, the background rule, refinement, PNG and run-length codes. "bare forwards" are the network's forwards
over the same rows at the same sizes, two rows (an image and its mirror image) or one at a time, and nothing else. How
the time falls to the stages is told in the notes; PAMR's part does not depend on the network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import (
    CLOCKS,
    CPU_NOTE,
    add_clock_option,
    add_model_options,
    bare_forward,
    command,
    encoded_images,
    make_parser,
    model_config,
    say,
    title,
)
from pipeline.engine.clock import StageClock
from pipeline.engine.reading import Prepared
from pipeline.models.replica import Replica, load_replica
from pipeline.pseudolabels.explain import LabelExplainer
from pipeline.pseudolabels.sizes import Scaled
from pipeline.sources.base import Sample
from pipeline.sources.decode import decode
from schemas.job import Compute, Output, Source, Targets
from schemas.label_job import LabelJob

LIMIT = "bare forwards"
#: Of the work -> the section pseudo_labels.
SETTINGS: dict[str, dict[str, Any]] = {
    "one scale": {"scales": [1.0], "flip": False},
    "four scales with flips": {"scales": [1.0, 0.5, 1.5, 2.0], "flip": True},
}
#: (height, width) of generated images: those of Pascal VOC's photographs.
SIZES = ((375, 500), (500, 375), (333, 500))
STAGES = ("compute", "refine", "write")


@dataclass(frozen=True)
class Case:
    """One setting: what explains, and the images as a worker's decoding leaves them."""

    explainer: LabelExplainer
    images: list[Prepared]

    def run(self) -> dict[str, float]:
        """Label all images; seconds by stage."""
        clock = StageClock()
        work = self.explainer.unit()
        try:
            work.add_all(iter(self.images), clock)
            found = work.result("unit", "attempt", "benchmark", {})
        finally:
            work.close()
        if len(found.labels) != len(self.images):
            raise RuntimeError(f"{len(found.labels)} of {len(self.images)} images were labelled")
        return clock.seconds()

    def rows(self) -> list[Tensor]:
        """The batches that the forwards of :meth:`run` see."""
        flip = self.explainer.job.pseudo_labels.flip
        model = self.explainer.replica.model
        layout = torch.channels_last
        batches = []
        for image in self.images:
            assert isinstance(image.tensor, Scaled)
            for pixels in image.tensor.scaled:
                row = pixels.to(torch.float32).div_(127.5).sub_(1)[None]
                rows = torch.cat([row, row.flip(-1)]) if flip else row
                batches.append(rows.to(next(model.parameters()).device, memory_format=layout))
        return batches


def make_case(replica: Replica, options: argparse.Namespace, pixels: Sequence[Tensor], setting: str) -> Case:
    """Return the case of a setting."""
    job = LabelJob(
        source=Source(uri="nowhere", format="webdataset"),
        model=replica.config,
        targets=Targets(predicted=True),
        methods=[options.method],
        output=Output(uri="nowhere"),
        compute=Compute(mask_batch=options.mask_batch),
        pseudo_labels={**SETTINGS[setting], "refine": {"method": options.refine}},
    )
    explainer = LabelExplainer(job, replica)
    images = []
    for number, each in enumerate(pixels):
        tensor, view = explainer.preprocess(each)
        sample = Sample(f"image-{number}", "nowhere", None)
        height, width = each.shape[1:]
        images.append(Prepared(sample, "ok", None, b"%d" % number, tensor, view, width, height))
    return Case(explainer, images)


def load_pixels(options: argparse.Namespace) -> list[Tensor]:
    """Return the images (3, H, W) uint8: of tars at their own sizes, or generated ones."""
    if options.images:
        return [decode(data).pixels for data in encoded_images(options.images, options.count)]
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(options.count):
        coarse = torch.rand((1, 3, 6, 8), generator=generator)
        field = functional.interpolate(coarse, SIZES[number % len(SIZES)], mode="bicubic", align_corners=False)
        found.append(field[0].clamp(0, 1).mul(255).to(torch.uint8))
    return found


def _forwards(model: nn.Module, batches: Sequence[Tensor]) -> None:
    for rows in batches:
        bare_forward(model, rows)


def run(options: argparse.Namespace) -> Report:
    """Time all settings."""
    replica = load_replica(model_config(options.model, options))
    pixels = load_pixels(options)
    report = Report()
    for setting in SETTINGS:
        case = make_case(replica, options, pixels, setting)
        contestants = [
            Contestant("ours", case.run),
            Contestant(LIMIT, partial(_forwards, replica.model, case.rows())),
        ]
        found = alternate(contestants, options.repeats, clock=CLOCKS[options.clock], say=say)
        ours, limit = found["ours"], found[LIMIT]
        work = f"{setting}, {options.method}, {options.refine}"
        report.rows.append(Row(work, LIMIT, ours.median, limit.median))
        seconds = ours.result
        total = sum(seconds[stage] for stage in STAGES)
        shares = ", ".join(f"{stage} {seconds[stage] / total:.1%}" for stage in STAGES)
        report.notes.append(
            f"{setting}: {len(pixels) / ours.median:.3f} images/s, the forwards alone {len(pixels) / limit.median:.3f} "
            f"images/s; of the time {shares}"
        )
        report.extra[setting] = {stage: seconds[stage] / total for stage in STAGES}
    report.notes.append(f"{title(options.model)}, {len(pixels)} images, one class each")
    if options.clock == "cpu":
        report.notes.append(f"{CPU_NOTE}; the stages' shares are of wall time")
    return report


PARSER = make_parser("pseudo_labels", __doc__, repeats=3)
PARSER.add_argument("--model", default="resnet50", help="torchvision name, or a model.name (default: %(default)s)")
PARSER.add_argument("--method", default="grad_cam", help="of the maps (default: %(default)s)")
PARSER.add_argument("--refine", choices=("pamr", "crf", "none"), default="pamr", help="default: %(default)s")
PARSER.add_argument("--mask-batch", type=int, default=32, help="Score-CAM's masked images per forward")
add_model_options(PARSER, count=3)
add_clock_option(PARSER)

main = command("pseudo_labels", run, PARSER)

if __name__ == "__main__":
    raise SystemExit(main())
