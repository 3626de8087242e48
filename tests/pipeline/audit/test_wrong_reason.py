from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.audit.findings.wrong_reason import KIND
from tests.pipeline.audit.lakes import make_lake
from tests.pipeline.audit.test_off_object import ASTRAY, astray, evidence

#: Half of the predictions of the lakes here are as sure.
SURE = {"confident": 0.7}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lake") / "lake"
    return make_lake(path, units=3, images=300, boxes=True, accuracy=0.95, paint=astray(0.3))


def test_the_class_that_is_right_by_something_else_is_found(planted: str) -> None:
    found = evidence(planted, **SURE)
    (finding,) = KIND().find(found)
    assert (finding.finding_id, finding.target_name) == ("wrong_reason:2", "name-2")
    sure = [
        row
        for row in found.sample.to_pylist()
        if row["target_class"] == ASTRAY
        and row["label"] == row["predicted_class"] == ASTRAY
        and row["probability"] >= np.float32(0.7)
        and row["enrichment"] == row["enrichment"]
        and row["pointing"] == row["pointing"]
    ]
    off = [row for row in sure if row["enrichment"] < 1 and row["pointing"] == 0]
    assert finding.n == len(sure) > 50
    assert finding.effect == pytest.approx(len(off) / len(sure))
    assert 0.15 < finding.effect < 0.45
    test = binomtest(len(off), len(sure), 0.05, alternative="greater")
    interval = test.proportion_ci(0.95, method="wilson")
    assert finding.p == pytest.approx(test.pvalue, rel=1e-6, abs=0)
    two_sided = binomtest(len(off), len(sure)).proportion_ci(0.95, method="wilson")
    assert (finding.low, finding.high) == pytest.approx((two_sided.low, two_sided.high))
    assert interval.low > 0.05
    assert finding.q is not None
    assert finding.q >= finding.p
    off.sort(key=lambda row: (row["enrichment"], row["image_id"]))
    assert [each.image_id for each in finding.images] == [row["image_id"] for row in off[:24]]
    assert f"In {finding.effect:.0%} of the images" in finding.sentence


def test_unsure_predictions_do_not_count(planted: str) -> None:
    all_right, sure = (KIND().find(evidence(planted, confident=level))[0] for level in (0.01, 0.7))
    assert sure.n < 0.7 * all_right.n


def test_few_images_are_never_flagged(planted: str) -> None:
    assert [each.target_class for each in KIND().find(evidence(planted, interval_from=500, **SURE))] == [None]
    # Neither where the lake has few of the class, and all classes together have few.
    assert KIND().find(evidence(planted, flagged_from=1000, **SURE)) == []


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, seed: int) -> None:
    uri = make_lake(tmp_path / "lake", units=2, images=250, boxes=True, seed=seed)
    assert KIND().find(evidence(uri, **SURE)) == []


def test_nothing_is_said_without_regions(tmp_path: Path) -> None:
    uri = make_lake(tmp_path / "lake", units=1, images=200)
    assert KIND().find(evidence(uri, boxes=None, **SURE)) == []


def test_a_lake_that_is_wrong_in_all_classes_is_told_once(tmp_path: Path) -> None:
    def paint(maps: np.ndarray, rows: object, image: object, target: np.ndarray, rng: np.random.Generator) -> None:
        chosen = rng.random(len(target)) < 0.3
        maps[chosen] = maps[chosen, ::-1, ::-1]

    uri = make_lake(tmp_path / "lake", units=2, images=300, boxes=True, accuracy=0.95, paint=paint)
    found = evidence(uri, **SURE)
    (finding,) = KIND().find(found)
    assert finding.finding_id == "wrong_reason:all"
    assert finding.effect == pytest.approx(0.3, abs=0.1)
    assert len(finding.images) == 24
