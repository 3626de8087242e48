"""ROAD, coherency and ADCC against loops in float64, against grad-cam's, and on a score whose reason is known."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.cam import faithfulness as module
from pipeline.cam.faithfulness import SHARES, adcc, coherency, faithfulness, road, scaled_masks
from pipeline.cam.imputation import linear_imputation

HEIGHT, WIDTH = 20, 25  # a multiple of ten pixels: shares and grad-cam's percentiles remove the same ones


def float64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def naive_imputation(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The image with missing pixels as the weighted mean of their neighbours, by sweeps until nothing moves."""
    found = np.where(missing, 0.0, image)
    for _ in range(4000):
        before = found.copy()
        for y, x in np.argwhere(missing):
            total, weights = np.zeros(len(image)), 0.0
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    there = (y + down, x + across)
                    if (down or across) and 0 <= there[0] < image.shape[1] and 0 <= there[1] < image.shape[2]:
                        weight = 1 / 12 if down and across else 1 / 6
                        total, weights = total + weight * found[:, there[0], there[1]], weights + weight
            found[:, y, x] = total / weights
        if np.abs(found - before).max() < 1e-12:
            return found
    raise AssertionError("no solution")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise."""
    monkeypatch.setattr(module, "NOISE", 0.0)


def made(seed: int, count: int = 3, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[Tensor, Tensor]:
    """An image (2, H, W) and smooth maps (T, H, W) in [0, 1] without equal pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, *size, generator=generator, dtype=torch.float64)
    return image, scaled_masks(torch.rand(count, 4, 5, generator=generator, dtype=torch.float64), size)


def test_imputation_against_loops() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 7))
    for missing in (rng.random((6, 7)) < 0.5, np.indices((6, 7))[0] < 4):
        expected = naive_imputation(image, missing)
        assert np.allclose(linear_imputation(image, missing), expected[:, missing].T, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("silent")
def test_road_against_loops() -> None:
    image, masks = made(1, count=2, size=(6, 7))
    weights = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def score(images: Tensor) -> Tensor:
        return (images * weights).sum((1, 2, 3)).sigmoid()

    found = road(score, image, masks, shares=(0.2, 0.6), batch=3)
    for place, mask in enumerate(masks):
        order = sorted(range(42), key=lambda pixel: -float(mask.flatten()[pixel]))
        sums = [0.0, 0.0]
        for count in (8, 25):  # of 42
            for which, removed in enumerate((order[:count], order[-count:])):
                missing = np.zeros(42, np.bool_)
                missing[removed] = True
                filled = naive_imputation(image.numpy(), missing.reshape(6, 7))
                sums[which] += 1 / (1 + math.exp(-float((filled * weights.numpy()).sum())))
        assert float(found.most_first[place]) == pytest.approx(sums[0] / 2, abs=1e-9)
        assert float(found.least_first[place]) == pytest.approx(sums[1] / 2, abs=1e-9)
        assert float(found.combined[place]) == pytest.approx((sums[1] - sums[0]) / 4, abs=1e-9)
    assert found.combined.dtype == torch.float64


def test_noise_is_small_seeded_and_the_same_for_all_maps() -> None:
    image, masks = torch.zeros(2, 30, 30), made(3, size=(30, 30))[1]
    frames: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        frames.append(images)
        return images.sum((1, 2, 3))

    road(score, image, torch.stack([masks[0], masks[0], masks[1]]), seed=5, shares=(0.5,))
    again = len(frames)
    road(score, image, masks[:1], seed=5, shares=(0.5,))
    road(score, image, masks[:1], seed=6, shares=(0.5,))
    first, twin, other = frames[:again]
    # Most relevant first, least relevant first: half of the pixels each, and all that is there is noise.
    assert [int((frame != 0).any(0).sum()) for frame in first] == [450, 450]
    assert not (first[0] * first[1]).any()
    assert float(first.sum(0).std()) == pytest.approx(0.01, rel=0.1)
    both = (first[0] != 0) & (other[0] != 0)
    assert torch.equal(first, twin) and torch.equal(first, frames[again])
    assert both.any() and torch.equal(first[0][both], other[0][both])
    assert not torch.equal(first, frames[again + 1])


def test_maps_that_are_not_finite_have_no_road() -> None:
    image, masks = made(4)
    masks[1] = torch.nan
    found = road(lambda images: images.mean((1, 2, 3)), image, masks, shares=(0.5,))
    assert found.combined.isnan().tolist() == [False, True, False]


def test_wrong_shares_and_sizes_are_refused() -> None:
    image, masks = made(5)
    for shares in ((), (0.0,), (0.5, 1.0)):
        with pytest.raises(ValueError, match="remove some and leave some"):
            road(lambda images: images.mean((1, 2, 3)), image, masks, shares=shares)
    with pytest.raises(ValueError, match="enlarge"):
        road(lambda images: images.mean((1, 2, 3)), image, masks[:, 1:])


def test_coherency_is_a_correlation_of_maps() -> None:
    one = float64([[[0, 1], [0.5, 0.2]], [[0, 1], [0, 1]], [[0, 1], [0, 1]], [[0, 0], [0, 0]], [[0, 1], [0, 1]]])
    two = float64(
        [[[0.1, 0.9], [0.3, 0.3]], [[1, 0], [1, 0]], [[0, 0.5], [0, 0.5]], [[0, 1], [0, 1]], [[0, 0], [0, 0]]]
    )
    found = coherency(one, two)
    expected = (1 + np.corrcoef(one[0].flatten(), two[0].flatten())[0, 1]) / 2
    assert torch.allclose(found, float64([expected, 0, 1, 0, 0]), rtol=1e-12)
    one[0, 0, 0] = torch.nan
    assert coherency(one, two)[0].isnan()


def test_adcc_is_the_harmonic_mean() -> None:
    found = adcc(float64([0.2, 0.0, 1.0, 0.1]), float64([0.9, 1.0, 0.9, math.nan]), float64([0.5, 0.0, 0.2, 0.2]))
    expected = 3 / (1 / 0.9 + 1 / 0.5 + 1 / 0.8)
    assert torch.allclose(found[:3], float64([expected, 1, 0]), rtol=1e-12)
    assert found[3].isnan()


# Others ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam.metrics.road as found
    return found


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("silent")
def test_road_is_that_of_grad_cam(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    imputer = peer.NoisyLinearImputer

    class Silent(imputer):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            imputer.__init__(self, noise=0.0)

    monkeypatch.setattr(peer, "NoisyLinearImputer", Silent)
    image, masks = made(8)
    # No two pixels alike: of equal ones grad-cam removes all or none.
    masks = masks.flatten(1).argsort(1).argsort(1).view(masks.shape) / (HEIGHT * WIDTH)
    image, model = image.float(), network()

    def target(output: Tensor) -> Tensor:
        return output.softmax(0)[1]

    with torch.no_grad():
        found = road(lambda images: model(images).softmax(1)[:, 1], image, masks)
        full = float(model(image[None]).softmax(1)[0, 1])
    percentiles = [round(100 * share) for share in SHARES]
    for name, ours in (
        ("ROADMostRelevantFirstAverage", found.most_first - full),
        ("ROADLeastRelevantFirstAverage", found.least_first - full),
        ("ROADCombined", found.combined),
    ):
        theirs: Any = getattr(peer, name)(percentiles)
        scores = [theirs(image[None], mask[None].numpy(), [target], model)[0] for mask in masks]
        assert torch.allclose(ours, float64(scores), rtol=0, atol=2e-6), name
    assert found.combined.std() > 1e-4  # there is something to agree on


@pytest.mark.filterwarnings("ignore")
def test_parts_of_adcc_are_those_of_grad_cam(peer: Any) -> None:
    arcc = pytest.importorskip("pytorch_grad_cam.metrics.arcc")
    image, masks = made(9)
    _, again = made(10)
    expected = (arcc.batch_pearson_coherency(masks.numpy(), again.numpy()) + 1) / 2
    assert np.allclose(coherency(masks, again).numpy(), expected, rtol=1e-6)
    kept = faithfulness(lambda images: images.mean((1, 2, 3)), image, masks, steps=1).kept
    assert np.allclose(kept.numpy(), arcc.Complexity()(masks.numpy()), rtol=1e-12)


# A known reason -------------------------------------------------------------------------------------------------------


def test_the_map_of_what_decides_ranks_above_others() -> None:
    """The score is how bright one patch is, and nothing else."""
    rng = np.random.default_rng(11)
    image = torch.from_numpy(rng.normal(0, 0.2, (3, 28, 28)))
    image[:, 4:12, 16:24] += 2.0

    def score(images: Tensor) -> Tensor:
        return (4 * images[:, :, 4:12, 16:24].mean((1, 2, 3)) - 4).sigmoid()

    true = torch.zeros(7, 7, dtype=torch.float64)
    true[1:3, 4:6] = 1.0
    false = torch.zeros(7, 7, dtype=torch.float64)
    false[4:6, 1:3] = 1.0
    maps = torch.stack([true, false, *torch.from_numpy(rng.random((8, 7, 7)))])
    masks = scaled_masks(maps, (28, 28))
    found, plain = road(score, image, masks), faithfulness(score, image, masks)
    assert found.combined[0] > 0.3
    assert bool((found.combined[0] > found.combined[1:] + 0.1).all())
    assert found.combined[1] < 0.05
    assert bool((plain.deletion[0] < plain.deletion[1:]).all())
    assert bool((plain.insertion[0] > plain.insertion[1:]).all())
