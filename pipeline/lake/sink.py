"""What the engine hands over when a unit is done, and what takes it."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.documents import Commit, Manifest
from schemas.job import Output
from schemas.tables import EFFORT, MAPS, STATISTICS

#: Columns of the maps table that come from :class:`MapTargets`.
TARGET_COLUMNS = MAPS.names[MAPS.names.index("target_class") : MAPS.names.index("vmax")]


def new_attempt() -> str:
    """Return an attempt id that no other attempt has: 12 hexadecimal digits."""
    return uuid.uuid4().hex[:12]


@dataclass(frozen=True)
class MapTargets:
    """The (image, class) pairs that are explained, T of them; shared by the map sets of all methods and layers.

    ``image_index`` (T,) int64 is the position in :attr:`UnitResult.images`. The rest are the columns of
    :data:`schemas.tables.MAPS` of the same name: ``target_class`` (T,) int32, ``target_rank`` (T,) int32,
    ``is_predicted`` (T,) bool, ``logit`` and ``probability`` (T,) float32; ``target_name``, ``target_kind`` and
    ``is_label`` are sequences of T, where names and ``is_label`` may be None.
    """

    image_index: npt.NDArray[np.int64]
    target_class: npt.NDArray[np.integer[Any]]
    target_name: Sequence[str | None]
    target_kind: Sequence[str]
    target_rank: npt.NDArray[np.integer[Any]]
    is_label: Sequence[bool | None]
    is_predicted: npt.NDArray[np.bool_]
    logit: npt.NDArray[np.floating[Any]]
    probability: npt.NDArray[np.floating[Any]]

    def __len__(self) -> int:
        return len(self.image_index)


@dataclass(frozen=True)
class MapSet:
    """The raw maps (T, h, w) float32 of one method and layer, one per target, with their statistics.

    ``method`` is :attr:`schemas.documents.MethodInfo.key`. ``statistics`` holds the columns
    :data:`schemas.tables.STATISTICS`, each (T,), NaN where undefined, computed from ``maps`` as they are here.
    ``effort`` holds those of :data:`schemas.tables.EFFORT` that the method has, each (T,), NaN where undefined.
    """

    method: str
    layer: str
    signed: bool
    targets: MapTargets
    maps: npt.NDArray[np.float32]
    statistics: Mapping[str, npt.NDArray[Any]]
    effort: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, count = f"maps of '{self.method}' at '{self.layer}'", len(self.targets)
        if self.maps.ndim != 3 or len(self.maps) != count:
            raise ValueError(f"{name} have shape {self.maps.shape}, but there are {count} targets")
        if set(self.statistics) != set(STATISTICS):
            wrong = sorted(set(self.statistics) ^ set(STATISTICS))
            raise ValueError(f"statistics of the {name} lack or add the columns {', '.join(wrong)}")
        unknown = sorted(set(self.effort) - set(EFFORT))
        if unknown:
            raise ValueError(f"effort of the {name} has the unknown column '{unknown[0]}'")
        columns = {column: getattr(self.targets, column) for column in TARGET_COLUMNS}
        columns |= dict(self.statistics) | dict(self.effort)
        for column, values in columns.items():
            if len(values) != count:
                raise ValueError(f"column '{column}' of the {name} has {len(values)} values, not {count}")


@dataclass(frozen=True)
class UnitResult:
    """Everything that one attempt at a unit produced.

    ``images`` are rows of the images table (:data:`schemas.tables.IMAGES` without ``unit_id``, plus the raw values of
    the attributes), one per image of the unit in its order, the failed ones too; a column that is not given is null.
    ``seconds`` is wall time by stage: read, decode, wait, compute, total (the sink adds ``write``). ``compute`` are the
    sizes that it was computed with, as the commit records them.
    """

    unit_id: str
    attempt: str
    worker: str
    images: Sequence[Mapping[str, Any]]
    map_sets: Sequence[MapSet]
    seconds: Mapping[str, float] = field(default_factory=dict)
    compute: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """The unit's result as it stands: its winning commit, and whether it is the one that was just written."""

    commit: Commit
    ours: bool


class Sink(ABC):
    """Takes the results of units. One per worker; calls may come from any one thread at a time.

    Results arrive at least once: a unit may be written by two workers at the same time, or again after its reply was
    lost, and exactly one result must stand.
    """

    @abstractmethod
    def __init__(self, output: Output, manifest: Manifest) -> None:
        """Open the place that ``output`` names, which holds the run of ``manifest``."""

    @abstractmethod
    def write(self, result: UnitResult) -> Written:
        """Write a unit's result unless it has one: the first wins, and a repeated call changes nothing.

        Raises:
            schemas.errors.LakeError: the store failed; the attempt can be made again, under a new id.
            schemas.errors.AccessError: the store cannot be used at all; another attempt would not help.
        """
