"""Methods that disagree as a whole, and classes in which they do."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audit.cells import Block
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.disagreement import KIND
from tests.pipeline.audit.evidence import find, make_evidence


def evidence_of(
    means: dict[tuple[int, int], list[float]],
    n: int = 150,
    methods: tuple[str, ...] = ("one", "two", "three"),
    seed: int = 0,
    noise: float = 0.1,
) -> Evidence:
    """``n`` maps of each class; ``means`` of the correlation by pair of methods and class."""
    rng = np.random.default_rng(seed)
    classes = len(next(iter(means.values())))
    target = np.repeat(np.arange(classes), n)
    evidence = make_evidence(target, np.ones((len(target), 14, 14)), methods=methods)
    for (first, second), of in means.items():
        correlation = np.clip(np.repeat(of, n) + rng.normal(0, noise, len(target)), -1, 1)
        correlation[:3] = np.nan  # maps without variation
        flags = np.zeros((len(target), 3), np.bool_)
        block = Block(first * len(methods) + second, target, target % 2, {}, correlation[:, None], flags)
        evidence.state.agreement.add(block)
    return evidence


def test_a_pair_that_disagrees_is_named() -> None:
    means = {(0, 1): [0.9, 0.9], (0, 2): [0.2, 0.25], (1, 2): [0.8, 0.8]}
    (found,) = find(KIND, evidence_of(means))
    assert found.title == "one and three disagree"
    assert found.effect == pytest.approx(0.225, abs=0.02)
    assert found.low is not None and found.high is not None and found.low < found.effect < found.high
    assert (found.n, found.target_class) == (297, None)
    assert list(found.details["lowest"]) == ["name-0", "name-1"]


def test_a_class_in_which_methods_disagree_is_found_once() -> None:
    means = {(0, 1): [0.9, 0.9, 0.7, 0.9], (0, 2): [0.9, 0.9, 0.6, 0.9], (1, 2): [0.9, 0.9, 0.9, 0.9]}
    (found,) = find(KIND, evidence_of(means))
    assert (found.finding_id, found.target_class) == ("disagreement:2", 2)
    assert found.details["pair"] == "one and three"
    assert found.effect == pytest.approx(-0.3, abs=0.03)
    assert {int(image.image_id[-6:]) // 150 for image in found.images} == {2}


def test_agreement_small_classes_and_chance_are_none() -> None:
    assert find(KIND, evidence_of({(0, 1): [0.9, 0.85, 0.9]})) == []
    assert find(KIND, evidence_of({(0, 1): [0.9, 0.6, 0.9]}, n=99)) == []
    assert find(KIND, evidence_of({(0, 1): [0.3]}, n=90)) == []
    assert find(KIND, evidence_of({(0, 1): [0.85, 0.65, 0.85]}, n=600, noise=0.5)) == []
    assert not any(find(KIND, evidence_of({(0, 1): [0.8] * 5}, seed=seed)) for seed in range(10))
    assert find(KIND, make_evidence(np.zeros(200, np.int64), np.ones((200, 14, 14)))) == []


def test_layers_of_one_method_are_told_apart() -> None:
    (found,) = find(KIND, evidence_of({(0, 1): [0.1, 0.1]}, methods=("one", "one")))
    assert found.title == "one (layer4) and one (layer4) disagree"
