"""The job file of ``camlake pseudo-labels``: that of the attribution job and a section ``pseudo_labels:``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.job import Job
from schemas.methods import Strict
from schemas.pseudolabels import PseudoLabels


class StoredMaps(Strict):
    """The lake of heatmaps that labels are made of, without a model; set by ``camlake pseudo-labels --from``."""

    uri: str = Field(description="fsspec URI of the lake.")
    run_id: str = Field(description="Its run, so that another lake in its place is found out.")
    layer: str = Field(description="Layer of the maps, as the maps table has it.")
    dtype: Literal["float16", "uint8"] = Field(description="As which they are stored.")
    storage_options: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="Options of the lake's fsspec file system."
    )


class LabelJob(Job):
    """A whole pseudo-label job."""

    kind: ClassVar[Literal["heatmaps", "labels"]] = "labels"

    pseudo_labels: PseudoLabels = Field(default_factory=PseudoLabels)
    stored: StoredMaps | None = Field(
        None, description="Written by 'camlake pseudo-labels --from LAKE': the maps that the labels are made of."
    )

    @model_validator(mode="after")
    def _fits(self) -> LabelJob:
        if len(self.methods) > 1:
            raise ValueError(
                f"methods: labels are made of one map per class, and there are {len(self.methods)} methods; keep one"
            )
        layers = self.methods[0].layers or self.model.layers
        if layers is not None and len(layers) > 1 and self.methods[0].fuse == "none":
            raise ValueError(
                f"methods: labels are made of one map per class, and '{self.methods[0].key}' has {len(layers)} layers; "
                "name one, or give a 'fuse'"
            )
        if self.compute.compile:
            raise ValueError(
                "compute.compile: images of many sizes are explained, and each would be compiled; leave it out"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What the lake's content depends on; of stored maps their run and layer, wherever they lie."""
        document = super().identity()
        if self.stored is None:
            del document["stored"]
        else:
            document["stored"] = {"run_id": self.stored.run_id, "layer": self.stored.layer}
        return document
