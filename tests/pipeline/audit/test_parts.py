"""The factorisation finds what maps are made of, and the same for the same sample."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit.parts import Parts, find_parts, sample_maps
from schemas.audit import GRID
from tests.pipeline.audit.planted import blobs, planted, table


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """(3, GRID, GRID) parts of mean 1."""
    y, x = np.array([0.15, 0.5, 0.8]), np.array([0.2, 0.5, 0.85])
    return blobs(y, x, np.full(3, 0.08), np.full(3, 0.08), (GRID, GRID)) * GRID**2


@pytest.fixture(scope="module")
def shares() -> np.ndarray:
    """(600, 3) how the maps are mixed; the first part has most of the mass."""
    return np.random.default_rng(0).dirichlet([0.9, 0.6, 0.3], 600)


@pytest.fixture(scope="module")
def found(truth: np.ndarray, shares: np.ndarray) -> Parts:
    return find_parts(table(np.tensordot(shares, truth, 1), np.repeat(np.arange(3), 200)), 3, seed=0)


def test_mixtures_come_apart(found: Parts, truth: np.ndarray, shares: np.ndarray) -> None:
    assert found.maps.shape == (3, GRID, GRID)
    assert found.maps.mean((1, 2)) == pytest.approx(1)
    correlation = np.corrcoef(found.maps.reshape(3, -1), truth.reshape(3, -1))[:3, 3:]
    assert correlation.argmax(1).tolist() == [0, 1, 2]  # by mass
    assert correlation.max(1).min() > 0.98
    assert found.loadings.sum(1) == pytest.approx(1)
    assert np.abs(found.loadings - shares).mean() < 0.05


def test_the_second_half_teaches_nothing(truth: np.ndarray, shares: np.ndarray, found: Parts) -> None:
    maps = np.tensordot(shares, truth, 1)
    sample = table(maps, np.repeat(np.arange(3), 200))
    second = np.flatnonzero(sample["half"].to_numpy() == 1)
    assert 200 < len(second) < 400
    maps[second] = np.random.default_rng(1).random((len(second), GRID, GRID))
    other = find_parts(table(maps, np.repeat(np.arange(3), 200)), 3, seed=0)
    assert np.array_equal(other.maps, found.maps)
    assert found.learnt == 600 - len(second)


def test_the_same_sample_gives_the_same_parts() -> None:
    sample = planted(2, prevalence=0.1, per_class=100).sample
    one, two = find_parts(sample, 8, seed=3), find_parts(sample, 8, seed=3)
    assert np.array_equal(one.maps, two.maps)
    assert np.array_equal(one.loadings, two.loadings)


def test_a_maps_loading_depends_on_itself_alone(found: Parts, truth: np.ndarray) -> None:
    maps = np.stack([truth[0], 0.25 * truth[1] + 0.75 * truth[2], np.zeros_like(truth[0])])
    together = found.load(maps)
    assert np.array_equal(together[1:2], found.load(maps[1:2]))
    assert together[0].argmax() == 0
    assert together[1] == pytest.approx([0, 0.25, 0.75], abs=0.06)
    assert together[2].tolist() == [0, 0, 0]


def test_few_maps_have_few_parts_and_none_has_none(truth: np.ndarray) -> None:
    few = find_parts(table(np.repeat(truth, 2, 0), np.repeat(np.arange(3), 2)), 16, seed=0)
    assert len(few.maps) <= 6
    assert few.loadings.shape == (6, len(few.maps))
    none = find_parts(table(truth[:0], np.empty(0, np.int64)), 16, seed=0)
    assert none.maps.shape == (0, GRID, GRID)
    assert none.loadings.shape == (0, 0)


def test_maps_of_a_sample_in_chunks(truth: np.ndarray) -> None:
    sample = table(truth, np.arange(3))
    assert np.array_equal(sample_maps(sample.take([2, 0]))[1], sample_maps(sample)[0])
    assert sample_maps(sample.slice(1, 1))[0] == pytest.approx(truth[1], rel=1e-5)
