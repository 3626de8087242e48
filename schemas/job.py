"""The job file: what to explain, with which model and methods, and where the lake goes.

One YAML document, validated before anything starts. :data:`JOB_VERSION` changes when a file that was valid would
mean something else. The JSON Schema is exported to ``schemas/exported/job.schema.json``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from schemas.errors import did_you_mean
from schemas.methods import MethodEntry, Strict
from schemas.redact import holds_credentials, redact
from schemas.registries import SOURCES
from schemas.tables import IMAGES

JOB_VERSION = 1

AttributeType = Literal["string", "int64", "float64", "bool"]
_IDENTIFIER = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _no_credentials(uris: Any) -> Any:
    """Refuse URIs of the job file with credentials in them: the manifest and the plan hold them as they are."""
    for each in uris if isinstance(uris, list) else [uris]:
        if isinstance(each, str) and holds_credentials(each):
            raise ValueError(
                f"'{redact(each)}' is written with credentials in it, which the lake and the logs would keep; "
                "give them in storage_options or in the environment"
            )
    return uris


class Attribute(Strict):
    """A further column or JSON member that passes into the images table."""

    name: str = Field(pattern=_IDENTIFIER, description="Column of the images table.")
    field: str | None = Field(
        None, description="Where the source holds it (dots enter JSON objects). Default: the name."
    )
    type: AttributeType = Field("string", description="Column type; a value that does not convert becomes null.")

    @property
    def path(self) -> str:
        """Where the source holds the value."""
        return self.field or self.name


def _attribute(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Source(Strict):
    """Where the images are and what is known of them."""

    uri: Annotated[str | list[str], AfterValidator(_no_credentials)] = Field(
        description="fsspec URI(s); braces {000..099}, {a,b} and globs (*, ?, [..], **) are expanded."
    )
    format: str = Field(description="Registered source format.", json_schema_extra={"enum": list(SOURCES)})
    label: str | None = Field(
        None,
        description=(
            "Field that holds the label: an index, a class name, or a list of them. webdataset: a member suffix "
            "('cls') or a path into the sample's JSON ('json.label'); parquet and list: a column; folder: a column of "
            "its metadata file (default: the folder's name)."
        ),
    )
    image: str | None = Field(None, description="Field that holds the image. Default: found by the source's rule.")
    id: str | None = Field(
        None, description="Field that holds a unique image id. Default: made from the place in the source."
    )
    attributes: list[Annotated[Attribute, BeforeValidator(_attribute, json_schema_input_type=str | Attribute)]] = Field(
        default_factory=list, description="Further fields for the images table: names, or {name, field, type}."
    )
    unit_images: int = Field(
        4096,
        ge=1,
        description="Most images in a unit where the format can be sliced (folder, list, parquet row groups).",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Options of the fsspec file system."
    )

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        if value not in SOURCES:
            raise ValueError(
                f"format '{value}' is unknown{did_you_mean(value, SOURCES)}; use one of: {', '.join(SOURCES)}"
            )
        return value

    @field_validator("attributes")
    @classmethod
    def _attributes(cls, value: list[Attribute]) -> list[Attribute]:
        seen: set[str] = set()
        for attribute in value:
            if attribute.name in IMAGES.names:
                raise ValueError(
                    f"attribute '{attribute.name}' is a column of the images table already; "
                    f"rename it: {{name: my_{attribute.name}, field: {attribute.path}}}"
                )
            if attribute.name in seen:
                raise ValueError(f"attribute '{attribute.name}' is named twice; give each a name of its own")
            seen.add(attribute.name)
        return value

    @property
    def uris(self) -> list[str]:
        """The URIs as a list."""
        return [self.uri] if isinstance(self.uri, str) else list(self.uri)


class Preprocess(Strict):
    """Evaluation preprocessing; what is not given comes from the weights' own metadata."""

    resize: int | tuple[int, int] | None = Field(
        None, description="Length of the shorter side before the crop, or (height, width) exactly."
    )
    crop: int | tuple[int, int] | None = Field(None, description="Centre crop: a square's side, or (height, width).")
    mean: list[float] | None = Field(None, description="Per-channel mean of pixels in [0, 1].")
    std: list[float] | None = Field(None, description="Per-channel standard deviation of pixels in [0, 1].")
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = Field(
        None, description="Of the resize (antialiased)."
    )
    exif: Literal["ignore", "apply"] = Field(
        "ignore", description="EXIF orientation; most ImageNet evaluations ignore it, so that is the default."
    )


class Model(Strict):
    """The classifier that is explained."""

    name: str = Field(description="'torchvision:NAME', 'timm:NAME' or 'package.module:factory'.")
    weights: Annotated[str | None, AfterValidator(_no_credentials)] = Field(
        None,
        description=(
            "A named weights entry (torchvision 'IMAGENET1K_V2', timm tag), or an fsspec URI of a .safetensors or "
            "torch file (read with weights_only=True). None: 'random' must be said for untrained weights, except "
            "for a factory that loads its own."
        ),
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the constructor, e.g. num_classes."
    )
    strict: bool = Field(True, description="Refuse weights with missing or unexpected keys (both are listed).")
    layers: list[str] | None = Field(None, min_length=1, description="Target layers. Default: the last spatial layer.")
    class_names: Annotated[str | list[str] | None, AfterValidator(_no_credentials)] = Field(
        None,
        description="Class names in index order, or the URI of a JSON or text file. Default: the weights' metadata.",
    )
    preprocess: Preprocess = Field(default_factory=Preprocess)
    activation: Literal["softmax", "sigmoid"] = Field("softmax", description="How logits become probabilities.")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        "float32", description="Of the network; maps are always float32."
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Options of the weights' fsspec file system."
    )


class Targets(Strict):
    """Which classes are explained for each image: the union of what is asked for."""

    label: bool = Field(False, description="The image's label.")
    predicted: bool = Field(False, description="The class of the largest logit.")
    top_k: int | None = Field(None, ge=1, description="The k classes of the largest logits.")
    threshold: float | None = Field(None, gt=0, lt=1, description="Every class of at least this probability.")
    classes: list[int | str] | None = Field(None, min_length=1, description="A fixed list of class indices or names.")

    @model_validator(mode="after")
    def _some(self) -> Targets:
        if not (self.label or self.predicted or self.top_k or self.threshold or self.classes):
            raise ValueError("no target is asked for; set one of: label, predicted, top_k, threshold, classes")
        return self


def _targets(value: Any) -> Any:
    return {value: True} if isinstance(value, str) else value


class Output(Strict):
    """Where the lake goes."""

    uri: Annotated[str, AfterValidator(_no_credentials)] = Field(description="fsspec URI of the lake's folder.")
    dtype: Literal["float16", "uint8"] = Field(
        "float16",
        description="Stored maps: x / vmax as float16, or in 1/255 steps (int8 in 1/127 steps for signed methods).",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Options of the fsspec file system."
    )


class Workers(Strict):
    """Ray actors: one model replica each."""

    min: int = Field(1, ge=1, description="Workers that must be able to start.")
    max: int = Field(1, ge=1, description="Most workers at a time.")
    gpus: float = Field(0, ge=0, description="GPUs per worker; may be a fraction. 0: the worker computes on the CPU.")
    cpus: float = Field(1, gt=0, description="CPUs that Ray reserves per worker.")
    resources: dict[str, float] = Field(default_factory=dict, description="Custom Ray resources per worker.")
    attempts: int = Field(3, ge=1, description="Attempts at a unit before it is quarantined.")
    stall_seconds: float = Field(
        600.0,
        gt=0,
        description=(
            "A worker in which nothing goes on for so long (no image read or decoded, no forward done, nothing "
            "written) is ended, its threads' stacks are logged, and its unit is tried again. One request to a store "
            "that fails and is repeated may take 150 s; give more than that where shards or lake are remote."
        ),
    )
    unit_seconds: float | None = Field(
        None, gt=0, description="Most seconds that a unit may compute; then it is ended and tried again. Default: none."
    )

    @model_validator(mode="after")
    def _order(self) -> Workers:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min}); raise max or lower min")
        return self


class Compute(Strict):
    """How a worker computes. The maps do not depend on these (see docs), but speed and memory do."""

    batch_size: int = Field(
        16, ge=1, description="Images per clean forward; every batch is filled up to this one shape."
    )
    mask_batch: int = Field(32, ge=1, description="Score-CAM's masked images per forward, filled across images.")
    compile: bool = Field(
        False,
        description=(
            "Run masked images, and clean ones where no gradient has to be computed, through torch.compile. Takes each "
            "worker some seconds at its start, and a C++ compiler on a CPU."
        ),
    )
    winograd: bool = Field(
        True,
        description=(
            "On a CPU in float32, compute 3 x 3 convolutions of stride 1 by Winograd's method: in half the time, with "
            "twice the rounding error of float32. Without a C++ compiler they are computed directly."
        ),
    )
    threads: int | None = Field(None, ge=1, description="Torch threads per CPU worker. Default: the worker's cpus.")
    decode_threads: int = Field(2, ge=1, description="Threads that decode images.")
    read_ahead_mb: int = Field(64, ge=1, description="Most undecoded image bytes held per worker.")
    seed: int = Field(0, ge=0, description="Seed of the methods that draw noise.")


class Job(Strict):
    """A whole attribution job."""

    #: What the lake will hold, by which the engine chooses what explains a unit and what writes it.
    kind: ClassVar[Literal["heatmaps", "labels"]] = "heatmaps"

    version: Literal[1] = Field(1, description="Version of the job file's format.")
    source: Source
    model: Model
    targets: Annotated[
        Targets, BeforeValidator(_targets, json_schema_input_type=Literal["label", "predicted"] | Targets)
    ] = Field(default_factory=lambda: Targets(predicted=True))
    methods: list[MethodEntry] = Field(min_length=1)
    output: Output
    workers: Workers = Field(default_factory=Workers)
    compute: Compute = Field(default_factory=Compute)
    max_failed: float = Field(
        0.0,
        ge=0,
        description=(
            "Images that may fail before the exit code is 1: a share of all images below 1, a count from 1 on. "
            "Failures are recorded either way."
        ),
    )

    @model_validator(mode="after")
    def _labels(self) -> Job:
        seen: set[str] = set()
        for method in self.methods:
            if method.key in seen:
                raise ValueError(f"methods: '{method.key}' appears twice; give one of them a 'label' of its own")
            seen.add(method.key)
        if self.targets.label and self.source.label is None and self.source.format != "folder":
            raise ValueError("targets.label asks for labels but source.label names no field; set source.label")
        return self

    def identity(self) -> dict[str, Any]:
        """What the lake's content depends on: everything but workers, scheduling and credentials."""
        document = self.model_dump(mode="json", exclude={"workers", "max_failed", "version"})
        for part in ("source", "model", "output"):
            document[part].pop("storage_options")
        document["output"].pop("uri")
        document["compute"] = {"seed": self.compute.seed}
        return document

    def digest(self) -> str:
        """SHA-256 (hex) of :meth:`identity` in canonical JSON."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
