"""What tuning came to: as lines for a job file, as JSON, and as text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import yaml

from pipeline.pseudolabels.evaluation import class_row
from pipeline.pseudolabels.tune import Choice, Tuning
from schemas.pseudolabels import PamrRefinement, PseudoLabels

REPORT, LINES = "tuning.json", "tuned.yaml"


def section(choice: Choice, settings: PseudoLabels) -> dict[str, Any]:
    """Return the members of ``pseudo_labels`` that a choice sets."""
    point = choice.point
    member = "threshold" if point.rule == "constant" else "power"
    refine = PamrRefinement() if choice.candidate == "pamr" else settings.refine
    return {
        "background": {"rule": point.rule, member: point.value},
        "refine": refine.model_dump(mode="json"),
    }


def job_lines(found: Tuning, settings: PseudoLabels) -> str:
    """Return the lines to put into the job file."""
    head = (
        f"# Chosen on {found.images[0]} images (fraction {found.fraction:g}, seed {found.seed}); "
        f"on the {found.images[1]} others: mIoU {_number(found.totals.miou)}\n"
    )
    document = {"pseudo_labels": section(found.choice, settings)}
    return head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None)


def files(found: Tuning, settings: PseudoLabels) -> dict[str, bytes]:
    """Return the files of a tuning by name."""
    document = {
        "labels": found.labels,
        "truth": found.truth,
        "fraction": found.fraction,
        "seed": found.seed,
        "images_chosen_on": found.images[0],
        "images_reported_on": found.images[1],
        "chosen": section(found.choice, settings),
        "tried": [
            {**section(each, settings), "miou_of_the_images_chosen_on": each.point.totals.miou} for each in found.tried
        ],
        "reported": asdict(found.totals),
        "reported_before": asdict(found.before),
        "classes": [class_row(each) for each in found.classes],
    }
    return {
        REPORT: (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(),
        LINES: job_lines(found, settings).encode(),
    }


def lines(found: Tuning, settings: PseudoLabels) -> list[str]:
    """Return the tuning as a person reads it."""
    text = [f"chosen on {found.images[0]} images; the best of each kind there:"]
    for each in found.tried:
        chosen = section(each, settings)
        background, refine = chosen["background"], chosen["refine"]["method"]
        value = next(value for name, value in background.items() if name != "rule")
        text.append(f"  {background['rule']} {value:g}, refinement {refine}: mIoU {_number(each.point.totals.miou)}")
    return [
        *text,
        f"on the {found.images[1]} others: mIoU {_number(found.totals.miou)} as chosen, "
        f"{_number(found.before.miou)} of the labels as they are",
        "for the job file:",
        *(f"  {line}" for line in job_lines(found, settings).splitlines()),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
