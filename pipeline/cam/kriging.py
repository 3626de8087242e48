"""Gaussian-process regression (kriging) of the scores of masks: what unscored masks would score, and how sure that is.

Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006: equations 2.25 and 2.26 (posterior), 4.17
(Matern covariance, nu = 5/2), 5.8 (marginal likelihood).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """Matern-5/2 of the distance between masks, plus a linear term and a constant, in units of the score's variance.

    ``length`` is in root mean square distances between masks, ``slope`` in mean squared lengths of a mask, and
    ``noise`` is the variance that the other terms do not explain.
    """

    length: float
    slope: float
    noise: float


#: Used before any score is known.
FIRST_KERNEL = Kernel(0.6, 0.1, 1e-3)
# What the marginal likelihood chooses from: a kernel is one of each.
_LENGTHS, _SLOPES, _NOISES = (0.4, 0.6, 0.9, 1.35, 2.0), (0.0, 0.1, 1.0), (1e-6, 1e-3, 1e-2)
# Variance of the constant: the scores' mean is subtracted first, so this is what that may be off.
_CONSTANT = 1.0
# Keeps what is divided by from being zero.
_TINY = 1e-12


class MaskSpace:
    """The masks of one image as points, with the covariances between them.

    Args:
        points: (U, d) masks, flattened.
    """

    def __init__(self, points: Tensor) -> None:
        # Single precision is enough for all but the small systems that are solved.
        square = points.square().sum(1)
        self._inner = points @ points.T
        distance = torch.add(square[:, None], square).sub_(self._inner, alpha=2).clamp_(min=0)
        distance.fill_diagonal_(0)
        self._distance = distance.div_(distance.mean().clamp(min=_TINY)).sqrt_()
        self._inner /= square.mean().clamp(min=_TINY)
        # Successive rounds mostly agree on the kernel.
        self._last: tuple[Kernel, Tensor] | None = None

    def prior_variance(self, kernel: Kernel) -> Tensor:
        """Return the variance (U,) float32 of each mask's score before any is known."""
        return self._inner.diagonal() * kernel.slope + (1 + _CONSTANT)

    def covariances(self, kernel: Kernel) -> Tensor:
        """Return the prior covariance (U, U) float32 of all masks."""
        if self._last is None or self._last[0] != kernel:
            covariance = _matern(self._distance, kernel.length)
            self._last = (kernel, covariance.add_(self._inner, alpha=kernel.slope).add_(_CONSTANT))
        return self._last[1]

    def candidates(self, known: Tensor) -> tuple[list[Kernel], Tensor]:
        """Return the kernels to choose from, and the covariance of noisy scores (kernels, n, n) float64 by each.

        Args:
            known: (n,) int64 numbers of masks.
        """
        distance, inner = self._distance[known][:, known].double(), self._inner[known][:, known].double()
        kernels, covariances = [], []
        for length in _LENGTHS:
            matern = _matern(distance, length).add_(_CONSTANT)
            for slope in _SLOPES:
                for noise in _NOISES:
                    kernels.append(Kernel(length, slope, noise))
                    covariances.append(torch.add(matern, inner, alpha=slope))
                    covariances[-1].diagonal().add_(noise)
        return kernels, torch.stack(covariances)


def _matern(distance: Tensor, length: float) -> Tensor:
    scaled = distance * (math.sqrt(5) / length)
    return torch.addcmul(scaled, scaled, scaled, value=1 / 3).add_(1).mul_(scaled.neg_().exp_())


def best_kernel(space: MaskSpace, known: Tensor, scores: Tensor) -> Kernel:
    """Return the kernel of largest marginal likelihood, summed over the targets, each with its own best variance.

    Args:
        space: the masks.
        known: (n,) int64 numbers of the masks that were scored.
        scores: (n, T) float64.
    """
    centred = scores - scores.mean(0)
    kernels, covariances = space.candidates(known)
    factor, failed = torch.linalg.cholesky_ex(covariances)
    solved = torch.linalg.solve_triangular(factor, centred.expand(len(kernels), -1, -1), upper=False)
    variance = solved.square().mean(1).clamp(min=torch.finfo(torch.float64).tiny)
    determinant = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    likelihood = -(len(known) / 2) * variance.log().sum(1) - scores.shape[1] * determinant
    likelihood = torch.where((failed == 0) & likelihood.isfinite(), likelihood, -torch.inf)
    return kernels[int(likelihood.argmax())]


def _factor(system: Tensor, noise: float) -> Tensor:
    """Return the Cholesky factor of ``system + noise``; with more noise where rounding made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(system + torch.eye(len(system), device=system.device) * noise)
    return factor if int(failed) == 0 else _factor(system, 10 * noise)


class Posterior:
    """What is known of all masks' scores after some were scored.

    ``mean`` (U, T) float64 (of no target where there are no scores); ``variance`` (U,) float32 is the same for all
    targets up to ``scale`` (T,) float64.

    Args:
        space: the masks.
        kernel: their prior covariance.
        known: (n,) int64 numbers of the masks that were scored.
        scores: (n, T) float64; None if there is none yet.
    """

    def __init__(self, space: MaskSpace, kernel: Kernel, known: Tensor, scores: Tensor | None) -> None:
        self.kernel = kernel
        self._prior = space.covariances(kernel)
        cross = self._prior[known].double()
        system = cross[:, known]
        values = cross[:, :0] if scores is None else scores
        offset = values.mean(0) if len(known) else values.sum(0)
        factor = _factor(system, kernel.noise)
        solved = torch.linalg.solve_triangular(factor, torch.cat([cross, values - offset], 1), upper=False)
        explained, data = solved.split([cross.shape[1], values.shape[1]], 1)
        self.mean = explained.T @ data + offset
        self.scale = data.square().mean(0)
        self._explained = explained.float()
        self.variance = (space.prior_variance(kernel) - self._explained.square().sum(0)).clamp_(min=0)

    def times(self, directions: Tensor) -> Tensor:
        """Return covariance @ directions, (U, R) float32."""
        return (self._prior @ directions).sub_(self._explained.T @ (self._explained @ directions))

    def column(self, number: int) -> Tensor:
        """Return one column (U,) float32 of the covariance."""
        column: Tensor = self._prior[number] - (self._explained.T @ self._explained[:, number])
        return column
