"""How much of a map lies on the object: energy, enrichment, pointing game, rank accuracy and skill.

Maps are compared with regions on PIXELS x PIXELS equal parts of the view, to which they are enlarged bilinearly with
half-pixel centres, as they are when they are shown. Negative parts are cut before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.audit.fixed import Integers
from pipeline.audit.regions.base import PIXELS, Mask

Floats = npt.NDArray[np.float64]

#: The measures of :func:`localise`, named as in ``schemas.audit.MEASURES``.
NAMES = ("energy", "area", "enrichment", "pointing", "rank_accuracy", "skill")

#: Standard deviation of the centred Gaussian that ``skill`` compares with, in sides of the view (both ways).
PRIOR_SIGMA = 0.25

#: Maps that are held enlarged at a time.
_CHUNK = 32
#: Bins among which the K-th largest pixel is looked for.
_STEPS = 1023


def localise(maps: npt.NDArray[np.floating[Any]], masks: Sequence[Mask | None]) -> dict[str, Floats]:
    """Return the regional measures of maps by name (:data:`NAMES`), each (T,) float64.

    With M the enlarged positive part of a map and R the region:

    - ``energy``: sum of M in R over the sum of M (energy-based pointing game, Wang et al., CVPR workshops 2020).
    - ``area``: share of the view in R; ``enrichment``: energy / area.
    - ``pointing``: 1 where the largest cell's centre lies in R (Zhang et al., ECCV 2016), else 0. The cell is that of
      the stored map, the first in reading order of equals. NaN where all cells are equal.
    - ``rank_accuracy``: share of the K strongest pixels of M that lie in R, K the pixels of R (Arras et al.,
      Information Fusion 2022). Pixels as strong as the K-th count by their share, the mean over all orders of them.
    - ``skill``: (energy - prior) / (1 - prior), the prior the energy of a centred Gaussian (:data:`PRIOR_SIGMA`). NaN
      where R is the whole view.

    All are NaN where there is no region in the view, and all but ``area`` where a map is not finite or has no mass.

    Args:
        maps: (T, h, w), of any scale.
        masks: T regions (PIXELS, PIXELS) bool, or None.

    Returns:
        Nothing at all where no map has a region.
    """
    if all(mask is None for mask in masks):
        return {}
    found = {name: np.full(len(maps), np.nan) for name in NAMES}
    having = [(row, mask) for row, mask in enumerate(masks) if mask is not None and mask.any()]
    for start in range(0, len(having), _CHUNK):
        part = having[start : start + _CHUNK]
        rows = [row for row, _ in part]
        for name, values in _measured(maps[rows], np.stack([mask for _, mask in part])).items():
            found[name][rows] = values
    return found


def localise_prior(masks: Sequence[Mask]) -> dict[str, Floats]:
    """Return what :func:`localise` returns for the prior in place of each map; no region may be empty."""
    order, above, below = _prior_order()
    found = {name: np.empty(len(masks)) for name in NAMES}
    for row, mask in enumerate(masks):
        ranked = mask.ravel()[order]
        wanted = int(np.count_nonzero(ranked))
        area = wanted / PIXELS**2
        energy = float(bell() @ mask.astype(np.float64) @ bell()) / float(bell().sum()) ** 2
        first, last = int(above[wanted - 1]), int(below[wanted - 1])  # of the pixels as strong as the K-th
        level = int(np.count_nonzero(ranked[first:last]))
        hits = int(np.count_nonzero(ranked[:first])) + (wanted - first) * level / (last - first)
        found["area"][row], found["energy"][row], found["enrichment"][row] = area, energy, energy / area
        found["pointing"][row] = mask[PIXELS // 2 - 1, PIXELS // 2 - 1]
        found["rank_accuracy"][row] = hits / wanted
        found["skill"][row] = 0.0 if area < 1 else np.nan
    return found


@cache
def _prior_order() -> tuple[Integers, Integers, Integers]:
    """Return pixels by falling prior, and for each place in the order where its equals begin and end."""
    values = np.outer(bell(), bell()).astype(np.float32).ravel()
    order = np.argsort(-values, kind="stable")
    ascending = values[order][::-1]
    begin, end = (len(values) - np.searchsorted(ascending, ascending, side) for side in ("right", "left"))
    return order, begin[::-1], end[::-1]


@cache
def taps(cells: int, pixels: int = PIXELS) -> Floats:
    """Return (pixels, cells): the weight of each cell's value in each pixel of an enlarged row.

    The same as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` along one axis.
    """
    position = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    lower = np.minimum(np.floor(position).astype(np.int64), max(cells - 2, 0))
    weights = np.zeros((pixels, cells))
    weights[np.arange(pixels), lower] = 1 - (position - lower)
    if cells > 1:
        weights[np.arange(pixels), lower + 1] = position - lower
    weights.setflags(write=False)
    return weights


def enlarge(maps: Floats, pixels: int = PIXELS) -> Floats:
    """Return maps (T, h, w) enlarged to (T, pixels, pixels), float64."""
    return taps(maps.shape[1], pixels) @ maps @ taps(maps.shape[2], pixels).T


@cache
def bell(pixels: int = PIXELS) -> Floats:
    """Return the prior's profile (pixels,) along one axis, at most 1."""
    centres = (np.arange(pixels) + 0.5) / pixels
    found: Floats = np.exp(-0.5 * ((centres - 0.5) / PRIOR_SIGMA) ** 2)
    found.setflags(write=False)
    return found


def _measured(maps: npt.NDArray[np.floating[Any]], regions: npt.NDArray[np.bool_]) -> dict[str, Floats]:
    """Return the measures of maps (n, h, w) with regions (n, PIXELS, PIXELS), none empty."""
    count, height, width = maps.shape
    positive = np.maximum(maps.astype(np.float64), 0)
    peak = positive.reshape(count, -1).max(1)
    defined = np.isfinite(peak) & (peak > 0)
    # A map is as good at any scale, and raw ones may be too small for float32.
    positive = np.where(defined[:, None, None], positive, 1.0) / np.where(defined, peak, 1.0)[:, None, None]

    # What a region holds of an enlarged map is linear in the map, so the region is brought to the cells instead.
    # Products of stacks are taken map by map: what else is in the batch must not matter, not even for the last bit.
    tall = np.column_stack([taps(height), bell()])
    wide = np.column_stack([taps(width), bell()])
    folded = tall.T @ (regions.astype(np.float64) @ wide)
    whole = np.outer(taps(height).sum(0), taps(width).sum(0))
    inside = (positive * folded[:, :height, :width]).reshape(count, -1).sum(1)
    energy = inside / (positive * whole).reshape(count, -1).sum(1)
    prior = folded[:, height, width] / bell().sum() ** 2

    pixels = np.count_nonzero(regions, axis=(1, 2))
    area = pixels / PIXELS**2
    y, x = np.divmod(positive.reshape(count, -1).argmax(1), width)
    pointing = regions[np.arange(count), _pixel(y, height), _pixel(x, width)].astype(np.float64)
    flat = (positive == positive[:, :1, :1]).all((1, 2)) & (height * width > 1)
    partial = area < 1
    skill = np.where(partial, (energy - prior) / np.where(partial, 1 - prior, 1.0), np.nan)
    found = {
        "energy": energy,
        "enrichment": energy / area,
        "pointing": np.where(flat, np.nan, pointing),
        "rank_accuracy": _rank_accuracy(enlarge(positive).astype(np.float32), regions, pixels),
        "skill": skill,
    }
    return {"area": area} | {name: np.where(defined, values, np.nan) for name, values in found.items()}


def _pixel(cell: npt.NDArray[np.int64], cells: int) -> npt.NDArray[np.int64]:
    """Return the pixel in which a cell's centre lies; on an edge the one after it."""
    return (2 * cell + 1) * PIXELS // (2 * cells)


def _largest(values: npt.NDArray[np.float32], wanted: int) -> np.float32:
    """Return the ``wanted``-th largest of values in [0, 1]."""
    # The histogram leaves few among which to look, which is half the time of np.partition over all.
    steps = (values * np.float32(_STEPS)).astype(np.intp)
    reached = np.cumsum(np.bincount(steps, minlength=_STEPS + 1)[::-1])
    place = int(np.searchsorted(reached, wanted))
    among = values[steps == _STEPS - place]
    rank = len(among) - wanted + (int(reached[place - 1]) if place else 0)
    return np.float32(np.partition(among, rank)[rank])


def _rank_accuracy(
    enlarged: npt.NDArray[np.float32], regions: npt.NDArray[np.bool_], pixels: npt.NDArray[np.int64]
) -> Floats:
    """Return the share (n,) of the strongest pixels inside; maps (n, PIXELS, PIXELS) in [0, 1]."""
    # Single precision makes pixels equal that differ by the rounding of the enlargement only.
    found = np.empty(len(enlarged))
    # Each map has another K, so this cannot be one call for all.
    for row, (values, region, wanted) in enumerate(zip(enlarged, regions, pixels.tolist(), strict=True)):
        least = _largest(values.ravel(), wanted)
        above, level = values > least, values == least
        taken, equal = int(np.count_nonzero(above)), int(np.count_nonzero(level))
        hits = int(np.count_nonzero(above & region))
        found[row] = (hits + (wanted - taken) * int(np.count_nonzero(level & region)) / equal) / wanted
    return found
