"""All that an audit keeps of the maps it has seen; states of several parts are added, in any order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.audit.archives import Arrays, archive, unarchived
from pipeline.audit.cells import Cells
from pipeline.audit.frame import Frame
from pipeline.audit.reading import CellReader
from pipeline.audit.sample import Sample
from pipeline.audit.stored import StoredCells
from schemas.audit import MEASURES, PROPERTIES, Measure

#: Agreement of two methods on one image and class.
AGREEMENT = (Measure("correlation", -1, 1, False, "Pearson correlation of two methods' canonical maps"),)

_COUNTS = ("units", "images", "maps", "counted", "regions")


def measures_of(frame: Frame) -> dict[str, tuple[tuple[Measure, ...], int]]:
    """Return measures and resamples of the sums of a state, by their names."""
    return {"maps": (MEASURES, frame.settings.bootstrap), "images": (PROPERTIES, 0), "agreement": (AGREEMENT, 0)}


class Gathered:
    """What is known of the maps that were seen, for reading.

    Attributes:
        frame: of the audit.
        maps: sums of :data:`~schemas.audit.MEASURES` and of the maps, per series.
        images: sums of :data:`~schemas.audit.PROPERTIES` per label; series 0.
        agreement: correlation of two series; series ``first * number + second``.
        sample: maps of the primary series.
        digests: the first 64 bits of images' SHA-256, those below the frame's limit.
        counts: units, images, maps in the lake, counted maps of all series, maps with a region.
    """

    maps: CellReader
    images: CellReader
    agreement: CellReader

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.sample = Sample(frame.sample_per_class, frame.settings.groups)
        self._digests: list[npt.NDArray[np.uint64]] = []
        self.counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """All digests, sorted."""
        joined = np.sort(np.concatenate([np.empty(0, np.uint64), *self._digests]))
        self._digests = [joined]
        return joined

    def add_small(self, arrays: Arrays) -> None:
        """Add what of a part's arrays is no sum by cell."""
        self.sample.load(arrays["sample"].tobytes())
        self._digests.append(arrays["digests"])
        for name, count in zip(_COUNTS, arrays["counts"].tolist(), strict=True):
            self.counts[name] += count


class State(Gathered):
    """What is seen, as it grows."""

    maps: Cells
    images: Cells
    agreement: Cells

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self._cells = {name: Cells(*given) for name, given in measures_of(frame).items()}
        self.maps, self.images, self.agreement = (self._cells[name] for name in ("maps", "images", "agreement"))

    def add_digests(self, digests: npt.NDArray[np.uint64]) -> None:
        """Add digests; those above the frame's limit are left out."""
        self._digests.append(digests[digests <= np.uint64(self.frame.digest_limit)])

    def merge(self, other: State) -> None:
        """Add another part's state."""
        for name, cells in self._cells.items():
            cells.merge(other._cells[name])
        self.sample.merge(other.sample)
        self._digests.append(other.digests)
        for name, count in other.counts.items():
            self.counts[name] += count

    def to_bytes(self) -> bytes:
        """Return the state as bytes: an ``.npz`` archive without pickles."""
        arrays: Arrays = {}
        for name, cells in self._cells.items():
            arrays |= cells.arrays(name)
        arrays["digests"] = self.digests
        arrays["counts"] = np.array([self.counts[name] for name in _COUNTS], np.int64)
        arrays["sample"] = np.frombuffer(self.sample.to_bytes(), np.uint8)
        return archive(arrays)

    def add_bytes(self, data: bytes) -> None:
        """Add what :meth:`to_bytes` returned."""
        arrays = unarchived(data)
        for name, cells in self._cells.items():
            cells.load(name, arrays)
        self.add_small(arrays)


class Merged(Gathered):
    """What all parts have seen, their sums in files of this process: of many classes and groups they are large."""

    maps: StoredCells
    images: StoredCells
    agreement: StoredCells

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self._cells = {name: StoredCells(*given) for name, given in measures_of(frame).items()}
        self.maps, self.images, self.agreement = (self._cells[name] for name in ("maps", "images", "agreement"))

    def add_bytes(self, data: bytes) -> None:
        """Add what :meth:`State.to_bytes` returned."""
        arrays = unarchived(data)
        for name, stored in self._cells.items():
            cells = Cells(stored.measures, stored.resamples)
            cells.load(name, arrays)
            stored.add(cells)
        self.add_small(arrays)

    def finish(self) -> None:
        """Everything is added, and can be read from now on."""
        for stored in self._cells.values():
            stored.finish()
