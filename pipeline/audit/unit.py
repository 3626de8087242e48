"""One unit of a lake added to the state."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.blocks import Block, Coded
from pipeline.audit.canonical import expanded, reduced
from pipeline.audit.frame import Frame
from pipeline.audit.keys import Keys, keys_of, mixed
from pipeline.audit.localisation import localise
from pipeline.audit.regions.base import RegionSource
from pipeline.audit.sample import sample_schema
from pipeline.audit.state import State
from pipeline.lake import Lake
from schemas.audit import GRID, MEASURE_INDEX, MEASURES, OUTCOMES, UNIFORM_BORDER, UNIFORM_CORNER
from schemas.errors import LakeError
from schemas.view import View

#: Maps of one series that are held at a time; fewer where each has a region of its own.
_ROWS = 4096
_ROWS_WITH_REGIONS = 512
_FLAGS = ("all_zero", "constant", "not_finite")
_PLAIN = ("probability", "effective_area", "gini", "spread", "centre_y", "centre_x")

Floats = npt.NDArray[np.float64]


class Images:
    """The images of a unit, as columns.

    With N images: ``image_key`` (N,) uint64 of the image, ``key`` (N,) of the cluster, ``outcome`` (N,), ``groups``
    attribute -> N values.
    """

    def __init__(self, table: pa.Table, frame: Frame) -> None:
        settings = frame.settings
        self.table = table
        ids = table["image_id"].to_pylist()
        self.image_key = keys_of(ids, settings.seed)
        self.key: Keys = self.image_key
        if settings.cluster is not None:
            found = texts(table[settings.cluster])
            # A row without a cluster depends on nothing but itself.
            names = [f"id {own}" if name is None else f"in {name}" for own, name in zip(ids, found, strict=True)]
            self.key = keys_of(names, settings.seed)
        self.outcome = outcomes(table)
        self.groups = {name: Coded.of(table[name]) for name in settings.groups}

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The table's rows, for those who ask image by image."""
        found: list[dict[str, Any]] = self.table.to_pylist()
        return found

    def view(self, row: int) -> View | None:
        """Return the view of an image; None where it failed."""
        edges = [self.rows[row][f"view_{edge}"] for edge in ("x0", "y0", "x1", "y1")]
        return None if any(edge is None for edge in edges) else View(*edges)

    def places(self, ids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """Return the rows of images, each of which must be there.

        Raises:
            LakeError: one is not.
        """
        found = pc.index_in(ids, value_set=self.table["image_id"])
        if found.null_count:
            raise LakeError(f"image '{ids.filter(pc.is_null(found))[0]}' has maps, but is not in the images table")
        return np.asarray(found.to_numpy(), np.int64)


def texts(column: pa.ChunkedArray) -> list[str | None]:
    """Return a column's values as text; None stays None."""
    return [None if value is None else str(value) for value in column.to_pylist()]


def outcomes(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return whether each image's prediction was right, as an index into ``OUTCOMES``."""
    right = pc.equal(table["predicted_class"], table["label"])
    found = pc.if_else(right, OUTCOMES.index("right"), OUTCOMES.index("wrong"))
    return np.asarray(pc.fill_null(found, OUTCOMES.index("unknown")).to_numpy(), np.int64)


def add_unit(state: State, lake: Lake, unit_id: str, regions: RegionSource | None) -> None:
    """Read one committed unit and add it to ``state``.

    Raises:
        LakeError: an object of the unit is missing or damaged, or its methods have different targets.
    """
    frame = state.frame
    images = Images(lake.unit_images(unit_id), frame)
    maps = lake.unit_maps(unit_id)
    state.counts["units"] += 1
    state.counts["images"] += len(images)
    state.counts["maps"] += len(maps)
    digests = pc.binary_slice(images.table["sha256"].drop_null().cast(pa.binary()), 0, 8)
    state.add_digests(np.frombuffer(b"".join(digests.to_pylist()), "<u8").astype(np.uint64))
    _add_properties(state, images)

    maps = maps.filter(counted(maps, frame.settings.targets))
    parts = [
        maps.filter((pc.field("method") == method) & (pc.field("layer") == layer)) for method, layer in frame.series
    ]
    first = parts[frame.primary]
    for part in parts:
        if not (part["image_id"].equals(first["image_id"]) and part["target_class"].equals(first["target_class"])):
            raise LakeError(f"{lake.store.uri}: unit '{unit_id}' has maps of different targets; run 'camlake verify'")
    state.counts["counted"] += sum(map(len, parts))
    most = _ROWS if regions is None else _ROWS_WITH_REGIONS
    for start in range(0, len(first), most):
        _add_rows(state, lake, images, [part.slice(start, most) for part in parts], regions)


def counted(maps: pa.Table, targets: str | None) -> pc.Expression | pa.ChunkedArray:
    """Return which rows of a maps table the settings choose."""
    if targets == "predicted":
        return maps["is_predicted"]
    if targets == "label":
        return pc.fill_null(maps["is_label"], False)
    return pa.chunked_array([pa.array(np.ones(len(maps), np.bool_))])


def _add_rows(state: State, lake: Lake, images: Images, parts: list[pa.Table], regions: RegionSource | None) -> None:
    frame = state.frame
    first = parts[frame.primary]
    places = images.places(first["image_id"])
    target = first["target_class"].to_numpy().astype(np.int64)
    masks = _masks(images, places, target, frame, regions)
    state.counts["regions"] += sum(mask is not None for mask in masks)
    groups = {name: values.take(places) for name, values in images.groups.items()}
    densities: list[npt.NDArray[np.float32]] = []
    for number, part in enumerate(parts):
        stored = lake.stored_maps(part, scaled=True)
        density = reduced(stored)
        flags = np.stack([part[name].to_numpy() for name in _FLAGS], 1).astype(np.bool_)
        values = measures(part)
        for name, column in localise(stored, masks).items():
            values[:, MEASURE_INDEX[name]] = column
        values[flags[:, 2] | flags[:, 0]] = np.nan
        primary = number == frame.primary
        keys = images.key[places] if primary else None
        state.maps.add(Block(number, target, images.outcome[places], groups, values, flags, density, keys=keys))
        if len(parts) > 1:
            whole = expanded(density)
            _add_agreement(state, number, whole, densities, target, images.outcome[places])
            densities.append(whole.astype(np.float32))
        if primary:
            _add_sample(state, images, part, places, target, values, density)


def measures(part: pa.Table) -> Floats:
    """Return the measures (T, M) that the maps table holds; the regional ones are NaN."""
    values = np.full((len(part), len(MEASURES)), np.nan)
    for name in _PLAIN:
        values[:, MEASURE_INDEX[name]] = column(part, name)
    values[:, MEASURE_INDEX["border_enrichment"]] = column(part, "border_mass") / UNIFORM_BORDER
    values[:, MEASURE_INDEX["corner_enrichment"]] = column(part, "corner_mass") / UNIFORM_CORNER
    return values


def column(table: pa.Table, name: str) -> Floats:
    """Return a column as float64; nulls become NaN."""
    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _masks(
    images: Images,
    places: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    frame: Frame,
    regions: RegionSource | None,
) -> list[npt.NDArray[np.bool_] | None]:
    """Return the region of each map's class in its image's view."""
    if regions is None:
        return [None] * len(places)
    found: list[npt.NDArray[np.bool_] | None] = []
    for place, each in zip(places.tolist(), target.tolist(), strict=True):
        view = images.view(place)
        name = None if frame.class_names is None else frame.name(each)
        region = None if view is None else regions.region(images.rows[place], each, name)
        found.append(None if region is None or view is None else region.in_view(view))
    return found


def _add_agreement(
    state: State,
    number: int,
    density: Floats,
    before: list[npt.NDArray[np.float32]],
    target: npt.NDArray[np.int64],
    outcome: npt.NDArray[np.int64],
) -> None:
    if not before:
        return
    mine = _standardised(density)
    flags = np.zeros((len(target), 3), np.bool_)
    for other, theirs in enumerate(before):
        correlation = (mine * _standardised(theirs.astype(np.float64))).mean(1)[:, None]
        block = Block(other * len(state.frame.series) + number, target, outcome, {}, correlation, flags)
        state.agreement.add(block)


def _standardised(density: Floats) -> Floats:
    flat = density.reshape(len(density), GRID * GRID)
    centred = flat - flat.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True))
    found: Floats = centred / np.where(deviation > 1e-9, deviation, np.nan)
    return found


def _add_properties(state: State, images: Images) -> None:
    """Add what the files themselves are like, by label."""
    table = images.table
    rows = np.flatnonzero(pc.and_(pc.is_valid(table["label"]), pc.is_valid(table["width"])).to_numpy())
    part = table.take(pa.array(rows))
    width, height, size = (column(part, name) for name in ("width", "height", "byte_size"))
    with np.errstate(divide="ignore"):
        values = np.stack([np.log(width), np.log(height), np.log(width / height), np.log(size / (width * height))], 1)
    label = part["label"].to_numpy().astype(np.int64)
    groups = {name: found.take(rows) for name, found in images.groups.items()}
    flags = np.zeros((len(rows), 3), np.bool_)
    state.images.add(Block(0, label, images.outcome[rows], groups, values, flags))


def _add_sample(
    state: State,
    images: Images,
    part: pa.Table,
    places: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    values: Floats,
    density: Floats,
) -> None:
    sound = np.isfinite(density[:, 0, 0])
    keys = mixed(images.image_key[places], target)
    chosen = np.flatnonzero(sound)
    chosen = chosen[state.sample.room(target[chosen], keys[chosen])]
    rows, where = pa.array(chosen), pa.array(places[chosen])
    about, of = part.take(rows), images.table.take(where)
    columns: dict[str, Any] = {
        "key": keys[chosen],
        "half": (mixed(images.key[places[chosen]], 7) >> np.uint64(63)).astype(np.int8),
        "target_class": target[chosen],
        "outcome": images.outcome[places[chosen]],
        **{name: about[name] for name in ("image_id", "unit_id", "store_path", "store_row")},
        **{name: of[name] for name in of.column_names if name.startswith(("label", "predicted_"))},
        **{measure.name: values[chosen, index].astype(np.float32) for index, measure in enumerate(MEASURES)},
        **{f"group:{name}": found.take(places[chosen]).texts() for name, found in images.groups.items()},
    }
    schema = pa.schema([field for field in sample_schema(state.frame.settings.groups) if field.name != "map"])
    table = pa.table({field.name: _cast(columns[field.name], field.type) for field in schema}, schema=schema)
    state.sample.add(table, density[chosen].astype(np.float32))


def _cast(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(kind)
    return pa.array(values, type=kind, from_pandas=False)
