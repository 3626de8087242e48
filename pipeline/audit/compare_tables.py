"""What a comparison leaves behind: its tables, its drifts and its manifest."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from schemas.audit import AUDIT_VERSION, GRID, Settings

_NAME = pa.dictionary(pa.int32(), pa.string())

#: One row per class and measure; B is compared with A. The row without a class holds the maps of all compared classes:
#: it is not tested, since lakes of another mix of classes differ as a whole though no class does.
COMPARISON = pa.schema(
    [
        pa.field("class_a", pa.int32()),
        pa.field("class_b", pa.int32()),
        pa.field("name", _NAME),
        pa.field("measure", _NAME, False),
        pa.field("comparable", pa.bool_(), False),
        pa.field("n_a", pa.int64(), False),
        pa.field("n_b", pa.int64(), False),
        pa.field("mean_a", pa.float64()),
        pa.field("mean_b", pa.float64()),
        pa.field("std_a", pa.float64()),
        pa.field("std_b", pa.float64()),
        pa.field("difference", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("d", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("q", pa.float64()),
        pa.field("drift", pa.bool_(), False),
    ]
)

_MAP = pa.list_(pa.float32(), GRID * GRID)

#: One row per class: where it is looked at, as mean densities over the view (mean 1, row by row).
PRIORS = pa.schema(
    [
        pa.field("class_a", pa.int32(), False),
        pa.field("class_b", pa.int32(), False),
        pa.field("name", _NAME, False),
        pa.field("n_a", pa.int64(), False),
        pa.field("n_b", pa.int64(), False),
        pa.field("distance", pa.float64()),
        pa.field("sample_a", pa.int64(), False),
        pa.field("sample_b", pa.int64(), False),
        pa.field("sample_distance", pa.float64()),
        pa.field("chance", pa.float64()),
        pa.field("d", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("q", pa.float64()),
        pa.field("drift", pa.bool_(), False),
        pa.field("matched", pa.int64(), False),
        pa.field("correlation", pa.float64()),
        pa.field("mean_a", _MAP),
        pa.field("mean_b", _MAP),
    ]
)


class Document(BaseModel):
    """A frozen document."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(Document):
    """A measure of a class that drifted."""

    measure: str
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    d: float
    q: float
    n_a: int
    n_b: int


class PlaceChange(Document):
    """The location prior of a class that drifted; see :class:`pipeline.audit.compare_priors.Prior`."""

    distance: float
    chance: float
    more: str = Field(description="Where B has most mass more than A, in words.")
    less: str
    d: float
    q: float
    n_a: int
    n_b: int


class ClassDrift(Document):
    """All that drifted of one class."""

    class_a: int
    class_b: int
    name: str
    severity: float = Field(description="By which drifts are ranked, [0, 100].")
    sentence: str
    place: PlaceChange | None
    measures: tuple[Change, ...] = Field(description="The largest standardised difference first.")


class ComparedLake(Document):
    """One of the two lakes."""

    uri: str
    run_id: str
    finished: bool
    commits_digest: str
    model: str
    model_digest: str
    method: str
    layer: str
    units: int
    images: int
    maps: int
    counted: int
    regions: str | None


class Shared(Document):
    """What the lakes have in common."""

    images: int = Field(description="Images of one content in both, of those whose digests are kept.")
    images_a: int = Field(description="Digests of A that are kept: all of up to 20 million images, else a share.")
    images_b: int
    maps: int = Field(description="Sampled maps of one class and of one image content in both.")
    maps_by_id: int = Field(description="Those that also have one image id, so that the bootstrap pairs them.")
    correlation: float | None = Field(description="Mean correlation of the two maps, over the classes' sampled maps.")


class CompareManifest(Document):
    """``comparison.json``: what was compared, how, and what drifted."""

    audit_version: Literal[1] = 1
    created: str
    a: ComparedLake
    b: ComparedLake
    settings: Settings
    matched_by: Literal["name", "index"]
    classes: int = Field(description="Classes with maps in both lakes.")
    tested: int = Field(description="Those of which something was tested.")
    tests: int
    only_a: tuple[str, ...] = Field(description="Classes of A's model only.")
    only_b: tuple[str, ...]
    without_maps: int = Field(description="Classes of both models that have maps in one lake only, or in none.")
    skipped: tuple[str, ...] = Field(description="Measures that cannot be compared.")
    notes: tuple[str, ...]
    pairing: str
    shared: Shared
    drifts: tuple[ClassDrift, ...]
    versions: dict[str, str]


def parquet(columns: dict[str, list[Any]], schema: pa.Schema, run_ids: tuple[str, str]) -> tuple[pa.Table, bytes]:
    """Return columns as a table, and as a Parquet file; NaN becomes null."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if pa.types.is_floating(field.type):
            values = [None if value is None or np.isnan(value) else value for value in values]
        arrays.append(pa.array(values, field.type))
    metadata = {"camlake_audit_version": str(AUDIT_VERSION), "run_a": run_ids[0], "run_b": run_ids[1]}
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return table, buffer.getvalue()
