"""How far a mIoU may be chance: intervals over the images, and of the difference of two settings on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.pseudolabels.confusion import Pairs

_DRAWS, _SEED = 2000, 0
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class ImageCounts:
    """Of each image (n) and class (C): pixels that are right, that truly are the class, and that are labelled it."""

    hits: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]
    labelled: npt.NDArray[np.int64]

    @classmethod
    def of(cls, images: Sequence[Pairs]) -> ImageCounts:
        """Count from each image's pixels by (true id, labelled id)."""
        size = 1 + max((max(pair) for pairs in images for pair in pairs), default=0)
        hits, true, labelled = np.zeros((3, len(images), size), np.int64)
        for number, pairs in enumerate(images):
            for (row, column), count in pairs.items():
                true[number, row] += count
                labelled[number, column] += count
                hits[number, row] += count if row == column else 0
        return cls(hits, true, labelled)

    def save(self, path: Path) -> None:
        """Keep the counts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, hits=self.hits, true=self.true, labelled=self.labelled)

    @classmethod
    def load(cls, path: Path) -> ImageCounts:
        """Return counts that were kept."""
        with np.load(path) as archive:
            return cls(archive["hits"], archive["true"], archive["labelled"])

    def resampled(self) -> npt.NDArray[np.float64]:
        """Return the mIoU of each of 2000 sets of as many images, drawn with replacement; the same sets every time."""
        images = len(self.hits)
        generator = np.random.default_rng(_SEED)
        times = generator.multinomial(images, np.full(images, 1 / images), size=_DRAWS)
        hits, true, labelled = (times @ counts for counts in (self.hits, self.true, self.labelled))
        union = true + labelled - hits
        return np.asarray(np.nanmean(np.where(union > 0, hits / np.maximum(union, 1), np.nan), axis=1))


def interval(counts: ImageCounts) -> tuple[float, float]:
    """Return the 95% interval of a mIoU (percentiles of the bootstrap over images)."""
    low, high = np.percentile(counts.resampled(), _LEVELS)
    return float(low), float(high)


def difference(more: ImageCounts, less: ImageCounts) -> tuple[float, float]:
    """Return the 95% interval of ``more``'s mIoU less that of ``less``, on the same images in the same order."""
    if not np.array_equal(more.true.sum(1), less.true.sum(1)):
        raise ValueError("the two are not of the same images")
    low, high = np.percentile(more.resampled() - less.resampled(), _LEVELS)
    return float(low), float(high)
