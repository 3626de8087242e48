"""One unit of a pseudo-label job under way: images by size, explained, refined, labelled, encoded, put aside."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.cam.selection import KINDS, probabilities
from pipeline.engine.clock import StageClock
from pipeline.engine.explainer import UnitWork
from pipeline.engine.reading import Prepared
from pipeline.engine.rows import image_row, image_seed, labels_of, verdict
from pipeline.pseudolabels.buckets import Buckets
from pipeline.pseudolabels.label import ClassMaps, Stack, class_maps, image_labels, pixels_of, refined_by_pamr, stacks
from pipeline.pseudolabels.names import mask_name, mirrors
from pipeline.pseudolabels.result import LabelledImage, LabelResult, Spool
from pipeline.pseudolabels.sizes import Scaled
from schemas.pseudolabels import PamrRefinement

if TYPE_CHECKING:
    from pipeline.pseudolabels.explain import LabelExplainer

#: Status of an image that can have no file of its own.
NAME_ERROR = "name_error"

# Pixels of all scales that wait in buckets, at most: 3 bytes each.
_HELD_PIXELS = 128 * 2**20
# Images whose dense CRF is under way on the cluster, per worker.
_CRF_TASKS = 4


@dataclass(frozen=True)
class _Entry:
    """An image that waits to be explained: its place in the unit, the name of its files, and how it was prepared."""

    position: int
    name: str
    item: Prepared

    @property
    def scaled(self) -> Scaled:
        """Its pixels."""
        assert isinstance(self.item.tensor, Scaled)
        return self.item.tensor


class LabelWork(UnitWork):
    """One unit: images are gathered by size, explained, refined, labelled, encoded and put aside."""

    def __init__(self, explainer: LabelExplainer, on_images: Callable[[int], None]) -> None:
        self._explainer = explainer
        self._settings = explainer.job.pseudo_labels
        self._on_images = on_images
        self._maker = explainer.seed_maker()
        self._spool = Spool()
        self._rows: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}
        self._mirrored = mirrors(explainer.job.source)
        self._done: dict[int, LabelledImage] = {}
        self._flags: Counter[str] = Counter(all_zero=0, not_finite=0)
        crf = explainer.crf
        threads = _CRF_TASKS if crf is not None and crf.remote else 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="label") if threads else None
        self._pending: deque[Future[LabelledImage]] = deque()
        self._buckets: Buckets[_Entry] = Buckets(self._capacity, _HELD_PIXELS)

    def _capacity(self, size: tuple[int, int]) -> int:
        height, width = self._explainer.preprocess.sizes.scaled(*size, 1.0)
        return self._maker.images_per_forward(height, width)

    def add_all(self, prepared: Iterator[Prepared], clock: StageClock) -> None:
        """Label all of ``prepared``."""
        for item in prepared:
            row = image_row(item, self._explainer.job, self._explainer.replica)
            self._rows.append(row)
            name = self._name(row)
            if row["status"] != "ok" or name is None:
                self._on_images(1)
                continue
            entry = _Entry(len(self._rows) - 1, name, item)
            for batch in self._buckets.add(entry.scaled.size, entry, entry.scaled.pixels):
                self._label(batch, clock)
        for batch in self._buckets.rest():
            self._label(batch, clock)
        self._collect(clock, most=0)

    def _name(self, row: dict[str, Any]) -> str | None:
        """Return the name of an image's files; what can have none becomes a failure of the image."""
        stem, reason = mask_name(row["image_id"], mirrored=self._mirrored)
        if stem is not None and (first := self._names.setdefault(stem, row["image_id"])) != row["image_id"]:
            stem, reason = None, f"its mask would be '{stem}.png', as that of '{first}'; rename one of them"
        if stem is None and row["status"] == "ok":
            row |= {"status": NAME_ERROR, "error": reason}
        return stem

    @property
    def masks_scored(self) -> int:
        """Masked images that Score-CAM ran so far."""
        return self._maker.masks_scored

    def _label(self, batch: Sequence[_Entry], clock: StageClock) -> None:
        rows = [self._rows[entry.position] for entry in batch]
        with clock.measure("compute"):
            found = self._explained(batch, rows)
            self._wait_for_device()
        ready = [(entry, maps) for entry, maps, row in zip(batch, found, rows, strict=True) if row["status"] == "ok"]
        self._on_images(len(batch) - len(ready))
        if not ready:
            return
        with clock.measure("refine"):
            stacked = self._refined([entry for entry, _ in ready], [maps for _, maps in ready])
            self._wait_for_device()
        for (entry, maps), each in zip(ready, stacked, strict=True):
            if self._pool is None:
                self._keep(self._finished(entry, maps, each, clock))
            else:
                on_cpu = [_on_cpu(stack) for stack in each]
                self._pending.append(self._pool.submit(self._finished, entry, maps, on_cpu, clock))
                self._collect(clock, most=2 * _CRF_TASKS)

    def _explained(self, batch: Sequence[_Entry], rows: Sequence[dict[str, Any]]) -> list[ClassMaps]:
        explainer = self._explainer
        seeds = self._maker(
            [entry.scaled for entry in batch],
            [image_seed(entry.item) for entry in batch],
            [labels_of(row) for row in rows],
        )
        probability = probabilities(seeds.logits, explainer.job.model.activation).cpu().numpy()
        logits = seeds.logits.float().cpu().numpy()
        found = []
        for number, row in enumerate(rows):
            row |= verdict(explainer.replica, row.get("label"), logits[number], probability[number])
            mine = (seeds.selection.image == number).nonzero().flatten().tolist()
            targets = seeds.selection.target[mine].tolist()
            kinds = [(seeds.selection.kind or KINDS)[each] for each in mine]
            found.append(
                class_maps(seeds.sums[mine], targets, kinds, probability[number, targets].tolist(), explainer.classes)
            )
            self._count(seeds.sums[mine])
        return found

    def _count(self, sums: Tensor) -> None:
        largest = sums.amax((1, 2)).cpu() if len(sums) else torch.empty(0)
        self._flags["not_finite"] += int((~largest.isfinite()).sum())
        self._flags["all_zero"] += int((largest == 0).sum())

    def _refined(self, entries: Sequence[_Entry], maps: Sequence[ClassMaps]) -> list[list[Stack]]:
        found = [stacks(each.maps, self._settings.background) for each in maps]
        if isinstance(self._settings.refine, PamrRefinement):
            device = self._explainer.replica.device
            images = [entry.scaled.base.to(device) for entry in entries]
            found = refined_by_pamr(images, found, self._settings.refine)
        return found

    def _finished(self, entry: _Entry, maps: ClassMaps, found: list[Stack], clock: StageClock) -> LabelledImage:
        """Refine by CRF where that is asked for, decide, encode."""
        # On threads of their own, these seconds are not the worker's: it counts what it waits for them.
        mine = self._pool is None
        with clock.measure("refine") if mine else nullcontext():
            if self._explainer.crf is not None and maps.classes:
                found = [self._by_crf(entry, stack) for stack in found]
            labels = image_labels(
                entry.position,
                entry.scaled.size,
                maps.classes,
                found,
                self._explainer.classes,
                soft=self._settings.files.soft,
            )
        with clock.measure("write") if mine else nullcontext():
            row = self._rows[entry.position]
            return self._explainer.encoder(labels, row["image_id"], entry.name, self._spool)

    def _by_crf(self, entry: _Entry, stack: Stack) -> Stack:
        assert self._explainer.crf is not None
        refined = self._explainer.crf(pixels_of(entry.scaled.base), stack.scores().cpu().numpy())
        found = torch.from_numpy(refined)
        return Stack(found[0], found[1:])

    def _keep(self, image: LabelledImage) -> None:
        self._done[image.image_index] = image
        self._on_images(1)

    def _collect(self, clock: StageClock, most: int) -> None:
        """Take what is finished, and wait until no more than ``most`` images are under way."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            with clock.measure("refine"):
                image = self._pending.popleft().result()
            self._keep(image)

    def _wait_for_device(self) -> None:
        # Else the time of one stage would be counted in the next.
        if self._explainer.replica.device.type == "cuda":
            torch.cuda.synchronize(self._explainer.replica.device)

    def result(self, unit_id: str, attempt: str, worker: str, seconds: dict[str, float]) -> LabelResult:
        """Return the labels of the unit, in its order."""
        compute = self._explainer.job.compute
        return LabelResult(
            unit_id,
            attempt,
            worker,
            self._rows,
            (),
            seconds,
            {"batch_size": compute.batch_size, "mask_batch": compute.mask_batch},
            labels=[self._done[position] for position in sorted(self._done)],
            flags=dict(self._flags),
            spool=self._spool,
        )

    def close(self) -> None:
        """Drop what was put aside."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._spool.close()


def _on_cpu(stack: Stack) -> Stack:
    background = stack.background.cpu() if isinstance(stack.background, Tensor) else stack.background
    return Stack(background, stack.maps.cpu())
