"""``maps.zarr``: mean, variance, difference and part maps as one zarr v3 group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline.audit.findings.base import Evidence
from pipeline.audit.fixed import MAP_BITS, SQUARE_BITS, Integers, floating
from pipeline.audit.rows import EVERYTHING
from pipeline.audit.table import MAPS
from schemas import layout
from schemas.audit import AUDIT_VERSION, GRID

FOLDER = "maps.zarr"
#: Classes of a chunk, and most of anything else.
_CHUNK = 64
_MOST = 256
#: Cells whose sums are in memory at a time.
_CELLS = 256

Floats = npt.NDArray[np.float64]


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
    places = [_Place(root, EVERYTHING, [""], len(classes))]
    for number, attribute in enumerate(evidence.frame.settings.groups):
        values = evidence.state.maps.values(evidence.frame.primary, attribute)
        if values:
            places.append(_Place(_group(root, evidence, number, attribute, values), attribute, values, len(classes)))
    for start in range(0, len(classes), _CHUNK):
        _write_classes(evidence, classes[start : start + _CHUNK], start, places)
    if len(parts):
        _write(root, "parts", parts.astype(np.float32), ("part", "y", "x"))
    return {f"{FOLDER}/{path}": objects.pop(path).to_bytes() for path in sorted(objects)}


def _group(root: zarr.Group, evidence: Evidence, number: int, attribute: str, values: list[str]) -> zarr.Group:
    name = layout.safe(attribute)
    names = [layout.safe(each) for each in evidence.frame.settings.groups]
    if names.count(name) > 1:
        name = f"{name}-{number}"
    return root.create_group(f"groups/{name}", attributes={"attribute": attribute, "values": values})


class _Place:
    """The arrays of an attribute: of V values and C classes, or of C classes only where it is everything."""

    def __init__(self, group: zarr.Group, attribute: str, values: list[str], classes: int) -> None:
        self.attribute, self.values, self.grouped = attribute, values, attribute != EVERYTHING
        shape, names = ((len(values), classes), ("value", "class")) if self.grouped else ((classes,), ("class",))
        self._arrays = {"count": _create(group, "count", shape, np.int64, names)}
        for name in ("mean", "variance", *(("difference",) if self.grouped else ())):
            self._arrays[name] = _create(group, name, (*shape, GRID, GRID), np.float32, (*names, "y", "x"))

    def write(self, name: str, start: int, values: npt.NDArray[Any]) -> None:
        """Write values (V, c, ...) of the classes from a place on."""
        columns = slice(start, start + values.shape[1])
        array = self._arrays[name]
        if self.grouped:
            array[:, columns] = values.astype(array.dtype)
        else:
            array[columns] = values[0].astype(array.dtype)


def _write_classes(evidence: Evidence, classes: list[int], start: int, places: list[_Place]) -> None:
    """Write the maps of some classes, which are places of the class axis from ``start`` on."""
    least = evidence.frame.settings.suppressed_below
    for place, (count, total, square) in zip(places, _class_sums(evidence, classes, places), strict=True):
        shown = np.where(count >= least, count, 0)
        mean = _mean(shown, total)
        place.write("count", start, shown)
        place.write("mean", start, mean)
        place.write("variance", start, _variance(shown, total, square))
        if place.grouped:
            others = count.sum(0) - count
            rest = _mean(np.where(others >= least, others, 0), total.sum(0) - total)
            place.write("difference", start, mean - rest)


#: Of V values and c classes: maps (V, c), their sums and those of their squares (V, c, GRID, GRID).
_Sums = tuple[Integers, Integers, Integers]


def _class_sums(evidence: Evidence, classes: list[int], places: list[_Place]) -> list[_Sums]:
    """Return the sums of some classes, one after the other in order, for each place."""
    maps, series = evidence.state.maps, evidence.frame.primary
    index = maps.index(series)
    target, pair, _ = index.columns()
    found: list[_Sums] = []
    row_of = np.full((len(places), len(index.pairs)), -1, np.int64)
    for number, place in enumerate(places):
        shape = len(place.values), len(classes)
        total, square = np.zeros((2, *shape, GRID, GRID), np.int64)
        found.append((np.zeros(shape, np.int64), total, square))
        for each, (attribute, value) in enumerate(index.pairs):
            if attribute == place.attribute and value in place.values:
                row_of[number, each] = place.values.index(value)
    column = np.searchsorted(classes, target)
    first, last = np.searchsorted(target, [classes[0], classes[-1] + 1]).tolist()
    for at in range(first, last, _CELLS):
        some = slice(at, min(at + _CELLS, last))
        sums = maps.bulk(series, some.start, some.stop, MAPS)
        for number, mine in enumerate(found):
            rows = row_of[number, pair[some]]
            there = np.flatnonzero(rows >= 0)
            for values, name in zip(mine, MAPS, strict=True):
                np.add.at(values, (rows[there], column[some][there]), sums[name][there])
    return found


def _mean(count: Integers, total: Integers) -> Floats:
    """Return means (..., GRID, GRID); NaN of nothing."""
    return np.asarray(floating(total, MAP_BITS) / np.where(count > 0, count, np.nan)[..., None, None])


def _variance(count: Integers, total: Integers, square: Integers) -> Floats:
    """Return unbiased variances (..., GRID, GRID); NaN below two maps."""
    n = np.where(count > 1, count, np.nan)[..., None, None]
    around = floating(square, SQUARE_BITS) - n * _mean(count, total) ** 2
    return np.asarray(np.maximum(0.0, around / (n - 1)))


def _write(group: zarr.Group, name: str, values: npt.NDArray[Any], dimensions: tuple[str, ...]) -> None:
    _create(group, name, values.shape, values.dtype, dimensions)[...] = values


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, dimensions: tuple[str, ...]
) -> Any:
    kind = np.dtype(dtype)
    return group.create_array(
        name,
        shape=shape,
        dtype=kind.name,
        # No chunk is written twice: classes come in portions of this size.
        chunks=tuple(
            min(length, _CHUNK if axis == "class" else _MOST) for length, axis in zip(shape, dimensions, strict=True)
        ),
        compressors=ZstdCodec(level=3, checksum=True),
        fill_value=np.nan if kind.kind == "f" else 0,
        dimension_names=dimensions,
        config={"write_empty_chunks": True},
    )
