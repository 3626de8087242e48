"""All that an audit keeps of the maps it has seen; states of several parts are added, in any order."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.cells import Cells
from pipeline.audit.frame import Frame
from pipeline.audit.sample import Sample
from schemas.audit import MEASURES, PROPERTIES, Measure

#: Agreement of two methods on one image and class.
AGREEMENT = (Measure("correlation", -1, 1, False, "Pearson correlation of two methods' canonical maps"),)

#: The oldest that a zip archive can hold.
_TIME = (1980, 1, 1, 0, 0, 0)
_COUNTS = ("units", "images", "maps", "counted", "regions")


class State:
    """Sums, sample and digests.

    Attributes:
        maps: sums of :data:`~schemas.audit.MEASURES` and of the maps, per series.
        images: sums of :data:`~schemas.audit.PROPERTIES` per label; series 0.
        agreement: correlation of two series; series ``first * number + second``.
        sample: maps of the primary series.
        digests: the first 64 bits of images' SHA-256, those below the frame's limit.
        counts: units, images, maps in the lake, counted maps of all series, maps with a region.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.maps = Cells(MEASURES, frame.settings.bootstrap)
        self.images = Cells(PROPERTIES, 0)
        self.agreement = Cells(AGREEMENT, 0)
        self.sample = Sample(frame.sample_per_class, frame.settings.groups)
        self._digests: list[npt.NDArray[np.uint64]] = []
        self.counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """All digests, sorted."""
        joined = np.sort(np.concatenate([np.empty(0, np.uint64), *self._digests]))
        self._digests = [joined]
        return joined

    def add_digests(self, digests: npt.NDArray[np.uint64]) -> None:
        """Add digests; those above the frame's limit are left out."""
        self._digests.append(digests[digests <= np.uint64(self.frame.digest_limit)])

    def merge(self, other: State) -> None:
        """Add another part's state."""
        self.maps.merge(other.maps)
        self.images.merge(other.images)
        self.agreement.merge(other.agreement)
        self.sample.merge(other.sample)
        self._digests.append(other.digests)
        for name, count in other.counts.items():
            self.counts[name] += count

    def to_bytes(self) -> bytes:
        """Return the state as bytes: an ``.npz`` archive without pickles."""
        arrays: dict[str, npt.NDArray[Any]] = {
            **self.maps.arrays("maps"),
            **self.images.arrays("images"),
            **self.agreement.arrays("agreement"),
            "digests": self.digests,
            "counts": np.array([self.counts[name] for name in _COUNTS], np.int64),
            "sample": np.frombuffer(self.sample.to_bytes(), np.uint8),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compresslevel=1) as archive:
            for name, values in arrays.items():
                # The sample is compressed already. A fixed time, so that the same sums are the same bytes.
                member = zipfile.ZipInfo(f"{name}.npy", _TIME)
                member.compress_type = zipfile.ZIP_STORED if name == "sample" else zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
        return buffer.getvalue()

    def add_bytes(self, data: bytes) -> None:
        """Add what :meth:`to_bytes` returned."""
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = dict(stored)
        self.maps.load("maps", arrays)
        self.images.load("images", arrays)
        self.agreement.load("agreement", arrays)
        self.sample.load(arrays["sample"].tobytes())
        self._digests.append(arrays["digests"])
        for name, count in zip(_COUNTS, arrays["counts"].tolist(), strict=True):
            self.counts[name] += count
