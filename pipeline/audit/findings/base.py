"""What a kind of finding is, and what it draws on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.audit.cells import Cell
from pipeline.audit.frame import Frame
from pipeline.audit.freed import give_back
from pipeline.audit.parts import Parts, find_parts
from pipeline.audit.state import Gathered
from pipeline.lake import Lake
from pipeline.lake.originals import Originals
from schemas.audit import Finding, ImageRef


@dataclass(frozen=True)
class Evidence:
    """All that findings draw on.

    ``sample`` is the state's sample as a table (:data:`pipeline.audit.sample.SAMPLE`). ``lake`` is for looking up what
    a few findings need of single images (never for a pass over everything). ``source_options`` are those of the images'
    file system; empty: the lake's, where both are of one kind.
    """

    frame: Frame
    state: Gathered
    lake: Lake
    sample: pa.Table
    source_options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def originals(self) -> Originals:
        """The encoded images."""
        return Originals(self.lake, self.source_options)

    def cell(self, target_class: int | None = None, attribute: str = "", value: str = "") -> Cell | None:
        """Return the sums of the audit's method over all outcomes; of one class (None: all) and group."""
        return self.state.maps.collect(self.frame.primary, target_class, attribute, value)

    @property
    def classes(self) -> list[int]:
        """Classes that have maps, ascending."""
        return self.state.maps.classes(self.frame.primary)

    @cached_property
    def parts(self) -> Parts:
        """What the sample's maps are made of, learnt once for all who ask.

        Raises:
            InputError: scikit-learn is not installed.
        """
        found = find_parts(self.sample, self.frame.settings.parts, self.frame.settings.seed)
        give_back()
        return found


class FindingKind(ABC):
    """Finds statements of one kind. Register the module in ``schemas.registries.FINDINGS``; it defines ``KIND``."""

    name: ClassVar[str]

    @abstractmethod
    def find(self, evidence: Evidence) -> list[Finding]:
        """Return the findings of this kind, in any order, each above the settings' thresholds."""


def severity(strength: float, weight: float) -> float:
    """Return a severity in [0, 100] that is comparable between kinds.

    Args:
        strength: of the effect, [0, 1]: 1 is as strong as it can reasonably be.
        weight: how much the kind matters to who trains or buys the model, [0, 1]: shortcuts that were checked 1, group
            differences 0.8, attention off the object 0.7, suspects among labels 0.5, degenerate maps, duplicates 0.4.
    """
    return 100.0 * min(1.0, max(0.0, strength)) * weight


def image_refs(rows: pa.Table, note: str = "", most: int = 24) -> tuple[ImageRef, ...]:
    """Return rows of the sample as references, in their order."""
    return tuple(
        ImageRef(
            image_id=row["image_id"],
            unit_id=row["unit_id"],
            target_class=row["target_class"],
            store_path=row["store_path"],
            store_row=row["store_row"],
            note=note,
        )
        for row in rows.slice(0, most)
        .select(["image_id", "unit_id", "target_class", "store_path", "store_row"])
        .to_pylist()
    )
