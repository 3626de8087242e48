"""The labels table: one row per class, or connected component, of an image (:data:`schemas.pseudolabels.LABELS`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.pseudolabels.labels import ClassScore, ImageLabels
from pipeline.pseudolabels.rle import Coded, components, encode_labels, encode_mask
from schemas.pseudolabels import LABELS

Mode = Literal["none", "class", "component"]


def labels_table(
    unit_id: str,
    labels: Sequence[ImageLabels],
    image_ids: Sequence[str],
    mask_paths: Sequence[str | None],
    mode: Mode = "class",
) -> pa.Table:
    """Return the rows of a unit's images.

    A class that an image has and that won no pixel has a row too, of area 0, with an empty box and the score 0.

    Args:
        unit_id: the unit.
        labels: of the unit's images that have labels, in any order.
        image_ids: ids of all of the unit's images; :attr:`ImageLabels.image_index` counts in them.
        mask_paths: of all of the unit's images, relative to the lake; None where there is none.
        mode: ``class``, or ``none``: a row per class, with or without codes; ``component``: one per connected
            component of it, the largest first.

    Raises:
        InputError: pycocotools or scipy is missing.
        ValueError: an image has labels and no mask path.
    """
    rows = [
        {"image_id": image_ids[each.image_index], "unit_id": unit_id, "mask_path": _path(each, mask_paths), **row}
        for each in labels
        for row in _rows(each, mode)
    ]
    return pa.Table.from_pylist(rows, schema=LABELS)


def _path(labels: ImageLabels, paths: Sequence[str | None]) -> str:
    path = paths[labels.image_index]
    if path is None:
        raise ValueError(f"image {labels.image_index} of the unit has labels and no mask path")
    return path


def _rows(labels: ImageLabels, mode: Mode) -> Iterator[dict[str, Any]]:
    index = labels.index.astype(np.int32)
    known = [each.label_id for each in labels.classes]
    index[~np.isin(index, known)] = 0  # ignored pixels are of no class
    if mode == "component":
        index, owners = _split(index, known)
    else:
        owners = {each: (each, 0) for each in known}
    coded = encode_labels(index, counts=mode != "none")
    sums = np.bincount(index.ravel(), labels.confidence.ravel().astype(np.float64), minlength=1)
    by_class: dict[int, list[tuple[int, float, Coded]]] = {each: [] for each in known}
    for number, found in coded.items():
        owner, component = owners[number]
        by_class[owner].append((component, float(sums[number]) / found.area, found))
    empty = None
    for each in labels.classes:
        if not by_class[each.label_id]:
            empty = empty or Coded(encode_mask(index < 0) if mode != "none" else None, 0, (0, 0, 0, 0))
            yield _row(each, 0, 0.0, empty)
        for component, score, found in sorted(by_class[each.label_id], key=lambda part: part[0]):
            yield _row(each, component, score, found)


def _split(index: Any, known: Sequence[int]) -> tuple[Any, dict[int, tuple[int, int]]]:
    """Return an image with a number per connected component, and of each number (class id, component)."""
    parts, used = np.zeros_like(index), 0
    owners: dict[int, tuple[int, int]] = {}
    for each in known:
        mask = index == each
        numbers, count = components(mask)
        parts[mask] = numbers[mask] + used
        owners |= {used + 1 + component: (each, component) for component in range(count)}
        used += count
    return parts, owners


def _row(owner: ClassScore, component: int, score: float, coded: Coded) -> dict[str, Any]:
    x0, y0, x1, y1 = coded.box
    return {
        "label_id": owner.label_id,
        "label_name": owner.label_name,
        "component": component,
        "target_kind": owner.kind,
        "probability": owner.probability,
        "score": score,
        "area": coded.area,
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
        "rle_counts": coded.counts,
    }
