"""The comparison of lakes notices every kind of difference, and none where there is none."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pipeline.lake.run import create_or_resume, finalize, quarantine
from pipeline.lake.sink import UnitResult
from pipeline.lake.store import LakeStore
from schemas.documents import Attempt, Quarantine
from tests.lakes import assert_equal_lakes
from tests.pipeline.lake.helpers import make_job, make_manifest, make_plan, make_result, sink_for, statistics, unit_id

Change = Callable[[UnitResult], UnitResult]


@pytest.fixture
def new_store() -> Iterator[Callable[[], LakeStore]]:
    """Makes empty stores in memory."""
    stores: list[LakeStore] = []

    def make() -> LakeStore:
        stores.append(LakeStore(f"memory://lake-{uuid.uuid4().hex}/run"))
        return stores[-1]

    yield make
    for store in stores:
        for entry in list(store.list()):
            store.delete(entry.path)


def make(
    store: LakeStore,
    *,
    run: str = "run-1",
    attempt: str = "a1",
    given_up: int | None = None,
    plan: str = "shard",
    finish: bool = True,
    change: Change = lambda result: result,
    dtype: str = "float16",
    **manifest: Any,
) -> str:
    """A lake of three units; ``change`` applies to unit 1."""
    frozen = make_plan(3, plan)
    stored = create_or_resume(store, make_manifest(frozen, run_id=run, **manifest), frozen).manifest
    for i in range(3):
        if i == given_up:
            history = [Attempt(attempt=attempt, when="2026", worker="w", kind="died", reason=run)]
            quarantine(store, Quarantine(unit_id=unit_id(i), created=run, attempts=history))
            continue
        result = make_result(unit_id(i), attempt, worker=run)
        sink_for(store, stored, dtype).write(change(result) if i == 1 else result)
    if finish:
        finalize(store)
    return store.uri


def test_attempts_workers_and_times_do_not_count(new_store: Callable[[], LakeStore]) -> None:
    for given_up in (None, 2):
        left = make(new_store(), given_up=given_up)
        assert_equal_lakes(left, make(new_store(), run="run-2", attempt="b22222", given_up=given_up))


def row(column: str, value: Any, number: int = 0) -> Change:
    """Another value in a row of the images table."""

    def change(result: UnitResult) -> UnitResult:
        rows = [dict(each) for each in result.images]
        rows[number][column] = value
        return dataclasses.replace(result, images=rows)

    return change


def cell(method: int, bits: int) -> Change:
    """One cell of one map moved by a few of the steps that the stored type has, without its largest value."""

    def change(result: UnitResult) -> UnitResult:
        map_set = result.map_sets[method]
        maps = map_set.maps.copy()
        smallest = np.unravel_index(np.abs(maps[-1]).argmin(), maps[-1].shape)
        maps[-1][smallest] += bits * 2.0**-11 * np.abs(maps[-1]).max()
        changed = dataclasses.replace(map_set, maps=maps)  # with the statistics of the old maps: only a cell differs
        sets = [changed if i == method else each for i, each in enumerate(result.map_sets)]
        return dataclasses.replace(result, map_sets=sets)

    return change


def statistic(column: str, value: float) -> Change:
    def change(result: UnitResult) -> UnitResult:
        map_set = result.map_sets[0]
        values = {**map_set.statistics, column: np.full(len(map_set.maps), value, np.float32)}
        return dataclasses.replace(
            result, map_sets=[dataclasses.replace(map_set, statistics=values), *result.map_sets[1:]]
        )

    return change


def without_last_map(result: UnitResult) -> UnitResult:
    sets = []
    for map_set in result.map_sets:
        targets = dataclasses.replace(
            map_set.targets,
            **{f.name: getattr(map_set.targets, f.name)[:-1] for f in dataclasses.fields(map_set.targets)},
        )
        maps = map_set.maps[:-1]
        sets.append(dataclasses.replace(map_set, targets=targets, maps=maps, statistics=statistics(maps)))
    return dataclasses.replace(result, map_sets=sets)


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "job": ({"job": make_job(targets={"top_k": 3})}, "manifest: job_digest is"),
    "model": ({"model": make_manifest(make_plan()).model.model_copy(update={"digest": "cd" * 32})}, "manifest: model"),
    "plan": ({"plan": "other"}, "manifest: inputs_digest is"),
    "unfinished": ({"finish": False}, "is not finished"),
    "given up": ({"given_up": 1}, r"committed units: only left \['000001-shard-001'\], only right \[\]"),
    "a label": ({"change": row("label", 3)}, r"images/000001-shard-001-\*.*: label of row 0 is 0 .* and 3 right"),
    "a null": ({"change": row("label", None)}, "label of row 0 is 0 on the left and None right"),
    "an attribute": ({"change": row("age", 99)}, "age of row 0 is 30 on the left and 99 right"),
    "an error": ({"change": row("error", "other", 1)}, "error of row 1 is 'not an image'"),
    "a status": ({"change": row("status", "read_error", 1)}, "commit of unit 000001-shard-001: images is"),
    "an image": (
        {
            "change": lambda result: dataclasses.replace(
                result, images=[*result.images, {**result.images[1], "image_id": "x"}]
            )
        },
        "commit of unit 000001-shard-001: images is",
    ),
    "a map": ({"change": without_last_map}, "commit of unit 000001-shard-001: maps is"),
    "a method": (
        {"change": lambda result: dataclasses.replace(result, map_sets=result.map_sets[:2])},
        "commit of unit 000001-shard-001: maps is",
    ),
    "a statistic": ({"change": statistic("mass", 0.5)}, r"maps/000001-shard-001-\*.*: mass of row 0 is"),
    "an undefined statistic": ({"change": statistic("gini", float("nan"))}, "gini of row . is 0.25 .* None right"),
    "a cell": ({"change": cell(0, 3)}, r"heatmaps/grad_cam/layer4/.*: 1 of 8 maps differ; at \(row, y, x\) = "),
    "a cell of another method": ({"change": cell(2, 3)}, "heatmaps/xgrad_cam/layer4/.*: 1 of 8 maps differ"),
    "the type": ({"dtype": "uint8"}, "attributes are|on the right"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_named(name: str, new_store: Callable[[], LakeStore]) -> None:
    changes, message = DIFFERENCES[name]
    left, right = make(new_store()), make(new_store(), run="run-2", attempt="b2", **changes)
    with pytest.raises(AssertionError, match=message):
        assert_equal_lakes(left, right)
    with pytest.raises(AssertionError):
        assert_equal_lakes(right, left)


def test_units_may_be_ignored(new_store: Callable[[], LakeStore]) -> None:
    left, right = make(new_store()), make(new_store(), given_up=1)
    assert_equal_lakes(left, right, ignore_units=[unit_id(1)])
    with pytest.raises(AssertionError, match="committed units"):
        assert_equal_lakes(left, right, ignore_units=[unit_id(2)])
