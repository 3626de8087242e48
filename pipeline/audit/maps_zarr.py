"""``maps.zarr``: mean, variance, difference and part maps as one zarr v3 group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline.audit.cells import Cell
from pipeline.audit.findings.base import Evidence
from schemas import layout
from schemas.audit import AUDIT_VERSION, GRID

FOLDER = "maps.zarr"
_CHUNK = 256

Floats = npt.NDArray[np.float64]
#: Maps (C, GRID, GRID) of each class: how many, their mean and their variance.
Summary = tuple[npt.NDArray[np.int64], Floats, Floats]


def maps_objects(evidence: Evidence, parts: Floats) -> dict[str, bytes]:
    """Encode the maps of the audit's method in memory.

    Densities have a mean of 1 over the view: 1 throughout is a uniform map. With C classes and V values of an attribute
    (its group's attributes name them)::

        class (C,) int32                        indices of the classes that have maps
        count (C,) int64                        maps with mass
        mean, variance (C, GRID, GRID) float32
        groups/<attribute>/count (V, C) int64
        groups/<attribute>/mean, variance, difference (V, C, GRID, GRID) float32
        parts (K, GRID, GRID) float32           what the maps are made of; not there where there are none

    ``difference`` is the mean of a group less that of the class's other groups. What fewer maps than
    ``suppressed_below`` tell is NaN, and so is their count 0.

    Args:
        evidence: of the audit.
        parts: (K, GRID, GRID) of mean 1.

    Returns:
        Objects by path relative to the audit.
    """
    objects: dict[str, Any] = {}
    classes = evidence.classes
    series = evidence.frame.series[evidence.frame.primary]
    names = [evidence.frame.name(each) for each in classes] if evidence.frame.class_names else None
    root = zarr.create_group(
        MemoryStore(objects),
        zarr_format=3,
        attributes={
            "audit_version": AUDIT_VERSION,
            "method": series.method,
            "layer": series.layer,
            "class_names": names,
            "unit": "density over the view, mean 1",
        },
    )
    _write(root, "class", np.array(classes, np.int32), ("class",))
    _write_maps(root, _summary(evidence, [evidence.cell(each) for each in classes]), ("class",))
    if len(parts):
        _write(root, "parts", parts.astype(np.float32), ("part", "y", "x"))
    for place, attribute in enumerate(evidence.frame.settings.groups):
        _write_groups(root, evidence, classes, place, attribute)
    return {f"{FOLDER}/{path}": value.to_bytes() for path, value in sorted(objects.items())}


def _write_groups(root: zarr.Group, evidence: Evidence, classes: list[int], number: int, attribute: str) -> None:
    values = evidence.state.maps.values(evidence.frame.primary, attribute)
    if not values:
        return
    name = layout.safe(attribute)
    names = [layout.safe(each) for each in evidence.frame.settings.groups]
    if names.count(name) > 1:
        name = f"{name}-{number}"
    group = root.create_group(f"groups/{name}", attributes={"attribute": attribute, "values": values})
    cells = [[_maps_of(evidence.cell(target, attribute, value)) for target in classes] for value in values]
    found = [_summary(evidence, row) for row in cells]
    count, mean, variance = (np.stack(each) for each in zip(*found, strict=True))
    _write_maps(group, (count, mean, variance), ("value", "class"))
    difference = np.full(mean.shape, np.nan)
    for column in range(len(classes)):
        whole = Cell()
        for row in cells:
            whole.merge(row[column])
        for place, row in enumerate(cells):
            own = row[column].sums
            others = Cell({name: whole.sums[name] - own[name] for name in own})
            difference[place, column] = mean[place, column] - _summary(evidence, [others])[1][0]
    _write(group, "difference", difference.astype(np.float32), ("value", "class", "y", "x"))


def _maps_of(cell: Cell | None) -> Cell:
    """Only the sums of the maps, which are all that is added here."""
    sums = {} if cell is None else cell.sums
    return Cell({name: value for name, value in sums.items() if name.startswith("map_")})


def _summary(evidence: Evidence, cells: Sequence[Cell | None]) -> Summary:
    """Return counts (C,), means and variances (C, GRID, GRID); 0 and NaN below the threshold."""
    count = np.zeros(len(cells), np.int64)
    mean, variance = np.full((2, len(cells), GRID, GRID), np.nan)
    for place, cell in enumerate(cells):
        if cell is not None and cell.maps >= evidence.frame.settings.suppressed_below:
            count[place], mean[place], variance[place] = cell.maps, cell.mean_map(), cell.variance_map()
    return count, mean, variance


def _write_maps(group: zarr.Group, summary: Summary, dimensions: tuple[str, ...]) -> None:
    count, mean, variance = summary
    _write(group, "count", count, dimensions)
    for name, values in (("mean", mean), ("variance", variance)):
        _write(group, name, values.astype(np.float32), (*dimensions, "y", "x"))


def _write(group: zarr.Group, name: str, values: npt.NDArray[Any], dimensions: tuple[str, ...]) -> None:
    chunks = tuple(min(length, _CHUNK) for length in values.shape)
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype.name,
        chunks=chunks,
        compressors=ZstdCodec(level=3, checksum=True),
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        dimension_names=dimensions,
        config={"write_empty_chunks": True},
    )
    array[...] = values
