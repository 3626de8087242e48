"""The bounded sample."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit import sample as sample_module
from pipeline.audit.keys import keys_of
from pipeline.audit.sample import Sample, sample_schema
from schemas.audit import GRID


def rows(count: int, classes: int = 3, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    schema = sample_schema(("site",))
    columns: dict[str, list[object]] = {}
    for field in schema:
        if pa.types.is_string(field.type):
            columns[field.name] = [f"{field.name}-{seed}-{i}" for i in range(count)]
        elif pa.types.is_fixed_size_list(field.type):
            columns[field.name] = list(rng.uniform(0, 2, (count, GRID * GRID)).astype(np.float32))
        else:
            columns[field.name] = [0] * count
    columns["key"] = keys_of([f"{seed}-{i}" for i in range(count)], 0).tolist()
    columns["target_class"] = rng.integers(0, classes, count).tolist()
    return pa.table(columns, schema=schema)


def expected(table: pa.Table, most: int) -> pa.Table:
    kept = []
    found = table.select(["target_class", "key"]).to_pydict()
    for target in sorted(set(found["target_class"])):
        mine = [i for i, each in enumerate(found["target_class"]) if each == target]
        kept += sorted(mine, key=lambda i: found["key"][i])[:most]
    return table.take(kept)


@pytest.mark.parametrize("pending", [1, 50, 20_000])
@pytest.mark.parametrize("parts", [1, 3, 40])
def test_the_smallest_keys_of_each_class_stay(parts: int, pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "_PENDING", pending)
    table = rows(400)
    sample = Sample(25, ("site",))
    order = np.random.default_rng(parts).permutation(400)
    for piece in np.array_split(order, parts):
        sample.add(table.take(pa.array(piece)))
    assert sample.table.equals(expected(table, 25))
    assert len(sample.table) == 75


def test_samples_of_parts_merge_in_any_order() -> None:
    tables = [rows(100, seed=seed) for seed in range(4)]
    whole = expected(pa.concat_tables(tables), 10)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        merged, loaded = Sample(10, ("site",)), Sample(10, ("site",))
        for number in order:
            part = Sample(10, ("site",))
            part.add(tables[number])
            merged.merge(part)
            loaded.load(part.to_bytes())
        assert merged.table.equals(whole) and loaded.table.equals(whole)


def test_room_is_what_can_still_be_kept() -> None:
    table = rows(300, classes=1)
    keys, classes = table["key"].to_numpy(), table["target_class"].to_numpy()
    sample = Sample(20, ("site",))
    assert sample.room(classes, keys).sum() == 20
    sample.add(table.slice(0, 200))
    assert len(sample.table) == 20
    room = sample.room(classes[200:], keys[200:])
    largest = int(sample.table["key"].to_numpy().max())
    assert room.tolist() == (keys[200:] <= largest).tolist() and 0 < room.sum() < 20
    sample.add(table.slice(200).filter(pa.array(room)))
    assert sample.table.equals(expected(table, 20))
    # A class that is not full yet takes all.
    assert sample.room(np.full(3, 9), np.array([1, 2, 2**64 - 1], np.uint64)).all()


def test_nothing_is_an_empty_table() -> None:
    sample = Sample(5)
    sample.add(sample_schema(()).empty_table())
    assert len(sample.table) == 0 and sample.table.schema.equals(sample_schema(()))
    assert len(sample.room(np.empty(0, np.int64), np.empty(0, np.uint64))) == 0
    other = Sample(5)
    other.load(sample.to_bytes())
    assert len(other.table) == 0
