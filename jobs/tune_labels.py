"""``camlake tune-labels``: background rule and refinement chosen on a few labelled images."""

from __future__ import annotations

import os
from collections import deque
from typing import Annotated

import typer

from jobs.audit_options import connect
from jobs.config import absolute_uri
from jobs.evaluate_labels import Ignore, MissingImages, TruthStorage, TruthUri, UnknownClasses
from jobs.options import StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.lake import LakeStore, open_lake
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.evaluate import Coverage, pairs_of, spread
from pipeline.pseudolabels.truth import open_truth
from pipeline.pseudolabels.tune import Tuned, Tuner, candidates, make_tuning
from pipeline.pseudolabels.tuning import files, lines


def tune_labels(
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="A lake of labels with scores (files.soft).")],
    truth: TruthUri,
    fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the images to choose on, by hash of their id.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that hash.")] = 0,
    pamr: Annotated[
        bool,
        typer.Option("--pamr", help="Try PAMR, too, where the stored scores are not refined; reads the pictures."),
    ] = False,
    output: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder of the result. Default: LABELS.tuning, beside it.")
    ] = None,
    ignore: Ignore = None,
    missing: MissingImages = "error",
    unknown_classes: UnknownClasses = "wrong",
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks at a time; 0: threads of this process.")] = 0,
    storage: StorageOptions = None,
    truth_storage: TruthStorage = None,
    source_storage: Annotated[
        list[str] | None,
        typer.Option("--source-storage", metavar="KEY=VALUE", help="fsspec option of the images' file system."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
) -> None:
    """Choose background rule and refinement on a share of the images, and report on the others, never on the same."""
    with plain_errors():
        options = storage_options(storage)
        opened = LabelLake(open_lake(absolute_uri(labels), options))
        tried = candidates(opened, pamr)
        masks = open_truth(
            absolute_uri(truth), opened, storage_options(truth_storage), ignore=ignore, unknown=unknown_classes
        )
        deque(pairs_of(opened, masks, missing, Coverage()), maxlen=0)
        if workers:
            connect(address)
        tuner = Tuner(opened, masks, fraction, seed, tried, storage_options(source_storage))
        tuned = spread(
            tuner,
            pairs_of(opened, masks, missing, Coverage()),
            Tuned(),
            workers=workers,
            threads=os.cpu_count() or 1,
        )
        names = masks.names
        found = make_tuning(
            tuned, opened, absolute_uri(truth), fraction, seed, lambda each: names.get(each, f"class {each}")
        )
        place = LakeStore(absolute_uri(output) if output else f"{opened.store.uri}.tuning", options)
        written = files(found, opened.settings)
        for name, data in written.items():
            place.put(name, data)
        print("\n".join(lines(found, opened.settings)))
        print(f"written   {place.uri}: {', '.join(written)}", flush=True)


if __name__ == "__main__":
    main_of(tune_labels)
