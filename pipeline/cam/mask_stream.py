"""The mask stream: masked images of many images, layers and batches, scored in chunks of one static shape.

Memory is bounded by one chunk of masked images plus the small grids of the images in flight; between two calls those
are the images whose masks fill the last, unfinished chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.cam.base import ChannelScores, MaskGroup
from pipeline.cam.mask_budget import MaskBudget
from pipeline.cam.masks import MaskSet
from pipeline.cam.shared_pass import check_logits


@dataclass
class MaskJob:
    """The masks of one image at one layer, and their scores as they come in.

    ``image`` (3, H, W) float32 is the normalised input; ``activation`` (C, h, w) float32; ``target`` (T,) int64 on
    the device, and ``classes`` the same on the CPU. Scores are kept for the T targets only: ``logit`` (U, T) float32
    and ``normaliser`` (U,) float64, the logarithm of the sum of exp over all classes. ``budget`` chooses the masks
    that are scored; without one they all are.
    """

    number: int
    group: MaskGroup
    image: Tensor
    activation: Tensor
    masks: MaskSet
    target: Tensor
    classes: Tensor
    budget: MaskBudget | None = None
    logit: Tensor = field(init=False)
    normaliser: Tensor = field(init=False)
    #: Numbers of the masks to score next, of which ``sent`` are scored; None until the first are needed.
    round: Tensor | None = None
    sent: int = 0

    def __post_init__(self) -> None:
        count = self.masks.grids.shape[0]
        self.logit = self.activation.new_zeros((count, self.target.shape[0]))
        self.normaliser = self.activation.new_zeros((count,), dtype=torch.float64)

    @property
    def left(self) -> int:
        """Masks that are to be scored next; 0 where the job is complete."""
        if self.round is None:
            return len(self.masks.grids) if self.budget is None else self.budget.first_round
        return len(self.round) - self.sent

    def take(self, most: int) -> Tensor:
        """Return the numbers (n,) int64 of the next masks to score, at most so many."""
        if self.round is None:
            count = len(self.masks.grids)
            everyone = torch.arange(count, device=self.activation.device)
            self.round = everyone if self.budget is None else self.budget.next_masks()
        return self.round[self.sent : self.sent + most]

    @property
    def effort(self) -> tuple[Tensor, Tensor]:
        """Masks scored (T,) int64, and the expected correlation (T,) float32 with the exact maps; on the CPU."""
        count = len(self.masks.grids) if self.budget is None else self.budget.scored
        expected = None if self.budget is None or count == len(self.masks.grids) else self.budget.expected
        scored = torch.full(self.classes.shape, count)
        return scored, torch.full(self.classes.shape, torch.nan) if expected is None else expected.cpu()

    def refill(self, activation: str) -> None:
        """Ask the budget, whose round is scored, for the masks of the next one."""
        if self.budget is None or self.round is None or self.left or not len(self.round):
            return
        logit = self.logit[self.round]
        scores = logit.double()
        if self.budget.probability:
            scores = _probability(logit, self.normaliser[self.round], activation)
        self.budget.tell(self.round, scores)
        self.round, self.sent = self.budget.next_masks(), 0


class Segment(NamedTuple):
    """Masks of one image in a chunk: rows ``row`` to ``row + len(grids)`` are ``grids`` (n, h, w) over ``image``."""

    row: int
    image: Tensor
    grids: Tensor
    align_corners: bool


class MaskedForward(Protocol):
    """The network over masked images."""

    def chunk(self) -> int:
        """Return the masked images per forward; asked anew for each."""

    def __call__(self, segments: list[Segment], size: int) -> Tensor:
        """Return the logits (size, K) of the masked images; rows that no segment has are anything.

        Raises:
            torch.OutOfMemoryError: this many do not fit.
        """

    def halve(self) -> bool:
        """Make the next chunks half as large; False if they are of one image already."""


class MaskStream:
    """Scores the masks of the jobs given to it, in their order.

    Args:
        forward: runs the network over a chunk of masked images.
        normaliser: keep the logarithm of softmax's denominator for each mask.
        activation: how logits become probabilities, ``softmax`` or ``sigmoid``.
    """

    def __init__(self, forward: MaskedForward, normaliser: bool, activation: str) -> None:
        self._forward = forward
        self._normaliser = normaliser
        self._activation = activation
        self._queue: deque[MaskJob] = deque()
        self._waiting = 0
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
        assert self._null is not None
        assert self._null.left == 0
        return self._null.logit[0]

    def run(self, *, drain: bool) -> Iterator[MaskJob]:
        """Score full chunks (with ``drain`` all that is left, too) and yield the jobs that are complete, in order.

        A forward that fails leaves the queue as it was before that forward; one that runs out of memory is tried
        again with half the images.
        """
        while self._queue:
            while self._queue and self._queue[0].left == 0:
                job = self._queue.popleft()
                if job is not self._null:
                    yield job
            if self._waiting == 0 or (self._waiting < self._forward.chunk() and not drain):
                return
            try:
                self._score_chunk()
            except torch.OutOfMemoryError:
                if not self._forward.halve():
                    raise

    def _score_chunk(self) -> None:
        size = self._forward.chunk()
        rows: list[tuple[MaskJob, int, Tensor]] = []
        filled = 0
        for job in self._queue:
            chosen = job.take(size - filled) if job.left else None
            if chosen is not None:
                rows.append((job, filled, chosen))
                filled += len(chosen)
            if filled == size:
                break
        segments = [
            Segment(row, job.image, job.masks.grids[chosen], job.group.align_corners) for job, row, chosen in rows
        ]
        logits = check_logits(self._forward(segments, size), size).float()
        self.forwards += 1
        normaliser = logits.double().logsumexp(1) if self._normaliser else None
        for job, row, chosen in rows:
            found = slice(row, row + len(chosen))
            job.logit[chosen] = logits[found].index_select(1, job.target)
            if normaliser is not None:
                job.normaliser[chosen] = normaliser[found]
            job.sent += len(chosen)
            self._waiting -= len(chosen)
            job.refill(self._activation)
            self._waiting += job.left if job.sent == 0 else 0
        self.masks_scored += filled


def _probability(logit: Tensor, normaliser: Tensor, activation: str) -> Tensor:
    """Return the probabilities (n, T) float64 of logits (n, T) with their normalisers (n,)."""
    # In float64, and rounded once where it is stored, so that no value depends on which vector lane computed it.
    return (logit.double() - normaliser[:, None]).exp() if activation == "softmax" else logit.double().sigmoid()


def channel_scores(job: MaskJob, null_logits: Tensor | None, activation: str | None) -> ChannelScores:
    """Spread the scores of a complete job over its channels.

    Args:
        job: complete.
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
    if activation is not None:
        normaliser = torch.cat([job.normaliser, null_normaliser])
        probability = _probability(logit, normaliser, activation).float()
    if job.budget is not None and job.budget.scores is not None:
        # Of the masks that were not scored, the predictions; only the scores that the budget is for are known.
        if job.budget.probability:
            assert probability is not None
            probability[:-1] = job.budget.scores
        else:
            logit[:-1] = job.budget.scores
    channel = job.masks.channel
    return ChannelScores(
        logit=logit[channel].T.contiguous(),
        probability=None if probability is None else probability[channel].T.contiguous(),
        constant=job.masks.constant,
        not_finite=job.masks.not_finite,
    )
