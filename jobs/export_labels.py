"""``camlake export-labels``: pseudo-labels as the folder that trainers take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.config import absolute_uri
from jobs.options import StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.lake import open_lake
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.trainset import ANNOTATIONS, PLACES, export_trainset


def export_labels(
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="URI of a lake of labels.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; new or empty.")],
    layout: Annotated[
        Literal["folder", "voc"],
        typer.Option(help="'folder': images/, masks/ and splits/; 'voc': that of Pascal VOC 2012."),
    ] = "folder",
    images: Annotated[
        Literal["copy", "link", "none"],
        typer.Option(help="Copy the pictures, link to files on this machine, or leave them out."),
    ] = "copy",
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the images for validation, by hash.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of that hash.")] = 0,
    storage: StorageOptions = None,
    source_storage: Annotated[
        list[str] | None,
        typer.Option("--source-storage", metavar="KEY=VALUE", help="fsspec option of the images' file system."),
    ] = None,
) -> None:
    """Write labelled images as a folder for trainers: pictures beside masks, lists, class table, COCO annotations."""
    with plain_errors():
        found = export_trainset(
            LabelLake(open_lake(absolute_uri(labels), storage_options(storage))),
            output,
            arrangement=layout,
            pictures=images,
            validation=val,
            seed=seed,
            source_options=storage_options(source_storage),
        )
        places = PLACES[layout]
        print(f"{found.folder}: {found.images} images, {found.validation} of them for validation")
        if found.suffixes:
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.suffixes.items()))
            again = f", {found.encoded} of them encoded anew" if found.encoded else ""
            print(f"pictures  {places.pictures}: {counts}{again}")
        print(f"masks     {places.masks}; lists in {places.lists}; COCO in {ANNOTATIONS}")
        if found.missing:
            print(f"left out  {found.missing} images; the first: {found.reason}", flush=True)


if __name__ == "__main__":
    main_of(export_labels)
