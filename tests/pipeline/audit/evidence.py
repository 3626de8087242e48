"""Evidence from arrays: maps with known truth, summed and sampled as an audit does it, without a lake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.audit.cells import Block, Cell, Key
from pipeline.audit.findings.base import Evidence, FindingKind
from pipeline.audit.fixed import Integers
from pipeline.audit.frame import Frame, Series
from pipeline.audit.index import Index
from pipeline.audit.keys import keys_of, mixed, poisson_weights
from pipeline.audit.reading import CellReader
from pipeline.audit.sample import sample_schema
from pipeline.audit.state import State
from pipeline.lake import Lake
from schemas.audit import GRID, MEASURE_INDEX, MEASURES, OUTCOMES, UNIFORM_BORDER, UNIFORM_CORNER, Finding, Settings

Floats = npt.NDArray[np.float64]
RIGHT, WRONG = OUTCOMES.index("right"), OUTCOMES.index("wrong")

_CENTRES = (np.arange(GRID) + 0.5) / GRID
_LOW, _HIGH = np.arange(GRID) / GRID, np.arange(1, GRID + 1) / GRID


def blobs(
    rng: np.random.Generator, n: int, y: float | Floats = 0.5, x: float | Floats = 0.5, wander: float = 0.1
) -> Floats:
    """Densities (n, GRID, GRID) of mean 1: a blob near (y, x) that wanders, with noise."""
    middle_y, middle_x = (np.asarray(at) + rng.normal(0, wander, n) for at in (y, x))
    distance = (_CENTRES[:, None] - middle_y[:, None, None]) ** 2 + (_CENTRES - middle_x[:, None, None]) ** 2
    maps = (np.exp(-distance / 0.03) + 0.02) * rng.gamma(8.0, 1 / 8, (n, GRID, GRID))
    return np.asarray(maps / maps.mean((1, 2), keepdims=True))


def measured(maps: Floats) -> Floats:
    """The measures (n, M) of densities, those of regions and the probability NaN."""
    p = maps / GRID**2
    values = np.full((len(maps), len(MEASURES)), np.nan)
    rows, columns = p.sum(2), p.sum(1)
    centre_y, centre_x = rows @ _CENTRES, columns @ _CENTRES
    inside = np.clip(np.minimum(_HIGH, 0.9) - np.maximum(_LOW, 0.1), 0, None) * GRID
    edge = 1 - np.clip(np.minimum(_HIGH, 0.8) - np.maximum(_LOW, 0.2), 0, None) * GRID
    found = {
        "effective_area": np.exp(-(p * np.log(np.maximum(p, 1e-30))).sum((1, 2))) / GRID**2,
        "spread": np.sqrt(rows @ _CENTRES**2 - centre_y**2 + columns @ _CENTRES**2 - centre_x**2),
        "centre_y": centre_y,
        "centre_x": centre_x,
        "border_enrichment": (1 - np.einsum("y,tyx,x->t", inside, p, inside)) / UNIFORM_BORDER,
        "corner_enrichment": np.einsum("y,tyx,x->t", edge, p, edge) / UNIFORM_CORNER,
    }
    for name, column in found.items():
        values[:, MEASURE_INDEX[name]] = column
    return values


def make_frame(
    settings: Settings, classes: int, methods: Sequence[str] = ("grad_cam",), digest_limit: int = 2**64 - 1
) -> Frame:
    """A frame of one layer, with class names "name-0" and so on."""
    series = tuple(Series(method, "layer4") for method in methods)
    names = tuple(f"name-{number}" for number in range(classes))
    return Frame(settings, series, 0, names, 0, digest_limit, 4000)


def make_evidence(
    target: npt.NDArray[np.int64],
    maps: Floats,
    *,
    settings: Settings | None = None,
    groups: Mapping[str, Sequence[str | None]] | None = None,
    values: Mapping[str, Floats] | None = None,
    sample: Mapping[str, Any] | None = None,
    outcome: npt.NDArray[np.int64] | None = None,
    flags: npt.NDArray[np.bool_] | None = None,
    clusters: Sequence[str] | None = None,
    classes: int | None = None,
    lake: Any = None,
    **frame: Any,
) -> Evidence:
    """Evidence of n maps of one method; all are in the sample.

    Args:
        target: (n,) classes.
        maps: (n, GRID, GRID) densities.
        settings: of the audit; its groups are set.
        groups: attribute -> n values.
        values: measure -> (n,) what replaces or adds to :func:`measured`.
        sample: column of the sample -> n values.
        outcome: (n,); right by default.
        flags: (n, 3).
        clusters: n names of what rows depend on; each row its own by default.
        classes: of the model.
        lake: what the finding may look into.
        frame: see :func:`make_frame`.
    """
    groups = groups or {}
    settings = (settings or Settings()).model_copy(update={"groups": tuple(groups)})
    state = State(make_frame(settings, classes or int(target.max(initial=0)) + 1, **frame))
    numbers = measured(maps)
    for name, column in (values or {}).items():
        numbers[:, MEASURE_INDEX[name]] = column
    ids = [f"image-{number:06d}" for number in range(len(target))]
    keys = keys_of(clusters or ids, settings.seed)
    outcome = np.full(len(target), RIGHT) if outcome is None else outcome
    flags = np.zeros((len(target), 3), np.bool_) if flags is None else flags
    objects = {name: np.array(list(each), np.object_) for name, each in groups.items()}
    for start in range(0, len(target), 5000):
        part = slice(start, start + 5000)
        weights = poisson_weights(keys[part], settings.bootstrap)
        of_part = {name: each[part] for name, each in objects.items()}
        block = Block(0, target[part], outcome[part], of_part, numbers[part], flags[part], maps[part], weights)
        state.maps.add(block)
    columns: dict[str, Any] = {
        "key": mixed(keys_of(ids, settings.seed), target),
        "half": (mixed(keys, 7) >> np.uint64(63)).astype(np.int8),
        "target_class": target,
        "image_id": ids,
        "unit_id": ["unit"] * len(ids),
        "store_path": ["array"] * len(ids),
        "store_row": np.arange(len(ids)),
        "outcome": outcome,
        "label": target,
        "label_probability": np.full(len(ids), 0.9),
        "predicted_class": target,
        "predicted_probability": np.full(len(ids), 0.9),
        **{measure.name: numbers[:, index] for index, measure in enumerate(MEASURES)},
        "map": pa.FixedSizeListArray.from_arrays(pa.array(maps.astype(np.float32).ravel()), GRID**2),
        **{f"group:{name}": each.tolist() for name, each in objects.items()},
        **(sample or {}),
    }
    schema = sample_schema(settings.groups)
    arrays = [
        columns[field.name].cast(field.type)
        if isinstance(columns.get(field.name), pa.Array)
        else pa.array(columns.get(field.name, [None] * len(ids)), field.type)
        for field in schema
    ]
    return Evidence(state.frame, state, cast(Lake, lake), pa.table(arrays, schema=schema))


def tables(images: pa.Table | None = None, maps: pa.Table | None = None) -> SimpleNamespace:
    """What findings look up in a lake: its tables."""
    return SimpleNamespace(
        **{name: ds.dataset(each) for name, each in (("images", images), ("maps", maps)) if each is not None}
    )


def find(kind: FindingKind, evidence: Evidence) -> list[Finding]:
    """What a kind finds, which must be sound: numbers that are numbers, ends in order, and the same after JSON."""
    found = kind.find(evidence)
    assert len({each.finding_id for each in found}) == len(found)
    for each in found:
        assert each.kind == kind.name and each.finding_id.startswith(f"{kind.name}:")
        assert Finding.model_validate_json(each.model_dump_json()) == each
        assert each.effect is not None and np.isfinite(each.effect)
        assert (each.low is None) == (each.high is None)
        assert each.low is None or each.high is None or each.low <= each.effect <= each.high
        assert each.q is None or 0 <= each.q < evidence.frame.settings.q
        assert 0 <= each.severity <= 100
        assert "nan" not in each.sentence and each.remedy
    return found


class GivenCells(CellReader):
    """Cells of series 0 that are given as they are."""

    def __init__(self, cells: Mapping[Key, Cell]) -> None:
        self._cells = [cells[key] for key in sorted(cells)]
        keys = sorted(cells)
        pairs = sorted({(key.attribute, key.value) for key in keys})
        numbers = [(key.target_class, pairs.index((key.attribute, key.value)), key.outcome) for key in keys]
        rows = np.array([cell.rows for cell in self._cells], np.int64)
        self._index = Index(0, pairs, *np.array(numbers, np.int64).T, rows)

    def series(self) -> list[int]:
        return [0]

    def index(self, series: int) -> Index:
        return self._index

    def names(self, series: int) -> tuple[str, ...]:
        return tuple(self._cells[0].sums)

    def sums(self, series: int, place: int, name: str) -> Integers:
        return self._cells[place].sums[name]

    def bulk(self, series: int, start: int, stop: int, names: Sequence[str]) -> dict[str, Integers]:
        return {name: np.stack([cell.sums[name] for cell in self._cells[start:stop]]) for name in names}

    def total(self, series: int, attribute: str, value: str, outcome: int) -> Cell | None:
        keys = [key for key in self._index if (key.attribute, key.value, key.outcome) == (attribute, value, outcome)]
        found = Cell()
        for key in keys:
            found.merge(self.cells[key])
        return found if keys else None
