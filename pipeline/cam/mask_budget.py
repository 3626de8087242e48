"""Score-CAM with a budget: few masks are scored, and kriging tells what the others would score.

The map is a weighted sum of channels, so what matters of the unscored masks is how their uncertain weights move the
map. In rounds, the masks that leave the least variance in the map are scored next (the A-optimal design, greedily);
after each round the variance that is left, against the map's own, gives the correlation to expect between this map
and the exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.cam.base import Budget
from pipeline.cam.kriging import FIRST_KERNEL, MaskSpace, Posterior, best_kernel
from pipeline.cam.masks import MaskSet

# Of a score in logits; beyond it, the moments of its exponential overflow.
_MOST_VARIANCE = 30.0
# A kernel is chosen anew when there are so many times the scores that it was chosen from.
_REFIT = 1.2
# Keeps what is divided by from being zero.
_TINY = torch.finfo(torch.float32).tiny


class MaskBudget:
    """Chooses the masks of one image to score, and predicts the rest.

    Args:
        masks: (U, h, w) float32, distinct.
        energy: (U, cells) float32, the sum of the activations of the channels that have each mask.
        budget: how many masks to score, and when to stop.
    """

    def __init__(self, masks: Tensor, energy: Tensor, budget: Budget) -> None:
        self._budget = budget
        self._count = masks.shape[0]
        # The mean over the cells changes no correlation.
        self._energy = energy - energy.mean(1, keepdim=True)
        self._points = masks.flatten(1)
        # Made when it is first needed and dropped at the end: of many waiting images only few need the memory.
        self._space: MaskSpace | None = None
        self._known = torch.empty(0, dtype=torch.int64, device=masks.device)
        self._given: Tensor | None = None
        self._taken = torch.zeros(self._count, dtype=torch.bool, device=masks.device)
        self._first = budget.masks(self._count)
        self._posterior: Posterior | None = None
        self._effect = energy[:0]
        # The kernel, and how many scores it was chosen from.
        self._kernel, self._fitted = FIRST_KERNEL, 0
        #: Scores (U, T) float64, predicted where they are not known, and the correlation (T,) to expect; NaN where a
        #: score is not finite. None before the first scores.
        self.scores: Tensor | None = None
        self.expected: Tensor | None = None

    @property
    def probability(self) -> bool:
        """Scores are probabilities, else logits."""
        return self._budget.probability

    @property
    def scored(self) -> int:
        """Masks whose scores are known."""
        return len(self._known)

    @property
    def first_round(self) -> int:
        """Masks of the first round."""
        return min(self._budget.round, self._first, self._count)

    def next_masks(self) -> Tensor:
        """Return the numbers (n,) int64 of the masks to score next; none if the map is good enough."""
        left = self._count - self.scored
        if left == 0 or (self.scored >= self._first and self._converged()):
            self._space = self._posterior = None
            self._effect = self._effect[:0]
            return self._known[:0]
        if self.scored and self._posterior is None:
            return (~self._taken).nonzero().flatten()  # nothing can be predicted
        wanted = self._first - self.scored if self.scored < self._first else left
        return self._choose(min(self._budget.round, wanted, left))

    def tell(self, masks: Tensor, scores: Tensor) -> None:
        """Take the scores (n, T) of ``masks`` (n,)."""
        self._known = torch.cat([self._known, masks])
        given = scores.double() if self._given is None else torch.cat([self._given, scores.double()])
        self._given = given
        self._taken[masks] = True
        if self.scored < self._count and bool(given.isfinite().all()):
            space = self._masks()
            if self.scored >= _REFIT * self._fitted:
                self._kernel, self._fitted = best_kernel(space, self._known, given), self.scored
            posterior = Posterior(space, self._kernel, self._known, given)
            self._posterior = posterior
            self.scores = posterior.mean.clone()
            self.scores[self._known] = given
            self.expected = self._expectation(posterior, self.scores)
        else:
            self._posterior = None
            self.scores = given.new_full((self._count, given.shape[1]), torch.nan)
            self.scores[self._known] = given
            self.expected = (self.scores * 0 + 1).mean(0).float()

    def _masks(self) -> MaskSpace:
        if self._space is None:
            self._space = MaskSpace(self._points)
        return self._space

    def _converged(self) -> bool:
        return self.expected is not None and bool((self.expected >= self._budget.correlation).all())

    def _slopes(self) -> Tensor:
        """Standard deviation of each open weight over that of its score, times the energy: (T or 1, U, cells)."""
        still_open = (~self._taken)[:, None]
        if self._posterior is None or self.scores is None or not self._budget.exponential:
            return (self._energy * still_open)[None]
        # The exponential of a normal variable is log-normal; exact second moments, so that a mask whose score may
        # still be far above the others is not overlooked.
        variance = (self._posterior.variance.double()[:, None] * self._posterior.scale).clamp(1e-12, _MOST_VARIANCE)
        logarithm = self.scores + torch.where(still_open, variance / 2 + (variance.expm1() / variance).log() / 2, 0.0)
        weight: Tensor = (logarithm - self.scores.logsumexp(0)).exp() * still_open
        return weight.T[:, :, None].float() * self._energy

    def _expectation(self, posterior: Posterior, scores: Tensor) -> Tensor:
        """Return the expected correlation (T,) of the maps with the exact ones, and keep what the next choice needs."""
        weight = scores.softmax(0) if self._budget.exponential else scores
        signal = (weight.T.float() @ self._energy).square().sum(1)
        slopes = self._slopes()
        effect = _times(posterior, slopes)
        error = (slopes * effect).sum((1, 2)) * posterior.scale.float()
        # Targets count alike: each by the variance of its own map.
        size = slopes.flatten(1).norm(dim=1).clamp(min=_TINY)
        self._effect = effect / size[:, None, None]
        # The truth is the predicted map and an error that does not correlate with it.
        correlation: Tensor = (1 + error.clamp(min=0) / signal.clamp(min=_TINY)).rsqrt()
        return correlation

    def _choose(self, count: int) -> Tensor:
        """Return the masks that leave the least variance in the maps, taken one after the other."""
        posterior = self._posterior or Posterior(self._masks(), FIRST_KERNEL, self._known, None)
        effect = self._effect if self._posterior is not None else _times(posterior, self._slopes())
        effect = effect.transpose(0, 1).flatten(1)
        noise = posterior.kernel.noise
        variance = posterior.variance + noise
        removed = effect.new_empty((count, self._count))
        still_open = ~self._taken
        chosen: list[int] = []
        for step in range(count):
            gain = torch.where(still_open, effect.square().sum(1) / variance, -1.0)
            number = int(gain.argmax())
            column = posterior.column(number) - removed[:step].T @ removed[:step, number]
            column = column / variance[number].sqrt()
            removed[step] = column
            effect = effect - column[:, None] * (effect[number] / variance[number].sqrt())
            variance = (variance - column.square()).clamp(min=noise)
            still_open[number] = False
            chosen.append(number)
        return torch.tensor(chosen, device=self._energy.device)


def budget_of(budget: Budget, masks: MaskSet, activation: Tensor) -> MaskBudget:
    """Return what chooses the masks of an image from its activation (C, h, w); a mask counts by its channels."""
    cells = activation.flatten(1)
    energy = cells.new_zeros((len(masks.grids) + 1, cells.shape[1]))
    energy.index_add_(0, masks.channel, torch.where(masks.not_finite[:, None], 0.0, cells))
    return MaskBudget(masks.grids, energy[:-1], budget)


def _times(posterior: Posterior, slopes: Tensor) -> Tensor:
    """Return covariance @ slopes, (T, U, cells)."""
    targets, count, cells = slopes.shape
    return posterior.times(slopes.transpose(0, 1).flatten(1)).view(count, targets, cells).transpose(0, 1)
