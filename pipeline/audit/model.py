"""The model behind a lake, as its job had it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.audit.pictures import picture
from pipeline.cam.selection import probabilities
from pipeline.lake import Lake
from pipeline.lake.originals import Originals, Row
from pipeline.models.replica import Replica, load_replica
from schemas.errors import InputError, LakeError
from schemas.job import Job

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LakeModel:
    """A lake's job and its model."""

    job: Job
    replica: Replica

    def picture(self, originals: Originals, row: Row) -> Tensor:
        """Return an image of the lake as the model saw it: see :func:`pipeline.audit.pictures.picture`."""
        return picture(originals, row, self.replica.preprocess, self.job.model.preprocess.exif)

    def odds(self, pictures: Tensor, target: int) -> Floats:
        """Return the log-odds (N,) of a class in pictures (N, 3, H, W), within 50 of 0; NaN where there are none."""
        logits = self._logits(pictures).cpu()
        own = logits[:, target]
        if self.job.model.activation == "softmax":
            others = logits.clone()
            others[:, target] = -torch.inf
            own = own - others.logsumexp(1)
        return np.asarray(np.clip(own.numpy(), -50, 50), np.float64)

    def probability(self, pictures: Tensor, target: int) -> Tensor:
        """Return the probability (N,) float32 of a class in pictures (N, 3, H, W), on the model's device."""
        return probabilities(self._logits(pictures), self.job.model.activation)[:, target]

    def _logits(self, pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.replica.model(pictures.to(self.replica.device))
        return logits.double()


def load_model(lake: Lake) -> LakeModel:
    """Load the model that made a lake's maps, on the GPU where there is one.

    Raises:
        LakeError: the manifest holds no job that can be read.
        InputError: the model cannot be had, or its weights are others than those of the run.
    """
    try:
        job = Job.model_validate(lake.manifest.job)
    except ValidationError as error:
        raise LakeError(f"{lake.store.uri}: the manifest's job cannot be read ({error.error_count()} errors)") from None
    layers = [layer for method in job.methods for layer in method.layers or ()]
    replica = load_replica(
        job.model,
        device="cuda" if torch.cuda.is_available() else "cpu",
        method_layers=layers,
        winograd=job.compute.winograd,
    )
    if replica.digest != lake.manifest.model.digest:
        raise InputError(
            f"model.weights: {job.model.weights} changed since the run (digest {replica.digest[:12]}, the lake has "
            f"{lake.manifest.model.digest[:12]}); restore the weights"
        )
    return LakeModel(job, replica)
