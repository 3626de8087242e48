"""Samples of maps made up of an object, clutter and, in some, a planted mark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.canonical import canonical
from pipeline.audit.findings.base import Evidence
from pipeline.audit.frame import Frame, Series
from pipeline.audit.keys import keys_of, mixed
from pipeline.audit.sample import sample_schema
from pipeline.audit.state import State
from schemas.audit import GRID, MEASURES, Settings

SITES = ("east", "north", "south")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Planted:
    """A sample, and which of its rows carry the mark."""

    sample: pa.Table
    marked: npt.NDArray[np.bool_]

    @property
    def marked_ids(self) -> set[str]:
        ids = np.array(self.sample["image_id"].to_pylist(), np.object_)
        return set(ids[self.marked].tolist())


def blobs(y: Floats, x: Floats, height: Floats, width: Floats, grid: tuple[int, int]) -> Floats:
    """(T, h, w) Gaussian blobs of mass 1 around (y, x), in shares of the view."""
    down = (np.arange(grid[0]) + 0.5) / grid[0]
    across = (np.arange(grid[1]) + 0.5) / grid[1]
    rows = np.exp(-0.5 * ((down - y[:, None]) / height[:, None]) ** 2)
    columns = np.exp(-0.5 * ((across - x[:, None]) / width[:, None]) ** 2)
    found = rows[:, :, None] * columns[:, None, :]
    return cast(Floats, found / found.sum((1, 2), keepdims=True))


def planted(
    seed: int,
    *,
    prevalence: float,
    share: float = 0.6,
    classes: int = 10,
    per_class: int = 500,
    marked_class: int = 3,
    corners: int = 4,
    site: str | None = "east",
    shift: float = 0.08,
    spread: float = 0.14,
    grid: tuple[int, int] = (12, 12),
    groups: tuple[str, ...] = ("site",),
) -> Planted:
    """Make a sample.

    Each class lies about a place of its own (standard deviation ``shift`` between classes, ``spread`` within), maps
    have clutter, and ``prevalence`` of the images of one class carry a mark in one of ``corners`` corners that gets
    about ``share`` of the evidence; all of them at one site.
    """
    rng = np.random.default_rng([seed, 71])
    count = classes * per_class
    target = np.repeat(np.arange(classes), per_class)
    middle = 0.5 + rng.normal(0, shift, (classes, 2))
    centre = np.clip(middle[target] + rng.normal(0, spread, (count, 2)), 0.12, 0.88)
    size = rng.uniform(0.07, 0.16, (count, 2))
    maps = blobs(centre[:, 0], centre[:, 1], size[:, 0], size[:, 1], grid)
    for _ in range(2):  # clutter, of most images weak
        away, extent = rng.uniform(0.08, 0.92, (count, 2)), rng.uniform(0.05, 0.1, (count, 2))
        weight = rng.beta(0.5, 4.0, count)[:, None, None]
        maps = (1 - weight) * maps + weight * blobs(away[:, 0], away[:, 1], extent[:, 0], extent[:, 1], grid)
    maps = maps * 0.9 + 0.1 * rng.dirichlet(np.full(grid[0] * grid[1], 0.5), count).reshape(count, *grid)
    places = np.array(SITES, np.object_)[rng.integers(0, len(SITES), count)]
    marked = np.zeros(count, np.bool_)
    able = np.flatnonzero((target == marked_class) & ((places == site) if site else True))
    marked[rng.choice(able, min(len(able), round(prevalence * per_class)), replace=False)] = True
    offset = rng.uniform(0.07, 0.13, (count, 2))
    corner = rng.integers(0, corners, count)
    down, across = (
        np.where(corner & 1, 1 - offset[:, 0], offset[:, 0]),
        np.where(corner & 2, 1 - offset[:, 1], offset[:, 1]),
    )
    mark = blobs(down, across, np.full(count, 0.05), np.full(count, 0.05), grid)
    weight = np.where(marked, np.clip(rng.normal(share, 0.1, count), 0.1, 0.95), 0)[:, None, None]
    return Planted(table((1 - weight) * maps + weight * mark, target, {"site": places} if groups else {}, seed), marked)


def table(
    maps: npt.NDArray[np.floating[Any]],
    target: npt.NDArray[np.int64],
    groups: dict[str, npt.NDArray[np.object_]] | None = None,
    seed: int = 0,
) -> pa.Table:
    """A sample of maps (T, h, w) of classes (T,) in ascending order; rows keep their order."""
    groups = groups or {}
    count = len(maps)
    ids = [f"image-{seed}-{number:06d}" for number in range(count)]
    keys = keys_of(ids, 0)
    density = canonical(np.asarray(maps, np.float64)).astype(np.float32) if count else np.empty(0, np.float32)
    columns: dict[str, Any] = {
        "key": keys,
        "half": (mixed(keys, 7) >> np.uint64(63)).astype(np.int8),
        "target_class": target,
        "image_id": ids,
        "unit_id": ["000000-shard-000"] * count,
        "store_path": ["heatmaps/x"] * count,
        "store_row": np.arange(count, dtype=np.int32),
        "outcome": np.ones(count, np.int64),
        **{f"group:{name}": values for name, values in groups.items()},
        "map": pa.FixedSizeListArray.from_arrays(pa.array(density.ravel()), GRID * GRID),
    }
    schema = sample_schema(tuple(groups))
    missing = {field.name: pa.nulls(count, field.type) for field in schema if field.name not in columns}
    columns |= missing
    assert set(missing) >= {measure.name for measure in MEASURES}
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, type=schema.field(name).type)
        for name, value in ((field.name, columns[field.name]) for field in schema)
    ]
    return pa.table(arrays, schema=schema)


def evidence(sample: pa.Table, lake: Any = None, **settings: Any) -> Evidence:
    """Evidence of a sample alone."""
    chosen = Settings.model_validate(
        {"groups": tuple(name[6:] for name in sample.column_names if name.startswith("group:"))} | settings
    )
    frame = Frame(chosen, (Series("grad_cam", "layer4"),), 0, None, len(sample), 2**64 - 1, 4000)
    return Evidence(frame, State(frame), lake, sample)
