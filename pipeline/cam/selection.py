"""Which classes of which image are explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from pipeline.cam.base import Selection
from schemas.errors import InputError
from schemas.job import Targets

#: Reasons, first to last: a class that several reasons ask for is explained once, for the first of them.
KINDS = ("label", "predicted", "top_k", "threshold", "class")


def probabilities(logits: Tensor, activation: str) -> Tensor:
    """Return probabilities (N, K) float32 from logits (N, K), by ``softmax`` over classes or ``sigmoid``."""
    wide = logits.double()
    return (wide.softmax(1) if activation == "softmax" else wide.sigmoid()).float()


def select_lists(targets: Sequence[Sequence[int]]) -> Selection:
    """Return the selection of the given class indices for each image in turn."""
    image = [position for position, classes in enumerate(targets) for _ in classes]
    target = [int(index) for classes in targets for index in classes]
    return Selection(torch.tensor(image, dtype=torch.int64), torch.tensor(target, dtype=torch.int64))


def select_predicted(logits: Tensor) -> Selection:
    """Select the class of the largest logit of each image (the first of equals)."""
    return select_lists([[index] for index in logits.argmax(1).tolist()])


class TargetSelector:
    """The union of the classes that a job's ``targets`` ask for, for each image in order of the class index.

    Args:
        targets: the job file's part.
        class_index: turns an entry of ``targets.classes`` into its index; without it, entries must be indices.
        activation: how logits become the probabilities that ``threshold`` is compared with.

    Raises:
        InputError: a class is given by name, and there is no ``class_index``.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        class_index: Callable[[int | str], int] | None = None,
        activation: str = "softmax",
    ) -> None:
        self.targets = targets
        self.activation = activation
        self.classes: list[int] = []
        for name in targets.classes or ():
            if class_index is not None:
                self.classes.append(class_index(name))
            elif isinstance(name, int):
                self.classes.append(name)
            else:
                raise InputError(f"targets.classes: '{name}' is a name, and no class names are known; give indices")

    def __call__(self, logits: Tensor, labels: Sequence[int | Sequence[int] | None] | None = None) -> Selection:
        """Select from logits (n, K).

        Args:
            logits: (n, K).
            labels: of each image the class index of its label, or several, or None where it has none.

        Raises:
            InputError: ``targets.label`` is set and there are no labels; or a class index does not exist.
        """
        values = logits.detach().float().cpu()
        count, classes = values.shape
        if self.targets.label and labels is None:
            raise InputError("targets.label asks for labels, and none were given; pass them or choose other targets")
        lists = [[] if each is None else [each] if isinstance(each, int) else list(each) for each in labels or ()]
        wrong = [index for index in (*self.classes, *chain(*lists)) if not 0 <= index < classes]
        if wrong:
            raise InputError(f"targets: class {wrong[0]} does not exist; the model has {classes} classes, from 0")
        # A stable sort settles ties by class index.
        rank = torch.sort(values, dim=1, descending=True, stable=True).indices.argsort(1)
        kind = torch.full((count, classes), len(KINDS))
        kind[:, self.classes] = KINDS.index("class")
        if self.targets.threshold is not None:
            kind[probabilities(values, self.activation) >= self.targets.threshold] = KINDS.index("threshold")
        if self.targets.top_k is not None:
            kind[rank < self.targets.top_k] = KINDS.index("top_k")
        if self.targets.predicted:
            kind[rank == 0] = KINDS.index("predicted")
        if self.targets.label:
            for row, known in enumerate(lists):
                kind[row, known] = KINDS.index("label")
        image, target = (kind < len(KINDS)).nonzero(as_tuple=True)
        return Selection(image, target, tuple(KINDS[index] for index in kind[image, target].tolist()))


def checked(selection: Selection, images: int, classes: int) -> Selection:
    """Return the selection on the CPU, once it is known to fit a batch of ``images`` and a model of ``classes``.

    Raises:
        InputError: it is not ordered by image, names an image that is not there, or a class that the model lacks.
    """
    image, target = selection.image.to("cpu", torch.int64), selection.target.to("cpu", torch.int64)
    if image.dim() != 1 or image.shape != target.shape:
        raise InputError(
            f"targets: image and target must be two lists of one length, not of shapes {tuple(image.shape)} "
            f"and {tuple(target.shape)}"
        )
    if image.numel() and (int(image.min()) < 0 or int(image.max()) >= images or bool((image.diff() < 0).any())):
        raise InputError(f"targets: image positions must be 0 to {images - 1} in ascending order, not {image.tolist()}")
    wrong = ((target < 0) | (target >= classes)).nonzero().flatten()
    if wrong.numel():
        entry = int(wrong[0])
        raise InputError(
            f"targets: class {int(target[entry])} of image {int(image[entry])} does not exist; the model has "
            f"{classes} classes, 0 to {classes - 1}"
        )
    return Selection(image, target, selection.kind)
