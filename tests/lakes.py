"""Do two lakes hold the same result? What depends on the attempt, the worker and the time is left out."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lake import arrays
from pipeline.lake.documents import is_closed, read_commits, read_manifest, read_success
from pipeline.lake.plan import read_plan
from pipeline.lake.run import quarantined
from pipeline.lake.store import LakeStore
from schemas import layout
from schemas.documents import Commit, Document

_MANIFEST = ("job_digest", "inputs_digest", "units", "model", "methods", "attributes")
_COMMIT = ("images", "maps", "flags")
_SUCCESS = ("units", "committed", "quarantined", "images", "maps", "flags", "objects")
_ARRAY_ATTRIBUTES = ("attempt", "run_id")


def assert_equal_lakes(
    left: str,
    right: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    right_options: Mapping[str, Any] | None = None,
    ignore_units: Collection[str] = (),
) -> None:
    """Assert that the lakes at two URIs hold the same result.

    The same are: job, model, methods and plan; the units committed and given up; every row and column of the images
    and maps or labels tables, in order; every stored map, bit by bit (NaNs are equal), every mask; counts in commits
    and ``_SUCCESS.json``.
    Left out are attempts, run ids, workers, times, the histories of quarantined units, and the batch sizes that fitted.

    Args:
        left: the lake as it should be.
        right: the lake to be judged.
        storage_options: of both lakes.
        right_options: of the right one, where they are others.
        ignore_units: units that may differ; the totals are not compared then.

    Raises:
        AssertionError: names the first difference.
    """
    one = LakeStore(left, storage_options)
    two = LakeStore(right, storage_options if right_options is None else right_options)
    _same_members("manifest", read_manifest(one), read_manifest(two), _MANIFEST)
    plans = list(read_plan(one)), list(read_plan(two))
    assert plans[0] == plans[1], "the plans differ"
    commits = _commits(one, ignore_units), _commits(two, ignore_units)
    _same_names("committed units", set(commits[0]), set(commits[1]))
    given_up = [
        quarantined(store) - set(have) - set(ignore_units) for store, have in zip((one, two), commits, strict=True)
    ]
    _same_names("quarantined units", *given_up)
    for unit, commit in commits[0].items():
        _same_unit(one, two, commit, commits[1][unit])
    ends = read_success(one), read_success(two)
    if (ends[0] is None) != (ends[1] is None):
        raise AssertionError(f"{(one if ends[0] is None else two).uri} is not finished, and the other lake is")
    if ends[0] is not None and ends[1] is not None and not ignore_units:
        _same_members(layout.SUCCESS, ends[0], ends[1], _SUCCESS)


def _commits(store: LakeStore, ignore: Collection[str]) -> dict[str, Commit]:
    found = (commit for commit in read_commits(store) if not is_closed(commit))
    return {commit.unit_id: commit for commit in found if commit.unit_id not in ignore}


def _same_members(what: str, left: Document, right: Document, names: tuple[str, ...]) -> None:
    for name in names:
        was, found = getattr(left, name), getattr(right, name)
        assert was == found, f"{what}: {name} is {was} on the left and {found} on the right"


def _same_names(what: str, left: set[str], right: set[str]) -> None:
    assert left == right, f"{what}: only left {sorted(left - right)[:5]}, only right {sorted(right - left)[:5]}"


def _same_unit(one: LakeStore, two: LakeStore, left: Commit, right: Commit) -> None:
    unit = left.unit_id
    _same_members(f"commit of unit {unit}", left, right, _COMMIT)
    paths = [{_anonymous(info.path, commit): info.path for info in commit.objects} for commit in (left, right)]
    _same_names(f"objects of unit {unit}", set(paths[0]), set(paths[1]))
    for path in (layout.images, layout.maps, layout.labels):
        if path(unit, "*") not in paths[0]:
            continue
        tables = [_table(store, path(unit, c.attempt), c) for store, c in ((one, left), (two, right))]
        _same_table(path(unit, "*"), *tables)
    for name in paths[0]:  # what bears no attempt in its name has the same bytes
        if paths[0][name] == name:
            assert one.get(name) == two.get(name), f"unit {unit}: {name} has other bytes"
    suffix = f"/{arrays.METADATA}"
    for name in sorted(name for name in paths[0] if name.endswith(suffix)):
        stored = [_array(store, each[name].removesuffix(suffix)) for store, each in zip((one, two), paths, strict=True)]
        _same_array(name.removesuffix(suffix), *stored)


def _anonymous(path: str, commit: Commit) -> str:
    return path.replace(f"{commit.unit_id}-{commit.attempt}", f"{commit.unit_id}-*")


def _table(store: LakeStore, path: str, commit: Commit) -> pa.Table:
    table = pq.read_table(io.BytesIO(store.get(path)))
    if "store_path" in table.column_names:
        named = [_anonymous(each, commit) for each in table["store_path"].to_pylist()]
        table = table.set_column(table.column_names.index("store_path"), "store_path", pa.array(named, pa.string()))
    return table


def _same_table(where: str, left: pa.Table, right: pa.Table) -> None:
    assert left.schema.equals(right.schema), f"{where}: the columns are {left.schema}\nand {right.schema}"
    assert len(left) == len(right), f"{where}: {len(left)} rows on the left and {len(right)} on the right"
    for name in left.column_names:
        if left[name].equals(right[name]):
            continue
        pairs = zip(left[name].to_pylist(), right[name].to_pylist(), strict=True)
        for row, (was, found) in enumerate(pairs):
            assert _same_value(was, found), f"{where}: {name} of row {row} is {was!r} on the left and {found!r} right"


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def _array(store: LakeStore, path: str) -> tuple[arrays.Layout, npt.NDArray[Any]]:
    return arrays.decode(store.get(f"{path}/{arrays.METADATA}"), store.get(f"{path}/{arrays.SHARD}"), store.where(path))


def _same_array(
    where: str, left: tuple[arrays.Layout, npt.NDArray[Any]], right: tuple[arrays.Layout, npt.NDArray[Any]]
) -> None:
    attributes = [{k: v for k, v in each.attributes.items() if k not in _ARRAY_ATTRIBUTES} for each, _ in (left, right)]
    assert attributes[0] == attributes[1], f"{where}: attributes are {attributes[0]} and {attributes[1]}"
    one, two = left[1], right[1]
    forms = [(each.shape, each.dtype.name) for each in (one, two)]
    assert forms[0] == forms[1], f"{where}: {forms[0]} on the left and {forms[1]} on the right"
    same = one.view(f"u{one.itemsize}") == two.view(f"u{two.itemsize}")
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(two)
    if not same.all():
        place = tuple(int(i) for i in np.argwhere(~same)[0])
        count = int((~same).any(axis=(1, 2)).sum())
        raise AssertionError(
            f"{where}: {count} of {len(one)} maps differ; at (row, y, x) = {place} "
            f"{one[place]!r} on the left and {two[place]!r} on the right"
        )
