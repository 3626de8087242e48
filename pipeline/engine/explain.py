"""One unit explained: prepared images in, rows and maps out. Knows no Ray and no store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.attributor import Attributor
from pipeline.cam.base import MapBatch, Selection
from pipeline.cam.selection import TargetSelector, probabilities
from pipeline.cam.statistics import statistics
from pipeline.engine.clock import StageClock
from pipeline.engine.reading import Prepared
from pipeline.engine.targets import Chosen, describe
from pipeline.lake.sink import MapSet, MapTargets, UnitResult
from pipeline.models.replica import Replica
from schemas.errors import InputError
from schemas.job import Job
from schemas.tables import EFFORT

_SEED_BITS = 63


class Part(NamedTuple):
    """Maps (T, h, w) of one method and layer, off the device, with the image number, class and columns of each."""

    image: np.ndarray
    target: np.ndarray
    maps: np.ndarray
    statistics: dict[str, np.ndarray]
    effort: dict[str, np.ndarray]


class UnitExplainer:
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
            row = self._row(item)
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

    def _row(self, item: Prepared) -> dict[str, Any]:
        sample = item.sample
        row: dict[str, Any] = {
            "image_id": sample.image_id,
            "uri": sample.uri,
            "byte_offset": sample.byte_offset,
            "byte_size": sample.byte_size,
            "sha256": item.sha256,
            "width": item.width,
            "height": item.height,
            "decoder": item.decoder,
            "exif_orientation": item.exif_orientation,
            "status": item.status,
            "error": item.error,
            **sample.attributes,
        }
        if item.view is not None:
            row |= {f"view_{edge}": getattr(item.view, edge) for edge in ("x0", "y0", "x1", "y1")}
        if sample.label is not None:
            try:
                row["label"] = self._replica.class_index(sample.label)
                row["label_name"] = self._name(row["label"])
            except InputError as error:
                # Without its label the image can still be explained, unless the label is what is asked for.
                row["error"] = row["error"] or str(error)
                if self._job.targets.label and row["status"] == "ok":
                    row["status"] = "label_error"
        elif self._job.targets.label and row["status"] == "ok":
            row |= {"status": "label_error", "error": f"the image has no label in field '{self._job.source.label}'"}
        return row

    def _name(self, index: int) -> str | None:
        names = self._replica.class_names
        return names[index] if names else None

    def _flush(self) -> None:
        if not self._batch:
            return
        images = torch.stack([item.tensor for item in self._batch if item.tensor is not None])
        rows = [self._rows[position] for position in self._batch_rows]
        labels = [row.get("label") for row in rows]
        seeds = [int.from_bytes(item.sha256 or b"", "little") & (2**_SEED_BITS - 1) for item in self._batch]
        output = self._session.add(images, seeds, partial(self._choose, labels=labels))
        activation = self._job.model.activation
        chosen = describe(output.selection, output.logits, activation)
        self._chosen.append((len(self._explained), chosen))
        self._explained.extend(self._batch_rows)
        probability = probabilities(output.logits, activation).cpu().numpy()
        logits = output.logits.float().cpu().numpy()
        for row, scores, values in zip(rows, logits, probability, strict=True):
            row |= self._verdict(row.get("label"), scores, values)
        self._keep(output.maps)
        self._on_images(len(self._batch))
        self._batch, self._batch_rows = [], []

    def _choose(self, logits: Tensor, labels: list[int | None]) -> Selection:
        """Choose the targets of a batch; none for images that have no probabilities, whose maps would mean nothing."""
        found = self._selector(logits, labels=labels)
        sound = probabilities(logits, self._job.model.activation).isfinite().all(1).cpu()[found.image]
        kind = tuple(reason for reason, kept in zip(found.kind or (), sound.tolist(), strict=True) if kept)
        return Selection(found.image[sound], found.target[sound], kind)

    def _verdict(self, label: int | None, logits: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
        """Columns of the images table that the model's output (K,) of an image fills."""
        if not np.isfinite(probability).all():
            wrong = int((~np.isfinite(logits)).sum())
            return {
                "status": "model_error",
                "error": f"the model gave NaN or infinity for {wrong} of {len(logits)} classes; check its weights and "
                "model.precision",
            }
        # Of the logits: probabilities can saturate at 1 and tie.
        best = int(logits.argmax())
        columns = {
            "predicted_class": best,
            "predicted_name": self._name(best),
            "predicted_probability": float(probability[best]),
        }
        return columns if label is None else columns | {"label_probability": float(probability[label])}

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
        labels = [self._rows[row].get("label") for row in position]
        targets = MapTargets(
            image_index=position,
            target_class=target.astype(np.int32),
            target_name=[self._name(index) for index in target.tolist()],
            target_kind=joined("kind", object).tolist(),
            target_rank=joined("rank", np.int64).astype(np.int32),
            is_label=[
                None if label is None else label == index for label, index in zip(labels, target.tolist(), strict=True)
            ],
            is_predicted=joined("is_predicted", np.bool_),
            logit=joined("logit", np.float32),
            probability=joined("probability", np.float32),
        )
        return targets, np.stack([number, target])
