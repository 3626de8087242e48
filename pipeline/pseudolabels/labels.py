"""The labels of one image, as whoever makes them hands them to whoever writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ClassScore:
    """A class that an image is known, or said, to have."""

    label_id: int
    label_name: str
    #: Why it is one of the image's classes: label, threshold, ...; see the maps table's ``target_kind``.
    kind: str
    #: The model's probability of it (the largest, where it is made of several of the model's classes).
    probability: float


@dataclass(frozen=True)
class ImageLabels:
    """What is known of an image's pixels, at the image's own resolution (H, W).

    ``image_index`` is its position in the unit's rows of the images table. ``index`` (H, W) uint8 or uint16 holds 0 for
    the background, a class's id, or the ignore value (255, 65535). ``classes`` (K) are those that could be given.
    ``scores`` (K + 1, H, W) float32 in [0, 1] are the background's and the classes' after refinement, in the order
    [background, *classes]; None where no file needs them. ``confidence`` (H, W) float32 is the winning score.
    """

    image_index: int
    index: npt.NDArray[np.unsignedinteger[Any]]
    classes: tuple[ClassScore, ...]
    confidence: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32] | None = None
