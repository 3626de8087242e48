"""The job file of ``camlake pseudo-labels``: that of the attribution job and a section ``pseudo_labels:``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from schemas.job import Job
from schemas.pseudolabels import PseudoLabels


class LabelJob(Job):
    """A whole pseudo-label job."""

    kind: ClassVar[Literal["heatmaps", "labels"]] = "labels"

    pseudo_labels: PseudoLabels = Field(default_factory=PseudoLabels)

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
