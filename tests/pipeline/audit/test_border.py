"""Planted border and corner reliance is found, and nothing else is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.border import KIND
from schemas.audit import UNIFORM_CORNER, Settings
from tests.pipeline.audit.evidence import blobs, find, make_evidence, measured

Floats = npt.NDArray[np.float64]

CLASSES = 4


def planted(
    seed: int, n: int, corner: int | None, settings: Settings | None = None
) -> tuple[Evidence, Floats, npt.NDArray[np.int64]]:
    """``n`` maps of each class; those of ``corner`` lie at the top left."""
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(CLASSES), n)
    maps = blobs(rng, len(target), *(np.where(target == corner, 0.08, 0.5) for _ in range(2)))
    return make_evidence(target, maps, settings=settings), maps, target


def test_a_class_in_the_corner_is_found_alone() -> None:
    evidence, maps, target = planted(0, 150, 2)
    (found,) = find(KIND, evidence)
    assert (found.finding_id, found.target_class, found.target_name) == ("border:2", 2, "name-2")
    assert found.measure == "corner_enrichment"
    assert set(found.details["measures"]) == {"corner_enrichment", "border_enrichment"}
    values = measured(maps)[:, 7]
    true = values[target == 2].mean() / values[target != 2].mean()
    assert found.effect == pytest.approx(true, rel=1e-3)
    assert found.low is not None and found.high is not None and found.low < true < found.high
    assert (found.n, found.reference_n) == (150, 450)
    assert found.q is not None and found.q < 1e-6
    assert f"{found.details['share']:.0%} of the evidence lies in the corners" in found.sentence
    order = [int(image.image_id[-6:]) for image in found.images]
    assert order == np.lexsort((-values, target != 2))[: len(order)].tolist()


def test_nothing_is_found_where_nothing_is() -> None:
    assert [seed for seed in range(8) if find(KIND, planted(seed, 120, None)[0])] == []


def test_small_classes_are_not_flagged() -> None:
    assert find(KIND, planted(0, 60, 2)[0]) == []
    assert len(find(KIND, planted(0, 60, 2, Settings(flagged_from=50))[0])) == 1


def test_few_patients_are_not_enough() -> None:
    evidence, maps, target = planted(0, 150, 2)
    assert len(find(KIND, evidence)) == 1
    for patients, count in ((1, 0), (4, 0), (50, 1)):
        names = [f"patient {row % patients if each == 2 else -row}" for row, each in enumerate(target)]
        assert len(find(KIND, make_evidence(target, maps, clusters=names))) == count


def test_the_floors_hold() -> None:
    assert find(KIND, planted(0, 150, 2, Settings(effect_ratio=20))[0]) == []
    assert find(KIND, planted(0, 150, 2, Settings(effect_energy=0.5))[0]) == []


def test_all_classes_on_the_border_are_told_as_such() -> None:
    rng = np.random.default_rng(0)
    target = np.arange(400) % CLASSES
    maps = blobs(rng, 400, 0.02, 0.02, 0.03)
    (found,) = find(KIND, make_evidence(target, maps))
    mean = float(measured(maps)[:, 7].mean())
    assert (found.finding_id, found.target_class) == ("border:all", None)
    assert found.effect == pytest.approx(mean, rel=1e-3)
    assert f"{mean * UNIFORM_CORNER:.0%}" in found.sentence


def test_an_empty_lake_has_no_findings() -> None:
    assert find(KIND, make_evidence(np.empty(0, np.int64), np.empty((0, 14, 14)), classes=2)) == []
