"""A session: images in batches, maps out as they are finished."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.cam.base import (
    LayerSignals,
    MapBatch,
    MaskGroup,
    MaskMethod,
    Moments,
    Selection,
    Selector,
    exact_arithmetic,
)
from pipeline.cam.compute import Compute
from pipeline.cam.fusion import fuse
from pipeline.cam.mask_budget import budget_of
from pipeline.cam.mask_stream import MaskJob, MaskStream, channel_scores
from pipeline.cam.masks import distinct_masks, scaled_after_enlarging
from pipeline.cam.noise import RankTargets, head_gradient, head_moments, noised_moments
from pipeline.cam.plan import Plan, Planned
from pipeline.cam.selection import checked, select_predicted
from pipeline.cam.shared_pass import SharedPass
from schemas.errors import InputError


@dataclass(frozen=True)
class PassOutput:
    """What a batch came to.

    ``logits`` (n, K) float32 on the compute device; ``selection`` the targets, on the CPU; ``maps`` what is finished:
    all maps of the methods that need the shared pass or noise, and the Score-CAM maps of this and earlier batches
    whose last masks were scored.
    """

    logits: Tensor
    selection: Selection
    maps: list[MapBatch]


@dataclass(frozen=True)
class _Rank:
    """The r-th target of every image that has one.

    ``entries`` are its places in the selection and ``images`` the images' places in the batch, both on the device.
    """

    entries: Tensor
    images: Tensor
    targets: RankTargets


class Session:
    """Streams the images of a unit through the methods of a plan; made by ``Attributor.session``.

    Images are numbered from 0 in the order in which they are added.

    Args:
        compute: the network and how it is run.
        select: chooses the targets of a batch from its logits where ``add`` is given none; default: the predicted
            class.
    """

    def __init__(self, compute: Compute, select: Selector | None = None) -> None:
        self._compute = compute
        self._select = select or select_predicted
        self._images = 0
        self._size: tuple[int, ...] | None = None
        self._stream: MaskStream | None = None
        # Score-CAM maps whose fusion waits for other layers: (image number, method) -> layer -> maps and their effort.
        self._unfused: dict[tuple[int, str], dict[str, tuple[Tensor, Tensor, Tensor]]] = defaultdict(dict)
        self._order: tuple[str, ...] = ()

    def add(
        self, images: Tensor, image_seeds: Sequence[int] | None = None, selection: Selection | Selector | None = None
    ) -> PassOutput:
        """Explain a batch.

        Args:
            images: (n, 3, H, W) float32, preprocessed; n at most ``batch_size`` where that is set. H and W are the
                same for all images of a session.
            image_seeds: one number per image that makes its noise, for methods that draw noise: the same image must
                always get the same one.
            selection: the targets, or what chooses them from the logits (n, K).

        Raises:
            InputError: images, targets or layers do not fit.
        """
        count = self._checked_images(images, image_seeds)
        fits = self._compute.batch_size is None or count <= self._compute.batch_size
        if fits:
            try:
                logits, chosen, maps = self._explained(images, image_seeds, selection)
            except torch.OutOfMemoryError:
                if not self._compute.halve(count):
                    raise
                fits = False
        if not fits:
            # Outside of the handler, which keeps alive what did not fit.
            return self._in_parts(images, image_seeds, selection)
        # The clean pass is out of scope here: masked forwards have the memory for themselves.
        return PassOutput(logits, chosen, maps + self._finished_masks(drain=False))

    def _explained(
        self, images: Tensor, image_seeds: Sequence[int] | None, selection: Selection | Selector | None
    ) -> tuple[Tensor, Selection, list[MapBatch]]:
        count = len(images)
        padded = self._compute.padded(images)
        clean = self._compute.clean_pass(padded)
        plan = self._compute.plan
        logits = clean.logits[:count]
        chosen = selection if isinstance(selection, Selection) else (selection or self._select)(logits)
        chosen = checked(chosen, count, logits.shape[1])
        self._order = tuple(clean.activations)
        maps: list[MapBatch] = []
        if chosen.image.numel():
            signals = {name: LayerSignals(value) for name, value in clean.activations.items()}
            ranks = self._ranks(chosen, padded.shape[0], padded.device)
            with exact_arithmetic(padded.device):
                maps += self._pass_maps(plan, clean, signals, chosen, ranks)
            maps += self._noise_maps(plan, padded, signals, chosen, ranks, image_seeds or ())
            with exact_arithmetic(padded.device):
                self._push_masks(plan, padded, signals, chosen, logits.shape[1])
        self._images += count
        return logits, chosen, maps

    def _in_parts(
        self, images: Tensor, image_seeds: Sequence[int] | None, selection: Selection | Selector | None
    ) -> PassOutput:
        """Explain a batch that does not fit into memory, in batches that do; targets are chosen for all at once."""
        logits = self._logits(images)
        chosen = selection if isinstance(selection, Selection) else (selection or self._select)(logits)
        chosen = checked(chosen, len(images), logits.shape[1])
        maps: list[MapBatch] = []
        for start in range(0, len(images), self._compute.batch_size or len(images)):
            stop = min(start + (self._compute.batch_size or len(images)), len(images))
            inside = (chosen.image >= start) & (chosen.image < stop)
            part = Selection(chosen.image[inside] - start, chosen.target[inside])
            seeds = None if image_seeds is None else image_seeds[start:stop]
            maps += self.add(images[start:stop], seeds, part).maps
        return PassOutput(logits, chosen, maps)

    def _logits(self, images: Tensor) -> Tensor:
        while True:
            size = self._compute.batch_size or len(images)
            try:
                return torch.cat([self._compute.logits(part) for part in torch.split(images, size)])
            except torch.OutOfMemoryError:
                if not self._compute.halve(size):
                    raise

    def finish(self) -> list[MapBatch]:
        """Score the masks that are left and return the last Score-CAM maps. The session can go on afterwards."""
        return self._finished_masks(drain=True)

    @property
    def masks_scored(self) -> int:
        """Masked images that Score-CAM ran so far, the filling of the last chunk left out."""
        return self._stream.masks_scored if self._stream is not None else 0

    def _checked_images(self, images: Tensor, image_seeds: Sequence[int] | None) -> int:
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not len(images):
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images: a preprocessed float tensor (n, channels, height, width) is needed, not {found}")
        count, limit = len(images), self._compute.largest_batch
        if limit is not None and count > limit:
            raise InputError(f"images: {count} in one batch, but batch_size is {limit}; add them in smaller batches")
        if self._size is not None and tuple(images.shape[1:]) != self._size:
            raise InputError(
                f"images: size {tuple(images.shape[1:])} after {self._size} in the same session; images of one session "
                "must have one size"
            )
        if image_seeds is not None and len(image_seeds) != count:
            raise InputError(f"image_seeds: {len(image_seeds)} for {count} images; give one per image")
        if image_seeds is None and self._compute.plan.noise_methods:
            raise InputError("image_seeds: a method draws noise, so each image needs a seed; give one per image")
        self._size = tuple(images.shape[1:])
        return count

    def _ranks(self, selection: Selection, rows: int, device: torch.device) -> list[_Rank]:
        image, target = selection.image, selection.target
        place = torch.arange(len(image)) - torch.searchsorted(image, image)
        ranks = []
        for rank in range(int(place.max()) + 1):
            entries = (place == rank).nonzero().flatten()
            images = image[entries]
            targets = torch.zeros(rows, dtype=torch.int64)
            targets[images] = target[entries]
            active = torch.zeros(rows, dtype=torch.bool)
            active[images] = True
            ranks.append(
                _Rank(entries.to(device), images.to(device), RankTargets(targets.to(device), active.to(device)))
            )
        return ranks

    def _pass_maps(
        self,
        plan: Plan,
        clean: SharedPass,
        signals: dict[str, LayerSignals],
        selection: Selection,
        ranks: list[_Rank],
    ) -> list[MapBatch]:
        collected = _Collector(selection, self._images, ranks)
        shared: dict[str, dict[str, Tensor]] = {}
        for number, rank in enumerate(ranks):
            gradients = clean.gradients(rank.targets.target, rank.targets.active, last=number == len(ranks) - 1)
            if plan.head is not None and plan.head.layer in signals:
                cells = signals[plan.head.layer].cells
                gradients[plan.head.layer] = head_gradient(plan.head, rank.targets.target, cells)
            for planned, method in plan.pass_methods:
                if method.class_independent and method.key in shared:
                    maps = shared[method.key]
                else:
                    maps = self._fused(
                        planned,
                        {
                            layer: method.maps(signals[layer], gradients.get(layer), rank.targets.target, plan.head)
                            for layer in planned.layers
                        },
                    )
                    if method.class_independent:
                        shared[method.key] = maps
                collected.put(method.key, maps, rank)
        return collected.batches()

    def _noise_maps(
        self,
        plan: Plan,
        images: Tensor,
        signals: dict[str, LayerSignals],
        selection: Selection,
        ranks: list[_Rank],
        image_seeds: Sequence[int],
    ) -> list[MapBatch]:
        collected = _Collector(selection, self._images, ranks)
        for (samples, level), group in plan.noise_groups().items():
            wanted = dict.fromkeys(layer for planned, _ in group for layer in planned.layers)
            layers = [layer for layer in wanted if not plan.closed_form(layer)]
            per_rank: Iterable[dict[str, Moments]] = ({} for _ in ranks)
            if layers:
                per_rank = noised_moments(
                    partial(self._compute.gradient_pass, layers=layers),
                    images,
                    image_seeds,
                    [rank.targets for rank in ranks],
                    {layer: signals[layer].activation for layer in layers},
                    samples=samples,
                    level=level,
                    seed=self._compute.seed,
                )
            for rank, moments in zip(ranks, per_rank, strict=True):
                # The noised forwards run as the caller has set autocast; only the maps' arithmetic does not.
                with exact_arithmetic(images.device):
                    if plan.head is not None and plan.head.layer in wanted:
                        cells = signals[plan.head.layer].cells
                        moments[plan.head.layer] = head_moments(plan.head, rank.targets.target, cells)
                    for planned, method in group:
                        maps = {layer: method.maps(signals[layer], moments[layer]) for layer in planned.layers}
                        collected.put(method.key, self._fused(planned, maps), rank)
        return collected.batches()

    def _fused(self, planned: Planned, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        if not planned.fused:
            return maps
        deepest = max(range(len(planned.layers)), key=lambda index: self._order.index(planned.layers[index]))
        fused = fuse([maps[layer] for layer in planned.layers], planned.method.spec.fuse, deepest)
        return {planned.outputs[0]: fused}

    def _mask_methods(self, plan: Plan) -> dict[MaskGroup, list[tuple[Planned, MaskMethod]]]:
        groups: dict[MaskGroup, list[tuple[Planned, MaskMethod]]] = {}
        for planned, method in plan.mask_methods:
            for layer in planned.layers:
                groups.setdefault(method.group(layer), []).append((planned, method))
        return groups

    def _push_masks(
        self, plan: Plan, images: Tensor, signals: dict[str, LayerSignals], selection: Selection, classes: int
    ) -> None:
        groups = self._mask_methods(plan)
        if not groups:
            return
        if self._stream is None:
            self._stream = self._compute.mask_stream(
                any(method.needs_probability for members in groups.values() for _, method in members)
            )
        count = int(selection.image.max()) + 1
        layers = {group.layer for group in groups}
        distinct = {layer: distinct_masks(signals[layer].activation[:count]) for layer in layers}
        counts = torch.bincount(selection.image, minlength=count).tolist()
        targets = torch.split(selection.target, counts)
        on_device = torch.split(selection.target.to(images.device), counts)
        size = (images.shape[-2], images.shape[-1])
        nulls: list[tuple[Tensor, MaskGroup]] = []
        jobs: list[MaskJob] = []
        for image, target in enumerate(targets):
            if not len(target):
                continue
            for group in groups:
                masks = distinct[group.layer][image]
                if masks.has_null and any(method.needs_null for _, method in groups[group]):
                    nulls.append((images[image], group))
                if group.normalise == "after":
                    masks = masks.with_grids(scaled_after_enlarging(masks.grids, size, group.align_corners))
                activation = signals[group.layer].activation[image]
                jobs.append(
                    MaskJob(
                        number=self._images + image,
                        group=group,
                        image=images[image],
                        activation=activation,
                        masks=masks,
                        target=on_device[image],
                        classes=target,
                        budget=None if group.budget is None else budget_of(group.budget, masks, activation),
                    )
                )
        # All or nothing: what runs out of memory above is tried again with fewer images.
        for image_of_null, group in nulls[:1]:
            self._stream.push_null(image_of_null, classes, group)
        for job in jobs:
            self._stream.push(job)

    def _finished_masks(self, *, drain: bool) -> list[MapBatch]:
        if self._stream is None:
            return []
        groups = self._mask_methods(self._compute.plan)
        found: dict[tuple[str, str], list[MapBatch]] = defaultdict(list)
        for job in self._stream.run(drain=drain):
            members = groups[job.group]
            needs_null = job.masks.has_null and any(method.needs_null for _, method in members)
            null = self._stream.null_logits if needs_null else None
            activation = self._compute.activation if any(method.needs_probability for _, method in members) else None
            with exact_arithmetic(job.image.device):
                scores = channel_scores(job, null, activation)
                for planned, method in members:
                    waiting = self._unfused[job.number, method.key]
                    waiting[job.group.layer] = (method.maps(job.activation, scores), *job.effort)
                    if planned.fused and len(waiting) < len(planned.layers):
                        continue
                    del self._unfused[job.number, method.key]
                    scored = torch.stack([each for _, each, _ in waiting.values()]).sum(0)
                    # Of fused maps the worst layer's; exact ones are NaN.
                    expected = torch.stack([each for _, _, each in waiting.values()])
                    expected = expected.nan_to_num(torch.inf).amin(0)
                    expected = torch.where(expected.isinf(), torch.nan, expected)
                    image = torch.full((len(scored),), job.number)
                    for layer, maps in self._fused(planned, {name: each[0] for name, each in waiting.items()}).items():
                        found[method.key, layer].append(
                            MapBatch(method.key, layer, image, job.classes, maps, scored, expected)
                        )
        return [_joined(batches) for batches in found.values()]


class _Collector:
    """Puts the maps of each rank at their places in the selection."""

    def __init__(self, selection: Selection, offset: int, ranks: list[_Rank]) -> None:
        self._selection = selection
        self._image = selection.image + offset
        self._single = len(ranks) == 1
        self._maps: dict[tuple[str, str], Tensor] = {}

    def put(self, key: str, maps: dict[str, Tensor], rank: _Rank) -> None:
        for layer, values in maps.items():
            chosen = values.index_select(0, rank.images)
            if self._single:
                self._maps[key, layer] = chosen
                continue
            if (key, layer) not in self._maps:
                self._maps[key, layer] = chosen.new_empty((len(self._image), *chosen.shape[1:]))
            self._maps[key, layer].index_copy_(0, rank.entries, chosen)

    def batches(self) -> list[MapBatch]:
        return [
            MapBatch(key, layer, self._image, self._selection.target, maps) for (key, layer), maps in self._maps.items()
        ]


def _joined(batches: list[MapBatch]) -> MapBatch:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(batch, name) for batch in batches])

    return MapBatch(
        batches[0].method,
        batches[0].layer,
        joined("image"),
        joined("target"),
        joined("maps"),
        joined("masks_scored"),
        joined("expected_correlation"),
    )
