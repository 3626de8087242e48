"""The classes of the labels, and which of the model's classes each is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline.models.class_names import ClassIndex
from pipeline.pseudolabels.png import Palette, ignore_value, index_dtype
from schemas.documents import Manifest
from schemas.errors import InputError
from schemas.pseudolabels import LabelClass, PseudoLabels


@dataclass(frozen=True)
class Resolved:
    """A class of the labels: the value of its pixels, its name, and the model's classes (indices) behind it."""

    label_id: int
    name: str
    model_classes: tuple[int, ...]


@dataclass(frozen=True)
class LabelClasses:
    """All classes of the labels, in the order in which the job names them, and the type of index images."""

    classes: tuple[Resolved, ...]
    dtype: npt.DTypeLike

    @property
    def ignore(self) -> int:
        """Value of pixels that no class is claimed for."""
        return ignore_value(self.dtype)

    @cached_property
    def of_model(self) -> dict[int, tuple[Resolved, ...]]:
        """The label classes of each class of the model that has any."""
        found: dict[int, tuple[Resolved, ...]] = {}
        for each in self.classes:
            for index in each.model_classes:
                found[index] = (*found.get(index, ()), each)
        return found


def resolve_classes(
    given: Sequence[LabelClass] | None, num_classes: int, class_names: Sequence[str] | None, palette: Palette
) -> LabelClasses:
    """Resolve the label classes of a job on a model.

    Args:
        given: ``pseudo_labels.classes``; None: each of the model's, with id index + 1.
        num_classes, class_names: of the model.
        palette: of the index images.

    Raises:
        InputError: a class of the model does not exist, or is named twice by one label class; more ids than the images
            can hold.
    """
    names = list(class_names) if class_names is not None else None
    if given is None:
        classes = tuple(
            Resolved(index + 1, names[index] if names else f"class {index}", (index,)) for index in range(num_classes)
        )
    else:
        find = ClassIndex(num_classes, names)
        classes = tuple(Resolved(each.id, each.name, _indices(each, find)) for each in given)
    return LabelClasses(classes, np.dtype(index_dtype(max(each.label_id for each in classes), palette)))


def _indices(given: LabelClass, find: ClassIndex) -> tuple[int, ...]:
    found: list[int] = []
    for each in given.classes:
        try:
            index = find(each)
        except InputError as error:
            raise InputError(f"pseudo_labels.classes: '{given.name}': {error}") from None
        if index in found:
            raise InputError(f"pseudo_labels.classes: '{given.name}' names class {each!r} of the model twice")
        found.append(index)
    return tuple(found)


def manifest_classes(manifest: Manifest) -> LabelClasses:
    """Return the label classes of a lake of labels, as its job and its model give them."""
    settings = PseudoLabels.model_validate(manifest.job["pseudo_labels"])
    model = manifest.model
    return resolve_classes(settings.classes, model.num_classes, model.class_names, settings.files.palette)
