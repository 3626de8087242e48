"""The JSON documents of a lake: manifest, commit, quarantine record and success marker."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.layout import FORMAT_VERSION


class Document(BaseModel):
    """A frozen document; unknown members are kept out so that drift is seen in tests."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredDocument(Document):
    """A document that is an object of its own in the lake."""

    sha256: str | None = Field(
        None,
        description="SHA-256 of the object's bytes with the 64 digits of this member as zeros; null in lakes that are "
        "older than this member.",
    )


class LayerInfo(Document):
    """A target layer of the run."""

    name: str
    channels: int
    height: int
    width: int


class ModelInfo(Document):
    """The model as it was used."""

    name: str
    weights: str | None
    digest: str = Field(description="SHA-256 over parameter names and values as loaded.")
    num_classes: int
    class_names: list[str] | None
    preprocess: dict[str, Any]
    input_size: tuple[int, int] = Field(description="(height, width) of the tensor the model sees.")
    layers: list[LayerInfo]
    precision: str


class MethodInfo(Document):
    """A method with its resolved parameters and the layers it writes."""

    key: str
    name: str
    layers: list[str] = Field(description="Layer names in the maps table; fused layers joined by '+'.")
    signed: bool = Field(description="Maps may be negative (no ReLU).")
    parameters: dict[str, Any]


class ObjectInfo(Document):
    """An object that a document answers for."""

    path: str
    size: int
    sha256: str


class Manifest(StoredDocument):
    """``camlake.json``: what the lake is; written once, before any unit."""

    format_version: Literal[1] = FORMAT_VERSION
    created: str = Field(description="UTC time, ISO 8601.")
    run_id: str
    job: dict[str, Any] = Field(description="The resolved job file, credentials left out.")
    job_digest: str
    inputs_digest: str = Field(description="SHA-256 over the plan's rows.")
    units: int
    model: ModelInfo
    methods: list[MethodInfo]
    attributes: dict[str, str] = Field(description="Attribute columns of the images table and their types.")
    versions: dict[str, str] = Field(description="Library versions.")
    plan: ObjectInfo | None = Field(None, description="The plan as stored; null in lakes that are older than this.")
    kind: Literal["heatmaps", "labels"] = Field("heatmaps", description="What the lake holds.")


class Commit(StoredDocument):
    """``commits/<unit>.json``: the unit's result; the first that lands wins."""

    format_version: Literal[1] = FORMAT_VERSION
    unit_id: str
    attempt: str
    created: str
    worker: str
    images: dict[str, int] = Field(description="Number of images by status.")
    maps: int = Field(description="Rows of the maps table; in a lake of labels, of the labels table.")
    flags: dict[str, int] = Field(
        default_factory=dict, description="Number of maps that are all_zero, constant, not_finite."
    )
    objects: list[ObjectInfo]
    seconds: dict[str, float] = Field(description="Wall seconds: read, decode, wait, compute, write, total.")
    compute: dict[str, int] = Field(
        default_factory=dict,
        description="Images per clean and per masked forward: batch_size, mask_batch. Less than the job's where the "
        "memory did not suffice.",
    )


class Attempt(Document):
    """One failed attempt at a unit."""

    attempt: str
    when: str
    worker: str
    kind: str = Field(description="'error', 'died', 'hung', 'timeout'; 'node_lost', 'out_of_memory'.")
    reason: str


class Quarantine(StoredDocument):
    """``quarantine/<unit>.json``: a unit that was given up, with its history."""

    format_version: Literal[1] = FORMAT_VERSION
    unit_id: str
    created: str
    attempts: list[Attempt]


class Success(StoredDocument):
    """``_SUCCESS.json``: everything planned is committed or quarantined, digests checked, orphans swept."""

    format_version: Literal[1] = FORMAT_VERSION
    created: str
    run_id: str
    units: int
    committed: int
    quarantined: int
    images: dict[str, int]
    maps: int
    flags: dict[str, int] = Field(
        default_factory=dict, description="Number of maps that are all_zero, constant, not_finite."
    )
    objects: int
    bytes: int
    orphans_removed: int


DOCUMENTS: dict[str, type[StoredDocument]] = {
    "manifest": Manifest,
    "commit": Commit,
    "quarantine": Quarantine,
    "success": Success,
}
