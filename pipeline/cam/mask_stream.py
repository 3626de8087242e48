"""The mask stream: masked images of many images, layers and batches, scored in chunks of one static shape.

Memory is bounded by one chunk of masked images plus the small grids of the images in flight; between two calls those
are the images whose masks fill the last, unfinished chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.cam.base import ChannelScores, MaskGroup
from pipeline.cam.masks import MaskSet
from pipeline.cam.shared_pass import check_logits


@dataclass
class MaskJob:
    """The masks of one image at one layer, and their scores as they come in.

    ``image`` (3, H, W) float32 is the normalised input; ``activation`` (C, h, w) float32; ``target`` (T,) int64 on
    the device, and ``classes`` the same on the CPU. Scores are kept for the T targets only: ``logit`` (U, T) float32
    and ``normaliser`` (U,) float64, the logarithm of the sum of exp over all classes.
    """

    number: int
    group: MaskGroup
    image: Tensor
    activation: Tensor
    masks: MaskSet
    target: Tensor
    classes: Tensor
    logit: Tensor = field(init=False)
    normaliser: Tensor = field(init=False)
    scored: int = 0

    def __post_init__(self) -> None:
        count = self.masks.grids.shape[0]
        self.logit = self.activation.new_empty((count, self.target.shape[0]))
        self.normaliser = self.activation.new_empty((count,), dtype=torch.float64)

    @property
    def left(self) -> int:
        """Masks that are not scored yet."""
        return self.masks.grids.shape[0] - self.scored


class MaskStream:
    """Scores the masks of the jobs given to it, in their order.

    Args:
        forward: masked images (B, 3, H, W) to logits (B, K); called with one static B.
        chunk: returns the masked images per forward; asked anew for each chunk.
        dtype: precision of the masked images.
        memory_format: layout of the masked images.
        normaliser: keep the logarithm of softmax's denominator for each mask.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        chunk: Callable[[], int],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        normaliser: bool,
    ) -> None:
        self._forward = forward
        self._chunk = chunk
        self._dtype = dtype
        self._memory_format = memory_format
        self._normaliser = normaliser
        self._queue: deque[MaskJob] = deque()
        self._waiting = 0
        self._buffer: Tensor | None = None
        self._null: MaskJob | None = None
        #: Masks scored so far, and forwards of a chunk that it took.
        self.masks_scored = 0
        self.forwards = 0

    def push(self, job: MaskJob) -> None:
        """Append a job; nothing is computed yet."""
        self._queue.append(job)
        self._waiting += job.left

    def push_null(self, image: Tensor, classes: int, group: MaskGroup) -> None:
        """Have the null mask scored before any job pushed from now on; only the first call does anything.

        An image that is masked entirely is the same for all images, layers and conventions.

        Args:
            image: (3, H, W) float32, for its shape and device.
            classes: K; all logits are kept.
            group: any.
        """
        if self._null is not None:
            return
        grids = image.new_zeros((1, 1, 1))
        no = torch.zeros(1, dtype=torch.bool, device=image.device)
        masks = MaskSet(grids, torch.zeros(1, dtype=torch.int64, device=image.device), no, no, False)
        target = torch.arange(classes)
        self._null = MaskJob(-1, group, torch.zeros_like(image), grids, masks, target.to(image.device), target)
        self.push(self._null)

    @property
    def null_logits(self) -> Tensor:
        """Logits (K,) of an image that is masked entirely; known to every complete job pushed after the null mask."""
        assert self._null is not None and self._null.left == 0
        return self._null.logit[0]

    def run(self, *, drain: bool) -> Iterator[MaskJob]:
        """Score full chunks (with ``drain`` all that is left, too) and yield the jobs that are complete, in order.

        A forward that fails leaves the queue as it was before that forward.
        """
        while self._queue:
            while self._queue and self._queue[0].left == 0:
                job = self._queue.popleft()
                if job is not self._null:
                    yield job
            if self._waiting == 0 or (self._waiting < self._chunk() and not drain):
                return
            self._score_chunk()

    def _score_chunk(self) -> None:
        size = self._chunk()
        segments: list[tuple[MaskJob, int, int]] = []
        filled = 0
        for job in self._queue:
            take = min(job.left, size - filled)
            segments.append((job, filled, take))
            filled += take
            if filled == size:
                break
        buffer = self._masked(segments, size)
        logits = check_logits(self._forward(buffer), size).float()
        self.forwards += 1
        normaliser = logits.double().logsumexp(1) if self._normaliser else None
        for job, row, take in segments:
            done = slice(job.scored, job.scored + take)
            job.logit[done] = logits[row : row + take].index_select(1, job.target)
            if normaliser is not None:
                job.normaliser[done] = normaliser[row : row + take]
            job.scored += take
        self._waiting -= filled
        self.masks_scored += filled

    def _masked(self, segments: list[tuple[MaskJob, int, int]], size: int) -> Tensor:
        shape = (size, *segments[0][0].image.shape)
        if self._buffer is None or self._buffer.shape != shape:
            self._buffer = torch.zeros(shape, dtype=self._dtype, device=segments[0][0].image.device).contiguous(
                memory_format=self._memory_format
            )
        for job, row, take in segments:
            grids = job.masks.grids[job.scored : job.scored + take].unsqueeze(1)
            masks = functional.interpolate(grids, shape[-2:], mode="bilinear", align_corners=job.group.align_corners)
            torch.mul(job.image, masks, out=self._buffer[row : row + take])
        return self._buffer


def channel_scores(job: MaskJob, null_logits: Tensor | None, activation: str | None) -> ChannelScores:
    """Spread the scores of a complete job over its channels.

    Args:
        job: all masks scored.
        null_logits: (K,) logits of the null mask; None where no method asks for it (such channels then score 0).
        activation: how logits become probabilities, ``softmax`` or ``sigmoid``; None where nobody needs them.
    """
    if null_logits is None:
        null, null_normaliser = job.logit.new_zeros((1, job.target.shape[0])), job.normaliser.new_zeros(1)
    else:
        null = null_logits.index_select(0, job.target)[None]
        null_normaliser = null_logits.double().logsumexp(0)[None]
    logit = torch.cat([job.logit, null])
    probability = None
    # In float64 and rounded once, so that the value does not depend on which vector lane computed it.
    if activation == "softmax":
        normaliser = torch.cat([job.normaliser, null_normaliser])
        probability = (logit.double() - normaliser[:, None]).exp().float()
    elif activation == "sigmoid":
        probability = logit.double().sigmoid().float()
    channel = job.masks.channel
    return ChannelScores(
        logit=logit[channel].T.contiguous(),
        probability=None if probability is None else probability[channel].T.contiguous(),
        constant=job.masks.constant,
        not_finite=job.masks.not_finite,
    )
