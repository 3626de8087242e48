"""Do two lakes look in other places? The mean maps of a class, with what chance alone would make of their distance."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.cells import Cell
from pipeline.audit.findings.location import MapSums, cell_d, elsewhere
from pipeline.audit.findings.samples import densities
from pipeline.audit.fixed import fixed, floating
from pipeline.lake import Lake
from schemas.audit import GRID, Settings
from schemas.errors import InputError

Floats = npt.NDArray[np.float64]

_CELLS = GRID * GRID
_PERMUTATIONS = 499
#: Permutations beyond the observed distance from which their share is taken as it is.
_COUNTED = 10
#: Fractional bits of a density: sums of products with 0 and 1 are whole numbers below 2^53, so their order is free.
_BITS = 20


@dataclass(frozen=True)
class Prior:
    """The mean maps of one class in both lakes.

    Attributes:
        n: maps with mass, of A and B.
        mean: (2, GRID * GRID) mean densities, mean 1.
        distance: share of the mass that the mean maps do not have in the same place (total variation), [0, 1].
        cell: where the maps differ most; ``d`` is the standardised difference there, B - A.
        sampled: maps of the sample, of A and B.
        sample_distance: the distance of the sample's mean maps.
        chance: mean distance where it is by chance which map is whose; NaN below ``interval_from`` maps.
        p: of a distance as large as the sample's by chance; NaN below ``flagged_from`` maps.
        matched: images of the sample that both lakes hold (see :func:`identities`).
        correlation: mean Pearson correlation of their two maps; NaN below ``suppressed_below`` images.
    """

    n: tuple[int, int]
    mean: Floats
    distance: float
    cell: int
    d: float
    sampled: tuple[int, int]
    sample_distance: float
    chance: float
    p: float
    matched: int
    correlation: float

    @property
    def excess(self) -> float:
        """Distance of the sample's mean maps beyond what chance makes."""
        return self.sample_distance - self.chance


def identities(lake: Lake, sample: pa.Table) -> list[bytes | str]:
    """Return what each row's image is known by: its SHA-256, or its id where the lake lacks that.

    Raises:
        LakeError: the images table is damaged.
    """
    ids = sample["image_id"].to_pylist()
    condition = pc.field("image_id").isin(pa.array(sorted(set(ids)), pa.string()))
    found = lake.images.to_table(columns=["image_id", "sha256"], filter=condition)
    digest = dict(zip(found["image_id"].to_pylist(), found["sha256"].to_pylist(), strict=True))
    return [digest.get(each) or each for each in ids]


@dataclass(frozen=True)
class Side:
    """The sample of one lake, in the order of its classes, and the identities of its rows."""

    table: pa.Table
    known_by: Sequence[bytes | str]

    def of(self, target: int) -> tuple[Floats, Sequence[bytes | str]]:
        """Return maps and identities of one class, in the sample's order."""
        classes = self.table["target_class"].to_numpy()
        start, stop = np.searchsorted(classes, [target, target + 1]).tolist()
        return densities(self.table.slice(start, stop - start)), self.known_by[start:stop]


def prior_drift(
    cells: tuple[Sequence[Cell], Sequence[Cell]],
    samples: tuple[tuple[Floats, Sequence[Any]], tuple[Floats, Sequence[Any]]],
    seed: int,
    settings: Settings,
    independent: float = 1.0,
) -> Prior:
    """Compare the location priors of one class.

    Args:
        cells: sums of A and B.
        samples: maps (T, GRID * GRID) and identities of A's and B's sample.
        seed: of the permutations.
        settings: whose thresholds count.
        independent: effective clusters over maps; where rows depend on each other, chance makes larger distances.
    """
    a, b = (MapSums.of([each]) for each in cells)
    n = int(a.count[0, 0]), int(b.count[0, 0])
    apart = cell_d(b, a)[0]
    cell = int(np.argmax(np.abs(np.nan_to_num(apart))))
    (maps_a, ids_a), (maps_b, ids_b) = samples
    pairs = matches(ids_a, ids_b)
    few = min(*n, len(maps_a), len(maps_b))
    sample_distance = chance = p = float("nan")
    if few >= settings.interval_from:
        sample_distance, by_chance = _permuted(maps_a, maps_b, pairs, seed)
        by_chance = by_chance / np.sqrt(independent)
        chance = float(by_chance.mean())
        if few >= settings.flagged_from:
            p = _tail(sample_distance, by_chance)
    return Prior(
        n,
        np.stack([a.mean[0], b.mean[0]]),
        float(elsewhere(b, a)[0]),
        cell,
        float(apart[cell]),
        (len(maps_a), len(maps_b)),
        sample_distance,
        chance,
        p,
        len(pairs),
        _correlation(maps_a[pairs[:, 0]], maps_b[pairs[:, 1]], settings.suppressed_below),
    )


def matches(a: Sequence[Any], b: Sequence[Any]) -> npt.NDArray[np.intp]:
    """Return (P, 2): rows of A and B of the same identity, each row once; of repeated ones the first with the first."""
    places: dict[Any, list[int]] = defaultdict(list)
    for row in range(len(a) - 1, -1, -1):
        places[a[row]].append(row)
    found = [(places[each].pop(), row) for row, each in enumerate(b) if places.get(each)]
    return np.array(found, np.intp).reshape(-1, 2)


def _permuted(a: Floats, b: Floats, pairs: npt.NDArray[np.intp], seed: int) -> tuple[float, Floats]:
    """Return the distance of two samples' mean maps, and (P,) distances where it is by chance which map is whose.

    The two maps of one image change sides or not, by a coin; maps without a partner change sides among themselves.
    """
    paired_a, paired_b = pairs[:, 0], pairs[:, 1]
    alone_a = np.setdiff1d(np.arange(len(a)), paired_a)
    alone_b = np.setdiff1d(np.arange(len(b)), paired_b)
    whole = floating(fixed(np.concatenate([a[paired_a], b[paired_b], a[alone_a], b[alone_b]]), _BITS), _BITS)
    rng = np.random.default_rng(seed)
    swapped = rng.integers(0, 2, (_PERMUTATIONS, len(pairs)))
    alone = np.zeros((_PERMUTATIONS, len(alone_a) + len(alone_b)))
    alone[:, : len(alone_a)] = 1
    chosen = np.concatenate([1 - swapped, swapped, rng.permuted(alone, axis=1)], 1)
    observed = np.zeros((1, len(whole)))
    observed[0, : len(pairs)] = 1
    observed[0, 2 * len(pairs) : 2 * len(pairs) + len(alone_a)] = 1
    sums = np.concatenate([observed, chosen]) @ whole
    distances = np.abs(sums / len(a) - (whole.sum(0) - sums) / len(b)).sum(1) / (2 * _CELLS)
    return float(distances[0]), distances[1:]


def _tail(observed: float, by_chance: Floats) -> float:
    """Return p of the observed distance.

    Where hardly any permutation reaches it, the tail is a Pearson III distribution's with the permutations' first three
    moments (Winkler et al., NeuroImage 2016, section 2.5), since 499 of them alone cannot tell one class of thousands.
    """
    beyond = int((by_chance >= observed * (1 - 1e-12)).sum())
    most = (_COUNTED + 1) / (_PERMUTATIONS + 1)
    if beyond >= _COUNTED:
        return (beyond + 1) / (_PERMUTATIONS + 1)
    deviation = float(by_chance.std())
    if deviation == 0:
        return (beyond + 1) / (_PERMUTATIONS + 1)
    mean = float(by_chance.mean())
    skew = float(((by_chance - mean) ** 3).mean()) / deviation**3
    return min(most, float(_pearson3().sf(observed, max(skew, 0.0), loc=mean, scale=deviation)))


def _pearson3() -> Any:
    try:
        return importlib.import_module("scipy.stats").pearson3
    except ImportError as error:
        raise InputError("the comparison's tests need scipy; install it: pip install 'camlake[audit]'") from error


def _correlation(a: Floats, b: Floats, least: int) -> float:
    """Return the mean Pearson correlation of maps (T, GRID * GRID) row by row; NaN of fewer than ``least``."""
    if len(a) < least:
        return float("nan")
    deviations = [maps - maps.mean(1, keepdims=True) for maps in (a, b)]
    norms = [np.sqrt((each**2).sum(1)) for each in deviations]
    defined = (norms[0] > 1e-9) & (norms[1] > 1e-9)
    if int(defined.sum()) < least:
        return float("nan")
    products = (deviations[0] * deviations[1]).sum(1)[defined]
    return float((products / (norms[0][defined] * norms[1][defined])).mean())
