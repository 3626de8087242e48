"""Labels and groups that the files' form gives away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.cells import Block
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.image_property import KIND
from schemas.audit import Settings
from tests.pipeline.audit.evidence import find, make_evidence

Floats = npt.NDArray[np.float64]


def evidence_of(
    label: npt.NDArray[np.int64],
    width: Floats,
    height: Floats,
    size: Floats,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Evidence:
    n = len(label)
    groups = groups or {}
    evidence = make_evidence(label, np.ones((n, 14, 14)), groups=groups)
    values = np.stack([np.log(width), np.log(height), np.log(width / height), np.log(size / (width * height))], 1)
    objects = {name: np.array(list(each), np.object_) for name, each in groups.items()}
    block = Block(0, label, np.zeros(n, np.int64), objects, values, np.zeros((n, 3), np.bool_))
    evidence.state.images.add(block)
    return evidence


def usual(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
    width, height = (np.exp(rng.normal(6, 0.2, n)) for _ in range(2))
    return width, height, width * height * np.exp(rng.normal(-1, 0.3, n))


def test_a_label_with_another_form_is_found_alone() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(900) % 3
    width, height, size = usual(rng, 900)
    width[label == 1] *= 1.5
    size[label == 1] *= 1.5
    (found,) = find(KIND, evidence_of(label, width, height, size))
    assert (found.finding_id, found.target_class, found.measure) == ("image_property:1", 1, "log_width")
    own, other = (np.log(width[mask]) for mask in (label == 1, label != 1))
    pooled = np.sqrt(((own - own.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()) / np.sqrt(898)
    assert found.effect == pytest.approx((own.mean() - other.mean()) / pooled, rel=1e-4)
    assert found.low is not None and found.high is not None and found.low < found.effect < found.high
    assert set(found.details["properties"]) == {"log_width", "log_aspect"}
    assert found.details["times"] == pytest.approx(1.5, rel=0.05)
    assert "are wider than those of the other labels" in found.sentence
    assert {int(image.image_id[-6:]) % 3 for image in found.images} == {1}


def test_of_two_labels_the_rarer_one_is_told() -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(900) % 3 == 0).astype(np.int64)
    width, height, size = usual(rng, 900)
    size[label == 0] *= 2
    (found,) = find(KIND, evidence_of(label, width, height, size))
    assert (found.target_class, found.measure) == (1, "log_bytes_per_pixel")
    assert "smaller for their size" in found.title


def test_form_without_any_variation_is_still_a_number() -> None:
    label = np.arange(400) % 4
    width = np.where(label == 3, 640.0, 320.0)
    (found,) = find(KIND, evidence_of(label, width, np.full(400, 320.0), np.full(400, 9000.0)))
    assert (found.target_class, found.effect) == (3, 10.0)
    assert "2.00 times as large" in found.sentence


def test_small_differences_and_small_labels_are_none() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(2000) % 4
    width, height, size = usual(rng, 2000)
    assert find(KIND, evidence_of(label, width * np.where(label == 0, 1.1, 1), height, size)) == []
    label = np.where(np.arange(2000) < 90, 3, label % 3)
    assert find(KIND, evidence_of(label, width * np.where(label == 3, 2, 1), height, size)) == []


def test_groups_are_compared_within_labels() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 3000)
    width, height, size = usual(rng, 3000)
    wide = width * np.where(label == 1, 3, 1)
    # Site a has mostly label 1, whose images are wide at every site.
    site = np.where(rng.random(3000) < np.where(label == 1, 0.8, 0.2), "a", rng.choice(["b", "c"], 3000))
    found = find(KIND, evidence_of(label, wide, height, size, {"site": site.tolist()}))
    assert [each.attribute for each in found] == [None]
    height[site == "c"] *= 2
    found = find(KIND, evidence_of(label, wide, height, size, {"site": site.tolist()}))
    (group,) = [each for each in found if each.attribute is not None]
    assert (group.finding_id, group.value, group.measure) == ("image_property:site:c", "c", "log_height")
    assert group.details["times"] == pytest.approx(2, rel=0.05)
    assert (group.n, group.reference_n) == (int((site == "c").sum()), int((site != "c").sum()))


def test_of_two_values_one_is_told() -> None:
    rng = np.random.default_rng(0)
    width, height, size = usual(rng, 600)
    site = np.where(np.arange(600) < 200, "a", "b")
    size[:200] *= 3
    found = find(KIND, evidence_of(np.zeros(600, np.int64), width, height, size, {"site": site.tolist()}))
    assert [each.value for each in found] == ["a"]


def test_chance_is_not_flagged_even_without_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.audit.findings.image_property._LARGE", 0.0)
    flagged = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 4, 1600)
        site = rng.choice(["a", "b", "c"], 1600).tolist()
        evidence = evidence_of(label, *usual(rng, 1600), {"site": site})
        settings = Settings(effect_d=0, groups=("site",))
        object.__setattr__(evidence.frame, "settings", settings)
        flagged += bool(find(KIND, evidence))
    assert flagged <= 5
