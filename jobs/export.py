"""``camlake export``: images with their heatmaps as files of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.config import absolute_uri
from jobs.options import SourceStorageOptions, StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.audit.exports import DEFAULT_IMAGES, export
from pipeline.lake import open_lake
from schemas.registries import EXPORTS


def export_command(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")],
    to: Annotated[str, typer.Option("--to", metavar="TOOL", help=f"What to write for: {', '.join(EXPORTS)}.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write; new or empty.")],
    images: Annotated[int, typer.Option(min=1, help="Most images.")] = DEFAULT_IMAGES,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME]...", help="Explained classes, names or indices. Default: all."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="An audit of the lake: the images behind its findings. Default: some of each class, by hash.",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Whose maps. Default: the audit's, else the lake's first.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="Its layer. Default: the audit's, else the last that the method writes.")
    ] = None,
    storage: StorageOptions = None,
    source_storage: SourceStorageOptions = None,
) -> None:
    """Write images with their heatmaps as files that FiftyOne, Renumics Spotlight or ViRelAy opens."""
    with plain_errors():
        options = storage_options(storage)
        found = export(
            open_lake(absolute_uri(lake), options),
            to,
            output,
            images=images,
            classes=[name.strip() for each in classes or [] for name in each.split(",") if name.strip()],
            audit=None if audit is None else absolute_uri(audit),
            method=method,
            layer=layer,
            storage_options=options,
            source_options=storage_options(source_storage),
        )
        print(f"{found.folder}: {found.images} images of {found.classes} explained classes")
        if found.missing:
            print(f"left out  {found.missing} images; the first: {found.reason}")
        print(f"open with {found.how_to_open}", flush=True)


if __name__ == "__main__":
    main_of(export_command)
