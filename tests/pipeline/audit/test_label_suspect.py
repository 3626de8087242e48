"""Confident errors with focused maps are ranked; classes with many of them are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.label_suspect import KIND
from schemas.audit import Settings
from tests.pipeline.audit.evidence import RIGHT, WRONG, blobs, find, make_evidence


def errors(
    rates: list[float], n: int = 200, seed: int = 0, *, spread: bool = False, regions: bool = False, **more: Any
) -> Evidence:
    """Of the ``n`` images of each label, a share is taken for the next class with 97%.

    Args:
        rates: share of errors by label.
        n: images of each label.
        seed: of the maps.
        spread: the errors' maps are spread over the picture.
        regions: objects are known; the errors' maps lie on them, or off them where ``spread``.
        more: see ``make_evidence``.
    """
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(rates)), n)
    wrong = np.arange(len(label)) % n < np.repeat(rates, n) * n
    predicted = np.where(wrong, (label + 1) % len(rates), label)
    maps = blobs(rng, len(label))
    if spread and not regions:
        maps[wrong] = rng.uniform(0.9, 1.1, (int(wrong.sum()), 14, 14))
    sure = np.where(wrong, 0.97, 0.95) + np.linspace(0, 0.01, len(label))
    sample = {
        "label": label,
        "predicted_class": predicted,
        "predicted_probability": sure,
        "label_probability": np.where(wrong, 1 - sure, sure),
    }
    values = {"energy": np.where(wrong, 0.1 if spread else 0.9, rng.uniform(0.4, 0.8, len(label)))} if regions else None
    outcome = np.where(wrong, WRONG, RIGHT)
    return make_evidence(predicted, maps, sample=sample, outcome=outcome, values=values, **more)


def test_a_label_with_many_errors_is_told_apart() -> None:
    found = {each.target_class: each for each in find(KIND, errors([0.02, 0.02, 0.3, 0.02]))}
    assert set(found) == {2, None}
    worst, rest = found[2], found[None]
    assert (worst.n, worst.target_name) == (200, "name-2")
    # Errors' maps are as focused as all others, of which half count as focused.
    assert worst.effect == pytest.approx(0.15, abs=0.05)
    assert worst.low is not None and worst.high is not None and worst.low < worst.effect < worst.high
    assert worst.severity > 3 * rest.severity
    assert rest.n == 600 and rest.p is None
    assert all(400 <= int(image.image_id[-6:]) < 460 for image in worst.images)
    assert "labelled 'name-2'" in worst.images[0].note and "predicted 'name-3'" in worst.images[0].note


def test_the_surest_come_first_and_not_too_many() -> None:
    (found,) = find(KIND, errors([0.5, 0.5]))
    numbers = [int(image.image_id[-6:]) for image in found.images]
    assert len(numbers) == 50 and numbers == sorted(numbers, reverse=True)
    assert found.details["suspects"] > 50


@pytest.mark.parametrize("regions", [False, True])
def test_maps_without_focus_are_no_suspects(regions: bool) -> None:
    assert find(KIND, errors([0.1, 0.1], spread=True, regions=regions)) == []
    assert len(find(KIND, errors([0.1, 0.1], regions=regions))) == 1


def test_hesitant_errors_and_single_ones_are_no_suspects() -> None:
    assert find(KIND, errors([0.1, 0.1], settings=Settings(confident=0.99))) == []
    assert find(KIND, errors([0.01, 0.0])) == []
    assert find(KIND, errors([0.0, 0.0])) == []


def test_each_image_counts_once() -> None:
    # Every image twice, explained for its label as well: the map of the predicted class is taken.
    evidence = errors([0.3, 0.3])
    sample = evidence.sample
    label = sample.set_column(sample.column_names.index("target_class"), "target_class", sample["label"].cast("int64"))
    label = label.set_column(label.column_names.index("store_row"), "store_row", [[-1] * len(label)])
    both = type(sample).from_batches([*label.cast(sample.schema).to_batches(), *sample.to_batches()])
    (once,) = find(KIND, evidence)
    (twice,) = find(KIND, Evidence(evidence.frame, evidence.state, evidence.lake, both))
    assert (twice.n, twice.details, twice.images) == (once.n, once.details, once.images)


def test_a_lake_without_labels_has_none() -> None:
    nothing = {"label": [None] * 400, "label_probability": [None] * 400}
    evidence = make_evidence(
        np.zeros(400, np.int64), np.ones((400, 14, 14)), sample=nothing, outcome=np.zeros(400, np.int64)
    )
    assert find(KIND, evidence) == []
