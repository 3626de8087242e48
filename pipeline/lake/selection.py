"""Choosing rows of the maps table, and cutting them into what is read at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from schemas.documents import Manifest
from schemas.errors import InputError, did_you_mean

_USUAL_CELLS = 56 * 56


def conditions(
    manifest: Manifest,
    uri: str,
    condition: ds.Expression | None,
    method: str | None,
    layer: str | None,
    target_class: int | None,
) -> ds.Expression | None:
    """Return all conditions as one expression over the maps table; None where there is none.

    Raises:
        InputError: the lake at ``uri`` has no such method or layer.
    """
    methods = [info.key for info in manifest.methods]
    layers = sorted({name for info in manifest.methods for name in info.layers})
    for kind, name, choices in (("method", method, methods), ("layer", layer, layers)):
        if name is not None and name not in choices:
            raise InputError(
                f"{uri} holds no {kind} '{name}'{did_you_mean(name, choices)}; it holds: {', '.join(choices)}"
            )
    for column, value in (("method", method), ("layer", layer), ("target_class", target_class)):
        if value is not None:
            part = pc.field(column) == value
            condition = part if condition is None else condition & part
    return condition


def complete(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Append the columns that a table of an older release lacks, as nulls."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def cells(manifest: Manifest, layer: str) -> int:
    """Cells of a map of a layer, as the manifest says (fused maps have the finest grid)."""
    grids = {info.name: info.height * info.width for info in manifest.model.layers}
    return max(grids.get(name, _USUAL_CELLS) for name in layer.split("+"))


def blocks(table: pa.Table, most: Callable[[str], int]) -> Iterator[tuple[str, pa.Table]]:
    """Cut a maps table, which lies array by array, into (array, rows) of one array and at most ``most(layer)`` rows."""
    paths = table["store_path"].to_pylist()
    start = 0
    while start < len(paths):
        stop, limit = start, most(table["layer"][start].as_py())
        while stop < len(paths) and paths[stop] == paths[start] and stop - start < limit:
            stop += 1
        yield paths[start], table.slice(start, stop - start)
        start = stop
