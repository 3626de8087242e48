from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import plan_table
from pipeline.sources.plan_table import inputs_digest, read_plan, write_plan
from schemas.errors import LakeError
from schemas.tables import PLAN
from schemas.unit import Unit

UNITS = [
    Unit("000000-a", 0, "s3://b/a.tar", byte_size=10, etag="e"),
    Unit("000001-b", 1, "s3://b/b.parquet", start=0, stop=3, byte_size=5),
    Unit("000002-c", 2, "s3://b/c", members=("x/1.jpg", "x/é.jpg"), etag="é"),
    Unit("000003-d", 3, "s3://b/d", members=()),
]


def test_units_come_back_as_they_were() -> None:
    sink = io.BytesIO()
    summary = write_plan(iter(UNITS), sink)
    assert list(read_plan(io.BytesIO(sink.getvalue()))) == UNITS
    assert (summary.units, summary.byte_size, summary.digest) == (4, 15, inputs_digest(UNITS))
    schema = pq.read_schema(io.BytesIO(sink.getvalue()))
    assert schema.equals(PLAN)
    assert schema.metadata[b"camlake_tables_version"] == b"1"


def test_an_empty_plan_can_be_read() -> None:
    sink = io.BytesIO()
    assert write_plan([], sink).units == 0
    assert list(read_plan(io.BytesIO(sink.getvalue()))) == []


def test_the_digest_depends_on_every_value_and_on_the_order() -> None:
    changes: list[dict[str, Any]] = [
        *({"unit_id": "x"}, {"unit_index": 9}, {"uri": "x"}, {"start": 0}, {"stop": 1}),
        *({"byte_size": 11}, {"etag": None}, {"members": ()}),
    ]
    digests = {inputs_digest([replace(UNITS[0], **change), *UNITS[1:]]) for change in changes}
    digests |= {inputs_digest(UNITS), inputs_digest(UNITS[::-1]), inputs_digest(UNITS[:-1])}
    assert len(digests) == len(changes) + 3
    # pinned: lakes written by an earlier version must still be resumed
    assert inputs_digest(UNITS) == "55163414fc69b45eb01775679ffe85e6c5a297a6c8170bdfed77d3ce7340ca75"


def _many(count: int, members: int = 0) -> Iterator[Unit]:
    for n in range(count):
        names = tuple(f"{n}/{m}.jpg" for m in range(members)) or None
        yield Unit(f"{n:06d}-shard", n, f"s3://bucket/train-{n:08d}.tar", byte_size=n, etag="e" * 32, members=names)


def test_200_000_units_lie_in_small_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "units.parquet"
    with path.open("wb") as sink:
        summary = write_plan(_many(200_000), sink)
    assert summary.units == 200_000
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_rows == 200_000
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert max(groups) == plan_table.GROUP_UNITS


def test_memory_does_not_grow_with_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan_table, "GROUP_UNITS", 256)
    path = tmp_path / "units.parquet"
    written, read = [], []
    for count in (1000, 8000):
        tracemalloc.start()
        with path.open("wb") as sink:
            write_plan(_many(count), sink)
        written.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        with path.open("rb") as file:
            assert [unit.unit_index for unit in islice(read_plan(file), count - 10, None, 3)] == [
                *range(count - 10, count, 3)
            ]
        read.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # a unit takes some 500 bytes, so that 7,000 more of them would be seen
    assert written[1] < written[0] + 1_000_000
    assert read[1] < read[0] + 1_000_000


def test_member_files_bound_a_row_group_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_table, "GROUP_MEMBERS", 100)
    sink = io.BytesIO()
    write_plan(_many(20, members=30), sink)
    metadata = pq.ParquetFile(io.BytesIO(sink.getvalue())).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [4, 4, 4, 4, 4]


def test_what_is_no_plan_is_said() -> None:
    with pytest.raises(LakeError, match="no readable Parquet"):
        list(read_plan(io.BytesIO(b"nothing of the kind")))
    sink = io.BytesIO()
    pq.write_table(pa.table({"unit_id": ["a"], "uri": ["b"]}), sink)
    with pytest.raises(LakeError, match="lacks the columns unit_index, start"):
        list(read_plan(io.BytesIO(sink.getvalue())))
