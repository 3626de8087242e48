"""One unit explained: prepared images in, rows and maps out. Knows no Ray and no store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.attributor import Attributor
from pipeline.cam.base import MapBatch
from pipeline.cam.selection import TargetSelector, probabilities
from pipeline.cam.statistics import statistics
from pipeline.engine.clock import StageClock
from pipeline.engine.explainer import Explainer, UnitWork
from pipeline.engine.reading import Prepared
from pipeline.engine.rows import class_name, image_row, image_seed, labels_of, verdict
from pipeline.engine.targets import Chosen, choose, describe
from pipeline.lake.sink import MapSet, MapTargets, UnitResult
from pipeline.models.preprocess import Preprocessor
from pipeline.models.replica import Replica
from schemas.job import Job
from schemas.tables import EFFORT


class Part(NamedTuple):
    """Maps (T, h, w) of one method and layer, off the device, with the image number, class and columns of each."""

    image: np.ndarray
    target: np.ndarray
    maps: np.ndarray
    statistics: dict[str, np.ndarray]
    effort: dict[str, np.ndarray]


def build_attributor(job: Job, replica: Replica, batch_size: int | None) -> Attributor:
    """Return the compute core for a job's methods on a replica; ``batch_size`` as :class:`Attributor` has it."""
    return Attributor(
        replica.model,
        methods=list(job.methods),
        layers=replica.layers,
        head=replica.head,
        find_layer=replica.layer,
        batch_size=batch_size,
        mask_batch=job.compute.mask_batch,
        compile=job.compute.compile,
        seed=job.compute.seed,
        activation=job.model.activation,
        device=replica.device,
    )


class HeatmapExplainer(Explainer):
    """Explains images as the network's evaluation shows them to it, and stores the maps."""

    def __init__(self, job: Job, replica: Replica) -> None:
        self._job = job
        self._replica = replica
        self.attributor = build_attributor(job, replica, job.compute.batch_size)
        self._selector = TargetSelector(job.targets, class_index=replica.class_index, activation=job.model.activation)

    @property
    def preprocess(self) -> Preprocessor:
        """The network's own evaluation preprocessing."""
        return self._replica.preprocess

    def warm_up(self) -> None:
        """Compile the network for its batches."""
        if self._job.compute.compile:
            self.attributor.warm_up(self._replica.preprocess.input_size)

    def unit(self, on_images: Callable[[int], None] = lambda count: None) -> UnitExplainer:
        """Begin a unit."""
        return UnitExplainer(self._job, self._replica, self.attributor, self._selector, on_images)


class UnitExplainer(UnitWork):
    """Explains the images of one unit in batches, and collects what the lake stores.

    Args:
        job: the resolved job.
        replica, attributor, selector: model, compute core and choice of targets; shared between units.
        on_images: called with the number of images after each batch.
    """

    def __init__(
        self,
        job: Job,
        replica: Replica,
        attributor: Attributor,
        selector: TargetSelector,
        on_images: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._job = job
        self._replica = replica
        self._attributor = attributor
        self._selector = selector
        self._on_images = on_images
        self._session = attributor.session()
        self._rows: list[dict[str, Any]] = []
        self._batch: list[Prepared] = []
        self._batch_rows: list[int] = []
        # Position in `_rows` of each image that went through the network, by its running number.
        self._explained: list[int] = []
        self._chosen: list[tuple[int, Chosen]] = []
        self._maps: dict[tuple[str, str], list[Part]] = defaultdict(list)

    def add_all(self, prepared: Iterator[Prepared], clock: StageClock) -> None:
        """Explain all of ``prepared``, batch by batch."""
        for item in prepared:
            row = image_row(item, self._job, self._replica)
            self._rows.append(row)
            if row["status"] != "ok":
                self._on_images(1)
                continue
            self._batch.append(item)
            self._batch_rows.append(len(self._rows) - 1)
            # The attributor's own: it halves where the memory does not suffice.
            if len(self._batch) >= (self._attributor.batch_size or 1):
                with clock.measure("compute"):
                    self._flush()
        with clock.measure("compute"):
            self._flush()
            self._keep(self._session.finish())

    @property
    def masks_scored(self) -> int:
        """Masked images that Score-CAM ran so far; grows between two batches of images, too."""
        return self._session.masks_scored

    def result(self, unit_id: str, attempt: str, worker: str, seconds: dict[str, float]) -> UnitResult:
        """Return what the unit came to; call it once, after :meth:`add_all`."""
        targets, order_of = self._targets()
        signed = {method.key: method.signed for method in self._attributor.method_infos()}
        map_sets = []
        for (method, layer), parts in self._maps.items():
            image = np.concatenate([part.image for part in parts])
            target = np.concatenate([part.target for part in parts])
            order = np.lexsort((target, image))
            if not np.array_equal(order_of, np.stack([image, target])[:, order]):
                raise RuntimeError(f"maps of '{method}' at '{layer}' are not those of the chosen targets")
            columns = {
                name: np.concatenate([part.statistics[name] for part in parts])[order] for name in parts[0].statistics
            }
            maps = np.concatenate([part.maps for part in parts])[order]
            effort = {name: np.concatenate([part.effort[name] for part in parts])[order] for name in parts[0].effort}
            map_sets.append(MapSet(method, layer, signed[method], targets, maps, columns, effort))
        sizes = {"batch_size": self._attributor.batch_size or 0, "mask_batch": self._attributor.mask_batch}
        return UnitResult(unit_id, attempt, worker, self._rows, map_sets, seconds, sizes)

    def _flush(self) -> None:
        if not self._batch:
            return
        images = torch.stack([item.tensor for item in self._batch if item.tensor is not None])
        rows = [self._rows[position] for position in self._batch_rows]
        labels = [labels_of(row) for row in rows]
        seeds = [image_seed(item) for item in self._batch]
        output = self._session.add(images, seeds, partial(choose, self._selector, labels=labels))
        activation = self._job.model.activation
        chosen = describe(output.selection, output.logits, activation)
        self._chosen.append((len(self._explained), chosen))
        self._explained.extend(self._batch_rows)
        probability = probabilities(output.logits, activation).cpu().numpy()
        logits = output.logits.float().cpu().numpy()
        for row, scores, values in zip(rows, logits, probability, strict=True):
            row |= verdict(self._replica, row.get("label"), scores, values)
        self._keep(output.maps)
        self._on_images(len(self._batch))
        self._batch, self._batch_rows = [], []

    def _keep(self, batches: list[MapBatch]) -> None:
        for batch in batches:
            self._maps[batch.method, batch.layer].append(
                Part(
                    batch.image.cpu().numpy(),
                    batch.target.cpu().numpy(),
                    batch.maps.float().cpu().numpy(),
                    statistics(batch.maps),
                    {name: value.numpy() for name in EFFORT if (value := getattr(batch, name)) is not None},
                )
            )

    def _targets(self) -> tuple[MapTargets, np.ndarray]:
        """The targets of the whole unit, and (image number, class) (2, T) by which maps are matched to them."""

        def joined(name: str, kind: type) -> np.ndarray:
            parts = [np.asarray(getattr(chosen, name)) for _, chosen in self._chosen]
            return np.concatenate(parts) if parts else np.empty(0, kind)

        numbers = [chosen.image + first for first, chosen in self._chosen]
        number = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
        target = joined("target", np.int64)
        position = np.asarray(self._explained, np.int64)[number] if len(number) else number
        labels = [_known_labels(self._rows[row]) for row in position]
        targets = MapTargets(
            image_index=position,
            target_class=target.astype(np.int32),
            target_name=[class_name(self._replica, index) for index in target.tolist()],
            target_kind=joined("kind", object).tolist(),
            target_rank=joined("rank", np.int64).astype(np.int32),
            is_label=[
                None if known is None else index in known for known, index in zip(labels, target.tolist(), strict=True)
            ],
            is_predicted=joined("is_predicted", np.bool_),
            logit=joined("logit", np.float32),
            probability=joined("probability", np.float32),
        )
        return targets, np.stack([number, target])


def _known_labels(row: dict[str, Any]) -> Sequence[int] | None:
    """The classes that an image is labelled with, or None where that is not known."""
    return labels_of(row) if row.get("label") is not None or row.get("labels") is not None else None


EXPLAINER = HeatmapExplainer
