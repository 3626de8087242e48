"""Kriging against the textbook's formulas in float64, written out with whole matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.cam.kriging import Kernel, MaskSpace, Posterior, best_kernel


def masks(count: int = 30, cells: int = 12) -> Tensor:
    return torch.rand((count, cells), generator=torch.Generator().manual_seed(1)).square()


def covariance(points: Tensor, kernel: Kernel) -> Tensor:
    """Matern-5/2 over scaled distances, plus a linear term and a constant: (U, U) float64."""
    points = points.double()
    distance = torch.stack([(points - each).norm(dim=1) for each in points])
    scaled = math.sqrt(5) * distance / distance.square().mean().sqrt() / kernel.length
    linear = points @ points.T / points.square().sum(1).mean()
    return (1 + scaled + scaled**2 / 3) * torch.exp(-scaled) + kernel.slope * linear + 1


def scores(points: Tensor, targets: int = 2) -> Tensor:
    weights = torch.randn((points.shape[1], targets), generator=torch.Generator().manual_seed(2)).double()
    return (points.double() @ weights).sin() + 3


@pytest.mark.parametrize("kernel", [Kernel(0.6, 0.1, 1e-3), Kernel(2.0, 0.0, 1e-2), Kernel(0.9, 1.0, 1e-6)])
def test_the_posterior_is_that_of_a_gaussian_process(kernel: Kernel) -> None:
    points = masks()
    known = torch.tensor([3, 17, 8, 21, 0, 5])
    given = scores(points)[known]
    found = Posterior(MaskSpace(points), kernel, known, given)
    prior = covariance(points, kernel)
    system = prior[known][:, known] + kernel.noise * torch.eye(len(known), dtype=torch.float64)
    gain = prior[:, known] @ system.inverse()
    offset = given.mean(0)
    expected = prior - gain @ prior[known]
    assert torch.allclose(found.mean, gain @ (given - offset) + offset, atol=1e-4)
    assert torch.allclose(found.variance.double(), expected.diagonal(), atol=2e-5)
    directions = torch.randn((len(points), 3), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(found.times(directions).double(), expected @ directions.double(), atol=2e-4)
    assert torch.allclose(found.column(7).double(), expected[:, 7], atol=2e-5)
    likely = torch.stack([(column @ system.inverse() @ column) / len(known) for column in (given - offset).T])
    assert torch.allclose(found.scale, likely, rtol=1e-3)


def test_nothing_known_leaves_the_prior() -> None:
    points, kernel = masks(), Kernel(0.6, 0.1, 1e-3)
    found = Posterior(MaskSpace(points), kernel, torch.empty(0, dtype=torch.int64), None)
    assert found.mean.shape == (30, 0)
    assert torch.allclose(found.variance.double(), covariance(points, kernel).diagonal(), atol=1e-5)


def test_the_best_kernel_has_the_largest_marginal_likelihood() -> None:
    points = masks(40)
    space = MaskSpace(points)
    known = torch.arange(0, 40, 2)
    given = scores(points)[known]
    kernels, _ = space.candidates(known)
    likelihoods = []
    for kernel in kernels:
        system = covariance(points, kernel)[known][:, known] + kernel.noise * torch.eye(len(known)).double()
        total = 0.0
        for column in (given - given.mean(0)).T:
            scale = column @ system.inverse() @ column / len(known)  # the variance of largest likelihood
            normal = torch.distributions.MultivariateNormal(torch.zeros_like(column), scale * system)
            total += float(normal.log_prob(column))
        likelihoods.append(total)
    best = best_kernel(space, known, given)
    assert max(likelihoods) - likelihoods[kernels.index(best)] < 1e-2


def test_equal_scores_are_predicted_everywhere() -> None:
    space, known = MaskSpace(masks()), torch.tensor([1, 2, 3])
    given = torch.full((3, 1), 0.25, dtype=torch.float64)
    found = Posterior(space, best_kernel(space, known, given), known, given)
    assert torch.allclose(found.mean, torch.full((30, 1), 0.25, dtype=torch.float64))
    assert found.scale.tolist() == [0.0]


def test_masks_that_are_nearly_equal_are_no_failure() -> None:
    # In single precision their covariance is not positive definite any more.
    generator = torch.Generator().manual_seed(4)
    points = torch.cat([masks(20).repeat(15, 1) + 1e-6 * torch.rand((300, 12), generator=generator), masks(20)])
    kernel, known = Kernel(2.0, 1.0, 1e-9), torch.arange(300)
    system = MaskSpace(points).covariances(kernel)[known][:, known].double()
    assert int(torch.linalg.cholesky_ex(system + kernel.noise * torch.eye(300))[1]) != 0
    given = scores(points)[known]
    found = Posterior(MaskSpace(points), kernel, known, given)
    assert torch.allclose(found.mean[:300], given, atol=1e-2)
