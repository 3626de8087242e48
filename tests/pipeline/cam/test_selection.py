"""Which classes are explained."""

from __future__ import annotations

import pytest
import torch

from pipeline.cam.base import Selection
from pipeline.cam.selection import TargetSelector, checked, probabilities, select_lists, select_predicted
from schemas.errors import InputError
from schemas.job import Targets

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 3.0], [2.0, -1.0, 0.5, 0.0]])


def chosen(selection: Selection) -> list[tuple[int, int, str]]:
    assert selection.kind is not None
    return list(zip(selection.image.tolist(), selection.target.tolist(), selection.kind, strict=True))


def test_each_reason_alone() -> None:
    def select(**targets: object) -> list[tuple[int, int, str]]:
        return chosen(TargetSelector(Targets.model_validate(targets))(LOGITS, labels=[2, None]))

    assert select(label=True) == [(0, 2, "label")]
    assert select(predicted=True) == [(0, 1, "predicted"), (1, 0, "predicted")]  # ties: the first class
    assert select(top_k=2) == [(0, 1, "top_k"), (0, 3, "top_k"), (1, 0, "top_k"), (1, 2, "top_k")]
    assert select(threshold=0.3) == [(0, 1, "threshold"), (0, 3, "threshold"), (1, 0, "threshold")]
    assert select(classes=[3, 1]) == [(0, 1, "class"), (0, 3, "class"), (1, 1, "class"), (1, 3, "class")]


def test_the_union_gives_the_first_reason_that_holds() -> None:
    targets = Targets(label=True, predicted=True, top_k=2, threshold=0.9, classes=[0, 1, 2])
    selector = TargetSelector(targets, activation="sigmoid")
    assert chosen(selector(LOGITS, labels=[1, 2])) == [
        (0, 0, "class"),
        (0, 1, "label"),
        (0, 2, "class"),
        (0, 3, "top_k"),
        (1, 0, "predicted"),
        (1, 1, "class"),
        (1, 2, "label"),
    ]


def test_names_need_the_models_class_names() -> None:
    targets = Targets(classes=["cat", 2])
    selector = TargetSelector(targets, class_index=lambda name: 3 if name == "cat" else int(name))
    assert chosen(selector(LOGITS[:1])) == [(0, 2, "class"), (0, 3, "class")]
    with pytest.raises(InputError, match="'cat' is a name"):
        TargetSelector(targets)


def test_labels_that_are_missing_or_wrong() -> None:
    with pytest.raises(InputError, match="asks for labels"):
        TargetSelector(Targets(label=True))(LOGITS)
    with pytest.raises(InputError, match="class 4 does not exist; the model has 4 classes"):
        TargetSelector(Targets(label=True))(LOGITS, [4, 0])
    with pytest.raises(InputError, match="class 9 does not exist"):
        TargetSelector(Targets(classes=[9]))(LOGITS)


def test_lists_and_predictions() -> None:
    selection = select_lists([[3, 1], [], [2]])
    assert (selection.image.tolist(), selection.target.tolist()) == ([0, 0, 2], [3, 1, 2])
    assert select_predicted(LOGITS).target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("image", "target", "message"),
    [
        ([1, 0], [0, 0], "ascending order"),
        ([0, 2], [0, 0], "0 to 1"),
        ([-1], [0], "0 to 1"),
        ([0, 1], [0, 5], "class 5 of image 1 does not exist"),
        ([0], [-1], "class -1"),
        ([0, 1], [0], "two lists of one length"),
    ],
)
def test_selections_that_do_not_fit(image: list[int], target: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(Selection(torch.tensor(image), torch.tensor(target)), 2, 5)


def test_probabilities() -> None:
    assert probabilities(torch.tensor([[0.0, 0.0]]), "softmax").tolist() == [[0.5, 0.5]]
    assert probabilities(torch.tensor([[0.0, 1000.0]]), "sigmoid").tolist() == [[0.5, 1.0]]
    assert probabilities(torch.tensor([[1000.0, 0.0]]), "softmax").tolist() == [[1.0, 0.0]]
