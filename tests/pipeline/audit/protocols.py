"""Localisation as others measure it, written from their definitions with OpenCV and loops.

wsolevaluation (Choe et al., CVPR 2020) is on no package index, and Quantus (Hedstroem et al., JMLR 2023) brings many
packages along; what they compute is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SIDE = 224


# wsolevaluation ------------------------------------------------------------------------------------------------------


class Protocol(NamedTuple):
    """The switches in which wsolevaluation and camlake differ; the defaults are wsolevaluation's.

    ``cubic``: maps are enlarged bicubically, not bilinearly. ``steps``: thresholds, k / steps of the largest of 256
    grey levels, exclusive; 0: camlake's hundred, inclusive, of the scores themselves. ``holes``: contours of holes make
    boxes, and the largest part is that of the largest area within its contour. ``lattice``: pixel i is the point i and
    1 is added to each length, boxes end a pixel later (but for the last pixel), and an object's edges are cut to
    integers.
    """

    cubic: bool = True
    steps: int = 1000
    holes: bool = True
    lattice: bool = True


WSOLEVALUATION = Protocol()
CAMLAKE = Protocol(cubic=False, steps=0, holes=False, lattice=False)


def score_map(stored: npt.NDArray[Any], protocol: Protocol = WSOLEVALUATION) -> Floats:
    """A map (h, w) enlarged to (SIDE, SIDE), least 0 and most 1; zeros where it is constant or not finite."""
    way = cv2.INTER_CUBIC if protocol.cubic else cv2.INTER_LINEAR
    large = np.asarray(cv2.resize(stored.astype(np.float64), (SIDE, SIDE), interpolation=way), np.float64)
    if np.isnan(large).any() or large.min() == large.max():
        return np.zeros_like(large)
    large = large - large.min()
    return np.asarray(large / large.max(), np.float64)


def above(score: Floats, step: int, protocol: Protocol) -> tuple[int, Mask]:
    """The pixels above one of the thresholds, and what it cuts at: the same cut, the same pixels."""
    if not protocol.steps:
        return step, np.floor(score * 100) >= step + 1
    grey = (score * 255).astype(np.uint8)
    cut = int(step / protocol.steps * int(grey.max()))
    return cut, grey > cut


def parts(mask: Mask, protocol: Protocol) -> list[tuple[float, tuple[int, int, int, int]]]:
    """Size and box (x0, y0, x1, y1; edges) of each part of a mask."""
    picture = mask.astype(np.uint8)
    if protocol.holes:
        contours, _ = cv2.findContours(picture, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        found = [(float(cv2.contourArea(each)), cv2.boundingRect(each)) for each in contours]
    else:
        _, _, stats, _ = cv2.connectedComponentsWithStats(picture, connectivity=8)
        found = [(float(size), (x, y, w, h)) for x, y, w, h, size in stats[1:].tolist()]
    return [(size, (x, y, x + w, y + h)) for size, (x, y, w, h) in found]


def overlap(box: Sequence[float], truth: Sequence[float], protocol: Protocol) -> float:
    """Intersection over union of a part's box (edges) and an object's."""
    more = 0
    if protocol.lattice:
        box = [box[0], box[1], min(box[2], SIDE - 1), min(box[3], SIDE - 1)]
        truth, more = [int(edge) for edge in truth], 1
    width = min(box[2], truth[2]) - max(box[0], truth[0]) + more
    height = min(box[3], truth[3]) - max(box[1], truth[1]) + more
    shared = max(0.0, width) * max(0.0, height)
    areas = [(each[2] - each[0] + more) * (each[3] - each[1] + more) for each in (box, truth)]
    return shared / (sum(areas) - shared)


def box_accuracies(
    maps: npt.NDArray[Any], truths: Sequence[Floats], protocol: Protocol = WSOLEVALUATION
) -> dict[str, float]:
    """MaxBoxAcc and MaxBoxAccV2 of maps (T, h, w) whose objects' boxes (n, 4) are in pixels of (SIDE, SIDE).

    In MaxBoxAccV2 each overlap has a threshold of its own; ``one_threshold`` is the same with one for all.
    """
    tried = protocol.steps or 100
    best, largest = np.zeros((3, tried)), np.zeros(tried)
    for stored, truth in zip(maps, truths, strict=True):
        score = score_map(stored, protocol)
        ious: dict[int, tuple[float, float]] = {}  # cut -> of any part, of the largest
        for step in range(tried):
            cut, mask = above(score, step, protocol)
            if cut not in ious:
                # Where there is no part, the box is one pixel at the origin.
                found = parts(mask, protocol) or [(0.0, (0, 0, 0, 0))]
                of = [(size, max(overlap(box, each, protocol) for each in truth.tolist())) for size, box in found]
                ious[cut] = max(iou for _, iou in of), max(of, key=lambda part: part[0])[1]
            best[:, step] += ious[cut][0] >= np.array([0.3, 0.5, 0.7])
            largest[step] += ious[cut][1] >= 0.5
    v2 = best.max(1) / len(maps)
    named = {f"max_box_acc_v2_{name}": float(value) for name, value in zip((30, 50, 70), v2, strict=True)}
    one = float(best.mean(0).max() / len(maps))
    first = {"max_box_acc": float(largest.max() / len(maps)), "max_box_acc_v2": float(v2.mean()), "one_threshold": one}
    return first | named


# Quantus -------------------------------------------------------------------------------------------------------------


def pointing_game(attribution: Floats, region: Mask) -> float:
    """1 where any of the pixels of the largest attribution lies in the region; NaN where the region is empty."""
    if not region.any():
        return float("nan")
    return float(any(region[place] for place in zip(*np.nonzero(attribution == attribution.max()), strict=True)))


def relevance_mass_accuracy(attribution: Floats, region: Mask) -> float:
    """Attribution in the region over attribution (Arras et al., Information Fusion 2022)."""
    return float(attribution[region].sum() / attribution.sum())


def relevance_rank_accuracy(attribution: Floats, region: Mask) -> float:
    """Share of the K pixels of largest attribution that lie in the region of K pixels (ibid.)."""
    wanted = int(region.sum())
    highest = np.argsort(attribution, axis=None, kind="stable")[::-1][:wanted]
    return float(region.ravel()[highest].sum() / wanted)
