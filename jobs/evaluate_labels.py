"""``camlake evaluate-labels``: pseudo-labels against true masks."""

from __future__ import annotations

import os
from collections import deque
from typing import Annotated, Literal

import typer

from jobs.audit_options import connect
from jobs.config import absolute_uri
from jobs.options import StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.lake import LakeStore
from pipeline.pseudolabels.collection import Collection, open_labels
from pipeline.pseudolabels.evaluate import (
    Counted,
    Counter,
    Coverage,
    Missing,
    pairs_of,
    spread,
    sweep_fault,
    sweep_rules,
)
from pipeline.pseudolabels.evaluation import Evaluation, make_evaluation
from pipeline.pseudolabels.truth import Truth, open_truth

TruthUri = Annotated[
    str,
    typer.Option(metavar="URI", help="True masks: a folder of index PNGs named as the labels are, or a COCO file."),
]
TruthStorage = Annotated[
    list[str] | None,
    typer.Option("--truth-storage", metavar="KEY=VALUE", help="fsspec option of the truth's file system."),
]
Ignore = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Value of the truth's ignored pixels. Default: 255 of 8 bits, 65535 of 16."),
]
MissingImages = Annotated[
    Literal["error", "skip"],
    typer.Option(help="What to do where an image has labels or a true mask alone: refuse, or leave it out."),
]
UnknownClasses = Annotated[
    Literal["wrong", "ignore"],
    typer.Option(help="What pixels of true classes count as that the labels do not have."),
]


def evaluate_labels(
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="A lake of labels, or a folder of index PNGs.")],
    truth: TruthUri,
    output: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder of the evaluation. Default: LABELS.evaluation, beside it.")
    ] = None,
    ignore: Ignore = None,
    missing: MissingImages = "error",
    unknown_classes: UnknownClasses = "wrong",
    sweep: Annotated[
        bool, typer.Option(help="Try all background thresholds and powers, where scores are stored.")
    ] = True,
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks at a time; 0: threads of this process.")] = 0,
    storage: StorageOptions = None,
    truth_storage: TruthStorage = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
) -> None:
    """Compare labels with true masks at full size: one confusion matrix over the dataset, with figures per class."""
    with plain_errors():
        options = storage_options(storage)
        opened = open_labels(absolute_uri(labels), options)
        masks = open_truth(
            absolute_uri(truth), opened, storage_options(truth_storage), ignore=ignore, unknown=unknown_classes
        )
        if workers:
            connect(address)
        found = evaluate(opened, masks, absolute_uri(truth), missing=missing, sweep=sweep, workers=workers)
        place = LakeStore(absolute_uri(output) if output else f"{opened.store.uri}.evaluation", options)
        for name, data in found.files().items():
            place.put(name, data)
        print("\n".join(found.lines()))
        print(f"written   {place.uri}: {', '.join(found.files())}", flush=True)


def evaluate(
    labels: Collection, truth: Truth, truth_uri: str, *, missing: Missing, sweep: bool = True, workers: int = 0
) -> Evaluation:
    """Compare all images.

    Raises:
        CamlakeError: see :func:`pipeline.pseudolabels.evaluate.pairs_of` and ``Counter``.
    """
    # Once without reading masks, so that what is missing is said before hours of work.
    deque(pairs_of(labels, truth, missing, Coverage()), maxlen=0)
    fault = sweep_fault(labels) if sweep else "--no-sweep"
    counter = Counter(labels, truth, fault is None)
    coverage = Coverage()
    counted = spread(
        counter,
        pairs_of(labels, truth, missing, coverage),
        Counted(),
        workers=workers,
        threads=os.cpu_count() or 1,
    )
    names = truth.names
    return make_evaluation(
        labels.store.uri,
        truth_uri,
        counted,
        coverage,
        lambda each: names.get(each, f"class {each}"),
        fault,
        sweep_rules(labels),
    )


if __name__ == "__main__":
    main_of(evaluate_labels)
