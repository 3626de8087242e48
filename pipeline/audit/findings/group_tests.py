"""The tests behind group differences: each value of an attribute against the other values of the same class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.audit.cells import Cell
from pipeline.audit.contrast import LEAST_CLUSTERS, MOST_D, Contrast, Sums
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.location import MapSums, cell_d, elsewhere, permutation_p, screened_p
from pipeline.audit.findings.samples import densities, of_class, texts, where
from pipeline.audit.keys import keys_of
from schemas.audit import MEASURE_INDEX, UNIFORM_BORDER, UNIFORM_CORNER, Settings

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Measure -> the factor that makes its difference a share of the picture or of the mass; 0 where it is no share.
SHARES = {
    "effective_area": 1.0,
    "spread": 1.0,
    "centre_y": 1.0,
    "centre_x": 1.0,
    "border_enrichment": UNIFORM_BORDER,
    "corner_enrichment": UNIFORM_CORNER,
    "energy": 1.0,
    "enrichment": 0.0,
    "probability": 1.0,
}
RATIOS = frozenset({"border_enrichment", "corner_enrichment", "enrichment"})
#: What is tested: the measures, and the place.
LOCATION = "location"
TESTS = (*SHARES, LOCATION)

#: Most maps of either side whose place is permuted.
_PERMUTED = 1000

_COLUMNS = [MEASURE_INDEX[name] for name in SHARES]
_FACTORS = np.array(list(SHARES.values()))
_IS_RATIO = np.array([name in RATIOS for name in SHARES])


def least(settings: Settings) -> int:
    """Return the maps on either side from which a difference is tested."""
    return max(settings.flagged_from, settings.interval_from)


class Tests:
    """K items, each against others, in T = ``len(TESTS)`` tests.

    Attributes:
        contrast: of the measures, (K, T - 1).
        own: densities of the items; ``other`` of the others.
        d: (K, T) standardised differences; of the place that of the cell where it is largest.
        p: (K, T); NaN where nothing was tested.
        passed: (K, T) whether the floors of the settings are passed.
    """

    def __init__(self, contrast: Contrast, own: MapSums, other: MapSums, settings: Settings) -> None:
        self.contrast, self.own, self.other = contrast, own, other
        cells = cell_d(own, other)
        farthest = np.argmax(np.abs(np.nan_to_num(cells, nan=0.0)), axis=1)
        largest = cells[np.arange(len(cells)), farthest]
        self.d = np.column_stack([contrast.d, np.clip(largest, -MOST_D, MOST_D)])
        far = (np.abs(largest) >= settings.effect_d) & (elsewhere(own, other) >= settings.effect_energy)
        self.passed = np.column_stack([_floors(contrast, settings), far])
        clusters = np.minimum(*(np.nan_to_num(sums.clusters).max(1) for sums in (contrast.own, contrast.other)))
        enough = (np.minimum(own.count, other.count)[:, 0] >= least(settings)) & (clusters >= LEAST_CLUSTERS)
        self.p = np.column_stack([contrast.p(least(settings)), np.where(enough, 1.0, np.nan)])
        # A place that cannot be found anyway counts as a test without success: it need not be tested in full.
        self.to_permute = np.flatnonzero(enough & far & (screened_p(own, other) <= settings.q))


class Results(NamedTuple):
    """What is kept of :class:`Tests`, whose sums of thousands of classes would take gigabytes."""

    d: Floats
    p: Floats
    passed: Mask


class Comparison:
    """All values of an attribute within one class."""

    def __init__(self, evidence: Evidence, attribute: str, target: int, values: dict[str, list[Cell]]) -> None:
        self.evidence, self.attribute, self.target = evidence, attribute, target
        self.settings = evidence.frame.settings
        self.names = list(values)
        self._cells = list(values.values())
        self._rows: pa.Table | None = None

    @property
    def possible(self) -> bool:
        """Some value and its others are large enough."""
        rows = np.array([sum(cell.rows for cell in cells) for cells in self._cells])
        return bool((np.minimum(rows, rows.sum() - rows) >= least(self.settings)).any())

    def all(self, typical: Floats) -> Results:
        """Test each value against all others.

        Two values mirror each other: the one whose mean map is nearer to ``typical`` (GRID * GRID,) is not tested.
        """
        sums, maps = Sums.of(self._cells, _COLUMNS), MapSums.of(self._cells)
        tests = Tests(Contrast(sums, sums.others()), maps, maps.others(), self.settings)
        permute = tests.to_permute.tolist()
        if len(self.names) == 2:
            apart = np.abs(np.nan_to_num(maps.mean) - typical).sum(1).round(6)
            mirrored = int(np.lexsort((maps.count[:, 0], -apart))[1])
            tests.p[mirrored] = np.nan
            permute = [item for item in permute if item != mirrored]
        for item in permute:
            rest = [other for other in range(len(self.names)) if other != item]
            tests.p[item, -1] = self._location_p(item, rest, self._shrink(tests.contrast, item))
        self._rows = None  # of thousands of classes, most are not needed again
        return Results(tests.d, tests.p, tests.passed)

    def one(self, item: int, rest: list[int]) -> Tests:
        """Test one value against some others."""
        sums, maps = Sums.of(self._cells, _COLUMNS), MapSums.of(self._cells)
        contrast = Contrast(sums.take([item]), sums.together(rest))
        tests = Tests(contrast, maps.take([item]), maps.together(rest), self.settings)
        if len(tests.to_permute):
            tests.p[0, -1] = self._location_p(item, rest, self._shrink(contrast, 0))
        return tests

    def sample(self, item: int, rest: list[int]) -> tuple[pa.Table, Mask]:
        """Return the sample's rows of a value and of others, and which are the value's."""
        if self._rows is None:
            self._rows = of_class(self.evidence.sample, self.target)
        found = texts(self._rows, f"group:{self.attribute}")
        place = {self.names[other]: False for other in rest} | {self.names[item]: True}
        side = [place.get(value) for value in found]
        rows = where(self._rows, np.array([each is not None for each in side], np.bool_))
        return rows, np.array([each for each in side if each is not None], np.bool_)

    @staticmethod
    def _shrink(contrast: Contrast, item: int) -> float:
        """Permuting rows takes them for independent; where clusters make them fewer, a difference counts for less."""
        sides = (contrast.own, contrast.other)
        shares = [np.nanmax(sums.clusters[item] / np.maximum(sums.count[item], 1)) for sums in sides]
        return float(np.sqrt(min(1.0, *shares)))

    def _location_p(self, item: int, rest: list[int], shrink: float) -> float:
        rows, mine = self.sample(item, rest)
        if min(int(mine.sum()), int((~mine).sum())) < self.settings.suppressed_below:
            return 1.0
        maps = densities(rows)
        name = f"{self.target}\0{self.attribute}\0{self.names[item]}"
        seed = int(keys_of([name], self.settings.seed)[0])
        # The sample lies in the order of its hashes, so its first rows are a fair draw.
        return permutation_p(maps[mine][:_PERMUTED], maps[~mine][:_PERMUTED], seed, shrink)


def _floors(contrast: Contrast, settings: Settings) -> Mask:
    """Return which differences (K, M) are as large as the settings ask."""
    share = np.abs(contrast.difference) * _FACTORS
    ratio = (contrast.ratio >= settings.effect_ratio) | (contrast.ratio <= 1 / settings.effect_ratio)
    return np.asarray(
        (np.abs(contrast.d) >= settings.effect_d)
        & ((_FACTORS == 0) | (share >= settings.effect_energy))
        & (ratio | ~_IS_RATIO)
    )
