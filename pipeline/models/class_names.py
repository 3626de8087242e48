"""Class names of a model, and labels to class indices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import schemas.job
from pipeline.models.factory import ModelName, torchvision_weights
from pipeline.models.trace import first_line
from pipeline.models.weights import WeightsChoice
from pipeline.sources.storage import open_fs, storage_errors
from schemas.errors import InputError, did_you_mean


def resolve_class_names(
    config: schemas.job.Model,
    name: ModelName,
    weights: WeightsChoice,
    model: nn.Module,
    num_classes: int,
    metadata: Mapping[str, Any],
) -> list[str] | None:
    """Return the names in index order, or None where nothing tells them.

    In order: ``model.class_names``, the ``class_names`` of the weights file's metadata, then ImageNet's for a library's
    trained model with ImageNet's number of classes (random weights have no names).

    Raises:
        InputError: the names cannot be read, or their number is not the model's number of classes.
    """
    if config.class_names is not None:
        if isinstance(config.class_names, str):
            source = f"model.class_names '{config.class_names}'"
            names = read_class_names(config.class_names, config.storage_options)
        else:
            source, names = "model.class_names", list(config.class_names)
    elif metadata.get("class_names") is not None:
        source = f"the class_names in the metadata of '{config.weights}'"
        names = parse_class_names(metadata["class_names"], source)
    else:
        return _imagenet(name, weights, model, num_classes)
    if len(names) != num_classes:
        raise InputError(
            f"{source} has {len(names)} names but the model has {num_classes} classes; give one name per class, in the "
            f"order of the indices"
        )
    return names


def _imagenet(name: ModelName, weights: WeightsChoice, model: nn.Module, num_classes: int) -> list[str] | None:
    if weights.kind in ("random", "own"):
        return None
    if name.library == "torchvision":
        members = torchvision_weights(name.name)
        entry = members[weights.value] if weights.value in members else next(iter(members.values()), None)
        categories = list(entry.meta.get("categories", [])) if entry is not None else []
        return categories if len(categories) == num_classes else None
    if name.library == "timm":
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset({"num_classes": num_classes})
        return list(ImageNetInfo(subset).label_descriptions()) if subset else None
    return None


def read_class_names(uri: str, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Read class names from a JSON or text file (one name per line) at any fsspec URI.

    Raises:
        InputError: missing, unreadable or of another form.
        AccessError: the store cannot be used: credentials, bucket.
        StorageError: the store does not answer as it should; the same request may succeed later.
    """
    fs, path = open_fs(uri, storage_options, field="model.class_names")
    with storage_errors(uri, "model.class_names"):
        data: bytes = fs.cat_file(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"model.class_names: '{uri}' is no UTF-8 text; save it as UTF-8") from error
    source = f"model.class_names '{uri}'"
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return parse_class_names(json.loads(text), source)
        except ValueError as error:
            raise InputError(f"{source} is damaged JSON ({first_line(error)}); correct it") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{source} is empty; write one class name per line")
    return names


def parse_class_names(content: Any, source: str) -> list[str]:
    """Return the names of a list, or of a dict from index (as text) to name.

    A name may itself be a list, as in ImageNet's ``{"0": ["n01440764", "tench"]}``: its last member is taken.

    Raises:
        InputError: another form, or indices that do not run from 0.
    """
    if isinstance(content, Mapping):
        try:
            indexed = {int(key): value for key, value in content.items()}
        except (TypeError, ValueError):
            raise InputError(
                f'{source}: the keys are no class indices; write {{"0": name, "1": name}} or a list'
            ) from None
        if sorted(indexed) != list(range(len(content))):
            raise InputError(f"{source}: the indices do not run from 0 to {len(content) - 1}; give each class a name")
        content = [indexed[index] for index in range(len(indexed))]
    if not isinstance(content, list) or not content:
        raise InputError(f"{source} is {type(content).__name__}, not a list of names; write [name, name, ...]")
    names = [entry[-1] if isinstance(entry, list) and entry else entry for entry in content]
    for index, entry in enumerate(names):
        if not isinstance(entry, str):
            raise InputError(f"{source}: the name of class {index} is {entry!r}, no text; write a name")
    return names


class ClassIndex:
    """Turns labels into class indices."""

    def __init__(self, num_classes: int, names: Sequence[str] | None) -> None:
        self._num_classes = num_classes
        self._index = {name: index for index, name in reversed(list(enumerate(names or ())))}
        self._repeated = {name for name, count in Counter(names or ()).items() if count > 1}
        self._names = list(names or ())

    def __call__(self, label: int | str) -> int:
        """Return the index of a class index (an int, or its digits) or a class name; a name that is digits wins.

        Raises:
            InputError: not a class of the model, or a name that several classes have.
        """
        if isinstance(label, str):
            if label in self._repeated:
                indices = [str(index) for index, name in enumerate(self._names) if name == label]
                raise InputError(f"class name '{label}' is that of classes {' and '.join(indices)}; use the index")
            if label in self._index:
                return self._index[label]
            if not (label.strip().isascii() and label.strip().isdigit()):
                known = "" if self._names else "; the model has no class names, set model.class_names"
                raise InputError(
                    f"the model has no class '{label}'{did_you_mean(label, self._index)}; use a class name or an index "
                    f"from 0 to {self._num_classes - 1}{known}"
                )
            label = int(label)
        if isinstance(label, bool) or not 0 <= int(label) < self._num_classes:
            raise InputError(f"the model has no class {label}; use an index from 0 to {self._num_classes - 1}")
        return int(label)
