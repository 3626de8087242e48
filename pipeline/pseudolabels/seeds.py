"""Seeds: the maps of several scales and mirror images of an image, summed at its own resolution.

The protocol of weakly supervised segmentation (Ahn and Kwak, CVPR 2018; IRNet, CVPR 2019): per scale and mirror image
the positive part of the map, mirrored back, enlarged bilinearly (``align_corners=False``) to the image, and summed. It
was written for CAM, whose values do not depend on how many cells a map has. Gradients behind a mean over the cells do
(each is divided by their number, so that the smallest scale would outweigh the others), so the maps of gradient methods
are multiplied by their number of cells: Grad-CAM behind global average pooling gives CAM's seeds, then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.attributor import Attributor
from pipeline.cam.base import MapBatch, Method, NoiseMethod, PassMethod, Selection
from pipeline.cam.noise import noise_seed
from pipeline.cam.plan import Planned
from pipeline.cam.selection import TargetSelector
from pipeline.cam.session import Session
from pipeline.engine.targets import choose
from pipeline.pseudolabels.sizes import Scaled, ScaledImages

_SEED_BITS = 63
_LEAST_MASKS = 4


@dataclass(frozen=True)
class Seeds:
    """What a batch of images of one size came to.

    ``logits`` (n, K) float32 of the images at scale 1, ``selection`` the T targets, ordered by image and class, and
    ``sums`` (T, h, w) float32 >= 0 their summed maps in the base size, on the compute device; what is not finite in a
    map makes its sum NaN somewhere.
    """

    logits: Tensor
    selection: Selection
    sums: Tensor


class SeedMaker:
    """Makes seeds with a model and one CAM method.

    Args:
        attributor: of one method with one output, and no fixed batch size.
        selector: chooses the classes of an image.
        scaled: how the images were brought to their scales.
        flip: mirror images too.
        mean, std: per channel, of pixels in [0, 1].
        forward_pixels: most pixels of a forward of several images; a single one may have more.
        mask_pixels: the same of masked images.
    """

    def __init__(
        self,
        attributor: Attributor,
        selector: TargetSelector,
        scaled: ScaledImages,
        *,
        flip: bool,
        mean: Sequence[float],
        std: Sequence[float],
        forward_pixels: int,
        mask_pixels: int,
    ) -> None:
        self._attributor = attributor
        self._selector = selector
        self._scaled = scaled
        self._flip = flip
        self._forward_pixels = forward_pixels
        self._mask_pixels = mask_pixels
        self._most_masks = attributor.mask_batch
        self._device = next(attributor.model.parameters()).device
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=self._device).view(3, 1, 1)
        self._scored = 0
        self._session: Session | None = None

    @property
    def masks_scored(self) -> int:
        """Masked images so far; grows while a batch is explained, too."""
        return self._scored + (self._session.masks_scored if self._session is not None else 0)

    def images_per_forward(self, height: int, width: int) -> int:
        """Return how many images of a size, each with its mirror image, one forward takes."""
        return max(1, self._forward_pixels // (height * width * (2 if self._flip else 1)))

    def __call__(self, images: Sequence[Scaled], image_seeds: Sequence[int], labels: Sequence[Sequence[int]]) -> Seeds:
        """Explain images of one size.

        Args:
            images: n of them, of one size.
            image_seeds: one number per image, which makes its noise together with the scale and the mirroring.
            labels: the classes that each image is labelled with.
        """
        logits, chosen, sums = self._at_scale_1(images, image_seeds, labels)
        for number in range(1, len(self._scaled.shown())):
            maps = []
            for span in self._spans(images, number):
                part = part_of(chosen, span)
                maps.append(self._explain(images[span], image_seeds[span], number, part)[2])
            sums = sums.add_(torch.cat(maps))
        return Seeds(logits, chosen, sums)

    def _at_scale_1(
        self, images: Sequence[Scaled], image_seeds: Sequence[int], labels: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Selection, Tensor]:
        """Choose the targets, and begin the sums with the maps of scale 1, or with zeros where 1 is no scale."""
        mapped = 1.0 in self._scaled.sizes.scales
        logits, chosen, maps = [], [], []
        for span in self._spans(images, 0):
            found = self._explain(images[span], image_seeds[span], 0, labels[span], mapped=mapped)
            logits.append(found[0])
            chosen.append(Selection(found[1].image + span.start, found[1].target, found[1].kind))
            maps.append(found[2])
        selection = Selection(
            torch.cat([each.image for each in chosen]),
            torch.cat([each.target for each in chosen]),
            tuple(kind for each in chosen for kind in each.kind or ()),
        )
        return torch.cat(logits), selection, torch.cat(maps)

    def _spans(self, images: Sequence[Scaled], number: int) -> list[slice]:
        height, width = images[0].scaled[number].shape[1:]
        each = self.images_per_forward(height, width)
        return [slice(start, min(start + each, len(images))) for start in range(0, len(images), each)]

    def _explain(
        self,
        images: Sequence[Scaled],
        image_seeds: Sequence[int],
        number: int,
        wanted: Selection | Sequence[Sequence[int]],
        *,
        mapped: bool = True,
    ) -> tuple[Tensor, Selection, Tensor]:
        """Run one forward's images at one scale: logits (n, K), targets, and maps (T, h, w).

        ``wanted`` are the targets, or the images' labels, for which they are chosen.
        """
        mirrored = self._flip and mapped
        rows = self._rows([image.scaled[number] for image in images], mirrored=mirrored)
        step = 2 if mirrored else 1
        chosen: list[Selection] = []

        def choice(logits: Tensor) -> Selection:
            own = logits[::step]
            chosen.append(wanted if isinstance(wanted, Selection) else choose(self._selector, own, wanted))
            if not mapped:
                nothing = torch.empty(0, dtype=torch.int64)
                return Selection(nothing, nothing, ())
            return doubled(chosen[-1]) if mirrored else chosen[-1]

        seeds = [noise_seed(seed, number, side) & (2**_SEED_BITS - 1) for seed in image_seeds for side in range(step)]
        self._limit_masks(rows.shape[2] * rows.shape[3])
        session = self._session = self._attributor.session()
        output = session.add(rows, seeds, choice)
        batches = output.maps + session.finish()
        self._session, self._scored = None, self._scored + session.masks_scored
        height, width = images[0].base.shape[1:]
        count = len(chosen[-1].image)
        if not mapped or not count:
            maps = torch.zeros((count, height, width), device=self._device)
        else:
            maps = self._enlarged(self._in_order(batches), chosen[-1] if mirrored else None, (height, width))
        return output.logits[::step], chosen[-1], maps

    def _rows(self, images: Sequence[Tensor], *, mirrored: bool) -> Tensor:
        """Return (n, 3, H, W) float32, normalised; each image is followed by its mirror image, where that is asked."""
        pixels = torch.stack(list(images)).to(self._device, non_blocking=True)
        rows = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return torch.stack([rows, rows.flip(-1)], 1).flatten(0, 1) if mirrored else rows

    def _limit_masks(self, pixels: int) -> None:
        if not self._attributor.plan.mask_methods:
            return
        fitting = self._mask_pixels // pixels // _LEAST_MASKS * _LEAST_MASKS
        # Set for every size, which also lets go of what is kept for the size before.
        self._attributor.mask_batch = min(self._most_masks, max(_LEAST_MASKS, fitting))

    def _in_order(self, batches: Sequence[MapBatch]) -> Tensor:
        """Return the maps (rows of targets, h, w) by image and class, each with its number of cells."""
        if len({(batch.method, batch.layer) for batch in batches}) != 1:
            raise ValueError("labels are made of one map per class; give one method with one layer, or fused layers")
        image = np.concatenate([batch.image.cpu().numpy() for batch in batches])
        target = np.concatenate([batch.target.cpu().numpy() for batch in batches])
        maps = torch.cat([batch.maps for batch in batches]).float()
        order = torch.from_numpy(np.lexsort((target, image))).to(maps.device)
        cells = maps.shape[1] * maps.shape[2] if by_cells(self._attributor.plan.methods[0]) else 1
        return maps[order].clamp_(min=0) * cells

    @staticmethod
    def _enlarged(maps: Tensor, mirrored: Selection | None, size: tuple[int, int]) -> Tensor:
        """Return the maps in the base size; with ``mirrored`` those of images and mirror images in turn, summed."""
        if mirrored is not None:
            place = (2 * mirrored.image).repeat(2)
            place[len(mirrored.image) :] += 1
            # Where the stable sort of doubled() put each target of an image, and of its mirror image.
            inverse = torch.empty_like(place)
            inverse[place.argsort(stable=True)] = torch.arange(len(place))
            own, other = inverse.to(maps.device).chunk(2)
            maps = maps[own] + maps[other].flip(-1)
        return functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def by_cells(planned: Planned) -> bool:
    """Say whether a method's maps grow smaller the more cells they have; fused maps have no magnitude at all."""
    return uses_gradients(type(planned.method)) and not planned.fused


def uses_gradients(method: type[Method]) -> bool:
    """Say whether a method's maps are made of gradients."""
    return issubclass(method, NoiseMethod) or (issubclass(method, PassMethod) and method.needs_gradients)


def part_of(selection: Selection, span: slice) -> Selection:
    """Return the targets of the images of a span, which are counted from its start."""
    inside = (selection.image >= span.start) & (selection.image < span.stop)
    return Selection(selection.image[inside] - span.start, selection.target[inside])


def doubled(selection: Selection) -> Selection:
    """Return the targets of rows of which 2 i is image i and 2 i + 1 its mirror image."""
    rows = torch.cat([2 * selection.image, 2 * selection.image + 1])
    order = rows.argsort(stable=True)
    return Selection(rows[order], selection.target.repeat(2)[order])
