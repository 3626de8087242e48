"""Which images go into an export: some of each class by hash, or those behind findings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.frame import Frame
from pipeline.audit.keys import keys_of, mixed
from pipeline.lake import Lake
from schemas.audit import Finding
from schemas.errors import InputError, did_you_mean

_COLUMNS = ("image_id", "unit_id", "target_class")


@dataclass(frozen=True, slots=True)
class Choice:
    """An image, and the class whose map is wanted (None: the predicted one, else the best scored)."""

    image_id: str
    unit_id: str
    target_class: int | None


def class_indices(given: Sequence[str], frame: Frame, classes: int) -> frozenset[int]:
    """Return the indices of classes that are given by name or index.

    Raises:
        InputError: the model has no such class.
    """
    names = frame.class_names or ()
    found = set()
    for each in given:
        if each in names:
            found.add(names.index(each))
        elif each.isdecimal() and int(each) < classes:
            found.add(int(each))
        else:
            raise InputError(
                f"--classes: the model has no class '{each}'{did_you_mean(each, names)}; give names or indices below "
                f"{classes}"
            )
    return frozenset(found)


def by_hash(lake: Lake, frame: Frame, most: int, classes: Collection[int] = ()) -> list[Choice]:
    """Choose at most ``most`` images, the first of each class before the second of any.

    Within a class they are those that the audit's sample takes first: of the smallest keys. What is held does not grow
    with the lake.

    Args:
        lake: the lake.
        frame: says which maps count; a class is the one that a map explains.
        most: images.
        classes: only these; empty: all.
    """
    series = frame.series[frame.primary]
    condition = (pc.field("method") == series.method) & (pc.field("layer") == series.layer)
    if frame.settings.targets != "all":
        condition &= pc.field("is_predicted" if frame.settings.targets == "predicted" else "is_label")
    if classes:
        condition &= pc.field("target_class").isin(sorted(classes))
    best = _Best(most, frame.settings.seed)
    for batch in lake.maps.to_batches(columns=list(_COLUMNS), filter=condition):
        best.add(batch)
    found: dict[str, Choice] = {}
    for row in best.table.to_pylist():
        found.setdefault(row["image_id"], Choice(row["image_id"], row["unit_id"], row["target_class"]))
    return list(found.values())


def behind_findings(
    findings: Sequence[Finding], most: int, classes: Collection[int] = ()
) -> tuple[list[Choice], dict[str, list[Finding]]]:
    """Return the images behind findings, those of the worst first, and by image the findings that name it.

    Args:
        findings: the worst first.
        most: images.
        classes: only references to maps of these; empty: all.
    """
    chosen: dict[str, Choice] = {}
    named: dict[str, list[Finding]] = {}
    for finding in findings:
        for image in finding.images:
            if classes and image.target_class not in classes:
                continue
            if image.image_id not in chosen:
                if len(chosen) == most:
                    continue
                chosen[image.image_id] = Choice(image.image_id, image.unit_id, image.target_class)
            if finding not in named.setdefault(image.image_id, []):
                named[image.image_id].append(finding)
    return list(chosen.values()), named


class _Best:
    """The ``most`` rows that come first by (rank within the class, key).

    A row that is not among them never will be: more rows can only raise its rank, and lower the others' keys.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed = most, seed
        self._parts: list[pa.Table] = []
        self._waiting = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows with image, unit and class."""
        if not len(batch):
            return
        target = batch["target_class"].to_numpy().astype(np.int64)
        keys = mixed(keys_of(batch["image_id"].to_pylist(), self._seed), target)
        columns = [
            batch[name].cast(kind) for name, kind in zip(_COLUMNS, (pa.string(),) * 2 + (pa.int64(),), strict=True)
        ]
        self._parts.append(pa.table([*columns, pa.array(keys)], names=[*_COLUMNS, "key"]))
        self._waiting += len(batch)
        if self._waiting > max(self._most, 20_000):
            self._compact()

    @property
    def table(self) -> pa.Table:
        """The rows, the first of each class first."""
        self._compact()
        return self._parts[0] if self._parts else pa.table({name: [] for name in _COLUMNS})

    def _compact(self) -> None:
        if not self._parts:
            return
        table = pa.concat_tables(self._parts)
        target, keys = table["target_class"].to_numpy(), table["key"].to_numpy()
        order = np.lexsort((keys, _ranks(target, keys)))[: self._most]
        self._parts, self._waiting = [table.take(pa.array(order)).combine_chunks()], 0


def _ranks(target: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return how many rows of the same class have a smaller key."""
    order = np.lexsort((keys, target))
    starts = np.flatnonzero(np.diff(target[order], prepend=target[order[:1]] - 1))
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return found
