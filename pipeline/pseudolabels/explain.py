"""The explainer of pseudo-label jobs: prepared images in, encoded labels out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.attributor import Attributor
from pipeline.cam.base import Selection
from pipeline.cam.selection import TargetSelector
from pipeline.engine.explain import build_attributor
from pipeline.engine.explainer import Explainer
from pipeline.models.replica import Replica
from pipeline.pseudolabels.classes import LabelClasses, resolve_classes
from pipeline.pseudolabels.crf import CrfRunner
from pipeline.pseudolabels.encode import Encoder
from pipeline.pseudolabels.seeds import SeedMaker
from pipeline.pseudolabels.sizes import ScaledImages, find_sizes
from pipeline.pseudolabels.work import LabelWork
from schemas.errors import InputError
from schemas.job import Job
from schemas.label_job import LabelJob
from schemas.pseudolabels import CrfRefinement

# Images that are prepared ahead, at least.
_AHEAD = 8


class LabelTargets(TargetSelector):
    """The classes that a job's ``targets`` ask for, as far as some class of the labels is made of them."""

    def __init__(self, job: Job, replica: Replica, classes: LabelClasses) -> None:
        super().__init__(job.targets, class_index=replica.class_index, activation=job.model.activation)
        self._kept = torch.zeros(replica.num_classes, dtype=torch.bool)
        self._kept[list(classes.of_model)] = True

    def __call__(self, logits: Tensor, labels: Sequence[int | Sequence[int] | None] | None = None) -> Selection:
        """Select from logits (n, K); see :class:`TargetSelector`."""
        found = super().__call__(logits, labels)
        kept = self._kept[found.target]
        kinds = tuple(kind for kind, keep in zip(found.kind or (), kept.tolist(), strict=True) if keep)
        return Selection(found.image[kept], found.target[kept], kinds)


class LabelExplainer(Explainer):
    """Makes labels of images: maps of several scales, the background rule, refinement.

    Raises:
        InputError: the method has several maps per class; the model takes one size only and scales are asked for; a
            class does not exist; or a package that the job needs is missing.
    """

    def __init__(self, job: Job, replica: Replica) -> None:
        if not isinstance(job, LabelJob):
            raise TypeError("labels are made by a LabelJob")
        self.job = job
        self.replica = replica
        settings = job.pseudo_labels
        self.classes = resolve_classes(
            settings.classes, replica.num_classes, replica.class_names, settings.files.palette
        )
        # No fixed batch: images have many sizes. On a CPU each is explained by itself, with its mirror image, so that
        # its labels have the same bits in any company.
        self.attributor: Attributor = build_attributor(job, replica, batch_size=None)
        _require_one_map(self.attributor)
        self._scaled = ScaledImages(find_sizes(settings, replica))
        self.selector = LabelTargets(job, replica, self.classes)
        self.encoder = Encoder(settings.files, self.classes)
        self.crf = CrfRunner(settings.refine) if isinstance(settings.refine, CrfRefinement) else None

    @property
    def preprocess(self) -> ScaledImages:
        """Brings pixels to the scales; the model's mean and deviation are applied on the device."""
        return self._scaled

    @property
    def ahead(self) -> int:
        """Fewer than small inputs allow: each is held at all of its scales."""
        compute = self.job.compute
        return min(compute.batch_size, max(_AHEAD, 2 * compute.decode_threads))

    def seed_maker(self) -> SeedMaker:
        """Return what explains images; of one unit, as it counts."""
        height, width = self.replica.preprocess.input_size
        compute, input_pixels = self.job.compute, height * width
        normalisation = self.replica.preprocess.settings
        together = 0 if self.replica.device.type == "cpu" else compute.batch_size * input_pixels
        return SeedMaker(
            self.attributor,
            self.selector,
            self._scaled,
            flip=self.job.pseudo_labels.flip,
            mean=normalisation.mean,
            std=normalisation.std,
            forward_pixels=together,
            mask_pixels=compute.mask_batch * input_pixels,
        )

    def unit(self, on_images: Callable[[int], None] = lambda count: None) -> LabelWork:
        """Begin a unit."""
        return LabelWork(self, on_images)


def _require_one_map(attributor: Attributor) -> None:
    outputs = [(info.key, layer) for info in attributor.method_infos() for layer in info.layers]
    if len(outputs) != 1:
        names = ", ".join(f"{key} at {layer}" for key, layer in outputs)
        raise InputError(
            f"methods: labels are made of one map per class, and there are {len(outputs)} ({names}); name one layer "
            "under the method's 'layers', or give it a 'fuse'"
        )


EXPLAINER = LabelExplainer
