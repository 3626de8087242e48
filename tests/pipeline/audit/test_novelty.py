"""Maps that look where their class never looks are found; usual ones are not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit.findings.novelty import KIND, MOST, threshold, unusual
from pipeline.audit.parts import sample_maps
from tests.pipeline.audit.planted import blobs, evidence, planted, table

GRID_OF_MAPS = (12, 12)


def odd(count: int, seed: int = 0) -> np.ndarray:
    """(count, 12, 12): all evidence on a small spot in the lower right corner."""
    rng = np.random.default_rng(seed)
    away, size = rng.uniform(0.93, 0.97, (2, count)), np.full(count, 0.03)
    return blobs(away[0], away[1], size, size, GRID_OF_MAPS)


def with_odd(count: int, seed: int = 0, per_class: int = 300) -> tuple[object, set[str]]:
    """A sample without a mark in which ``count`` maps are odd, and their images."""
    made = planted(seed, prevalence=0.0, classes=4, per_class=per_class).sample
    maps = sample_maps(made).astype(np.float64)
    rows = np.random.default_rng(seed).choice(len(maps), count, replace=False)
    maps[rows] = sample_maps(table(odd(count, seed), np.zeros(count, np.int64)))
    sample = table(maps, made["target_class"].to_numpy(), seed=seed)
    return sample, {sample["image_id"][row].as_py() for row in rows.tolist()}


@pytest.mark.parametrize("seed", range(5))
def test_usual_maps_are_not_found(seed: int) -> None:
    assert KIND().find(evidence(planted(seed, prevalence=0.0, classes=5, per_class=300).sample)) == []


def test_odd_maps_are_found_and_no_others() -> None:
    sample, expected = with_odd(6)
    (found,) = KIND().find(evidence(sample))
    assert {image.image_id for image in found.images} == expected
    assert (found.kind, found.finding_id, found.effect, found.n) == ("novelty", "novelty", 6.0, 1200)
    assert found.images[0].note.startswith("looks at the lower right corner, ")
    deviations = [int(image.note.split(", ")[1].split()[0]) for image in found.images]
    assert deviations == sorted(deviations, reverse=True)
    assert found.details["threshold"] < deviations[-1] + 1
    assert found.title == "6 images looked at in an unusual place"


def test_at_most_fifty_are_shown_and_all_are_counted() -> None:
    sample, expected = with_odd(60, per_class=1000)
    (found,) = KIND().find(evidence(sample))
    assert len(found.images) == MOST
    assert {image.image_id for image in found.images} <= expected
    assert found.effect == 60.0
    assert found.title.startswith("60 images")


def test_the_distance_is_that_of_the_class() -> None:
    """Each class's maps are usual for it, and odd for the other."""
    half = np.full(100, 0.1)
    rng = np.random.default_rng(0)
    left = blobs(rng.normal(0.5, 0.05, 100), rng.normal(0.25, 0.05, 100), half, half, GRID_OF_MAPS)
    right = left[:, :, ::-1].copy()
    left[7], right[9] = right[0].copy(), left[0].copy()
    z = unusual(sample_maps(table(np.concatenate([left, right]), np.repeat([0, 1], 100))), np.repeat([0, 1], 100), 30)[
        0
    ]
    assert set(np.argsort(-z)[:2].tolist()) == {7, 109}


def test_small_classes_are_not_judged() -> None:
    maps = np.concatenate([odd(29), odd(1)])
    z = unusual(sample_maps(table(maps, np.repeat([0, 1], [29, 1]))), np.repeat([0, 1], [29, 1]), 30)[0]
    assert np.isnan(z).all()
    assert threshold(z) == float("inf")
    assert KIND().find(evidence(table(maps, np.repeat([0, 1], [29, 1])))) == []
    assert KIND().find(evidence(table(maps[:0], np.empty(0, np.int64)))) == []


def test_the_score_is_a_robust_z() -> None:
    """One cell of 101 maps, the others even: median, 1.4826 median absolute deviations, and the floor."""
    values = np.linspace(0, 4, 101)
    maps = np.ones((101, 14, 14))
    maps[:, 3, 4] = values**2
    z, cell = unusual(maps, np.zeros(101, np.int64), 30)
    assert z[100] == pytest.approx(2 / 1.4826)
    assert cell[100] == 3 * 14 + 4
    maps[:, 3, 4] = np.where(np.arange(101) == 5, 4.0, 1.0)
    assert unusual(maps, np.zeros(101, np.int64), 30)[0][5] == pytest.approx(1 / 0.25)
