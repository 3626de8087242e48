"""What a source of images is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import schemas.job
from pipeline.sources.fields import Label
from schemas.unit import Unit


@dataclass(slots=True)
class Sample:
    """One image as the source holds it: encoded, with what is known of it.

    ``image_id`` is unique in the whole source and does not change between runs. ``data`` is None where the image
    could not be read; ``error`` then says why in one sentence, and ``status`` is that of the images table. ``uri`` with
    ``byte_offset`` and ``byte_size`` locate the encoded bytes for one ranged read; ``byte_offset`` is None where they
    are no contiguous range. ``label`` is a class index or a class name, as the source has it, or a tuple of those where
    the source has lists. ``attributes`` holds raw values by attribute name; conversion to the column's type is the
    writer's.
    """

    image_id: str
    uri: str
    data: bytes | None
    byte_offset: int | None = None
    byte_size: int | None = None
    label: Label | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    status: str = "read_error"


class Source(ABC):
    """A format of image collections, opened from the job file's ``source`` part."""

    def __init__(self, config: schemas.job.Source) -> None:
        self.config = config

    @abstractmethod
    def plan(self) -> Iterator[Unit]:
        """Yield the units in their fixed order, without reading images.

        Raises:
            InputError: nothing matches, or what matches is not of this format.
        """

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Sample]:
        """Stream the samples of a unit in their fixed order, never holding the shard whole.

        A sample that cannot be read is yielded with ``error``; the rest goes on where the format allows it.

        Raises:
            UnitError: the unit as a whole is damaged from here on; samples yielded before are good.
            CamlakeError: the store fails or refuses, or the file is not the one that was planned; the attempt fails as
                a whole, since a later one may succeed.
        """

    def around(self, unit: Unit, places: Sequence[int]) -> Iterator[Unit]:
        """Yield what is enough of a unit to read the samples at some places again, in the order of reading.

        Args:
            unit: of the plan.
            places: of samples, ascending, counted from 0 in the order of :meth:`read`.
        """
        yield unit


class UnitError(Exception):
    """A shard is damaged: what follows in it cannot be read. The message names the shard and the offset."""
