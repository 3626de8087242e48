"""What the maps table says of each target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.cam.base import Selection
from pipeline.cam.selection import TargetSelector
from pipeline.engine.targets import describe, in_words
from schemas.job import Targets

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, -1.0, 4.0, 0.0]])


def test_rank_prediction_logit_and_probability_of_each_target() -> None:
    selection = TargetSelector(Targets(top_k=4))(LOGITS)
    chosen = describe(selection, LOGITS, "softmax")
    assert chosen.image.tolist() == [0] * 4 + [1] * 4
    assert chosen.target.tolist() == [0, 1, 2, 3] * 2
    assert chosen.rank.tolist() == [3, 0, 2, 1, 0, 3, 1, 2]
    assert chosen.is_predicted.tolist() == [False, True, False, False, True, False, False, False]
    assert chosen.logit.tolist() == LOGITS.flatten().tolist()
    np.testing.assert_allclose(chosen.probability, LOGITS.softmax(1).flatten(), rtol=1e-6)
    assert chosen.kind.tolist() == ["top_k"] * 8


def test_sigmoid_probabilities() -> None:
    chosen = describe(TargetSelector(Targets(predicted=True))(LOGITS), LOGITS, "sigmoid")
    np.testing.assert_allclose(chosen.probability, torch.tensor([3.0, 4.0]).sigmoid(), rtol=1e-6)


def test_a_union_gives_the_first_reason() -> None:
    targets = Targets(label=True, predicted=True, top_k=2, classes=[0])
    selection = TargetSelector(targets)(LOGITS, labels=[1, 1])
    chosen = describe(selection, LOGITS, "softmax")
    assert list(zip(chosen.image.tolist(), chosen.target.tolist(), chosen.kind.tolist(), strict=True)) == [
        (0, 0, "class"),
        (0, 1, "label"),
        (0, 3, "top_k"),
        (1, 0, "predicted"),
        (1, 1, "label"),
        (1, 2, "top_k"),
    ]


def test_a_selection_without_reasons_is_refused() -> None:
    with pytest.raises(ValueError, match="no kinds"):
        describe(Selection(torch.tensor([0]), torch.tensor([1])), LOGITS, "softmax")


def test_in_words() -> None:
    assert in_words(Targets(label=True, top_k=9), 4) == "the label and the top 4"
    assert (
        in_words(Targets(threshold=0.5, classes=[1, 2]), 4) == "every class of probability >= 0.5 and 2 fixed classes"
    )
