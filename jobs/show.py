"""``camlake show``: heatmaps laid over their originals, as a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.config import absolute_uri
from jobs.options import SourceStorageOptions, StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.lake import Lake, open_lake
from pipeline.lake.originals import Originals
from pipeline.lake.sheet import lake_sheet
from schemas.errors import InputError, did_you_mean


def show(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")],
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE_ID]...", help="Images to show. Default: the first ones.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to show; may be repeated. Default: all.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Class whose maps are shown, index or name. Default: the best scored one.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Column=value of the images table that images must have, e.g. site=east.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images to show where none is named.")] = 6,
    cell: Annotated[int, typer.Option(min=32, help="Pixels of a picture's longer side.")] = 224,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Opacity of the colours.")] = 0.5,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("camlake-show.png"),
    storage: StorageOptions = None,
    source_storage: SourceStorageOptions = None,
) -> None:
    """Write a contact sheet: each image and an overlay per method, through the view that the model saw."""
    with plain_errors():
        opened = open_lake(absolute_uri(lake), storage_options(storage))
        chosen = images or first_images(opened, count, where)
        originals = Originals(opened, storage_options(source_storage), most_read=None)
        originals.hold((image_id, opened.image(image_id)["unit_id"]) for image_id in chosen)
        sheet = lake_sheet(
            opened,
            chosen,
            target_class=None if target is None else _class_index(opened, target),
            methods=method or None,
            alpha=alpha,
            cell=cell,
            fetch=originals.get,
        )
        try:
            sheet.save(output, "PNG")
        except OSError as error:
            raise InputError(f"--output {output} cannot be written ({error}); name another file") from None
        print(f"{output}: {len(chosen)} images, {sheet.width}x{sheet.height} pixels")


def first_images(lake: Lake, count: int, where: str | None = None) -> list[str]:
    """Return the ids of the first images that were explained and have a column's value, in the lake's order.

    Raises:
        InputError: no such column, or no such image.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    dataset = lake.images
    condition = pc.field("status") == "ok"
    if where is not None:
        column, equals, value = where.partition("=")
        if not equals or column not in dataset.schema.names:
            raise InputError(
                f"--where {where}: write it as column=value with a column of the images table"
                f"{did_you_mean(column, dataset.schema.names)}"
            )
        condition = condition & (pc.field(column).cast(pa.string()) == value)
    found: list[str] = dataset.scanner(columns=["image_id"], filter=condition).head(count)["image_id"].to_pylist()
    if not found:
        raise InputError(
            f"{lake.store.uri} holds no explained image" + (f" with {where}" if where else "") + "; "
            "see the statuses with: camlake status"
        )
    return found


def _class_index(lake: Lake, target: str) -> int:
    names = lake.manifest.model.class_names or []
    if target in names:
        return names.index(target)
    if target.isdigit() and int(target) < lake.manifest.model.num_classes:
        return int(target)
    raise InputError(
        f"--target {target}: the model has no such class{did_you_mean(target, names)}; "
        f"give a name or an index below {lake.manifest.model.num_classes}"
    )


if __name__ == "__main__":
    main_of(show)
