"""Images come back from ranges, from compressed tars and from Parquet files, and their units are read once."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.lake import Lake, LakeStore, UnitResult, create_or_resume, open_lake
from pipeline.lake.originals import PROBE, Originals
from pipeline.lake.plan import freeze
from pipeline.sources import Source, open_source
from pipeline.sources.base import Sample
from pipeline.sources.parquet import Parquet
from pipeline.sources.webdataset import WebDataset
from schemas.errors import LakeError
from schemas.unit import Unit
from tests.pipeline.lake.helpers import make_job, make_manifest, sink_for

#: Images in each of two shards; of a Parquet file, in row groups of 4.
IMAGES, GROUP = 10, 4


def image(shard: int, number: int) -> bytes:
    return np.random.default_rng([shard, number]).bytes(500)


def tars(folder: Path, shard: int, packed: bool) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(IMAGES):
            member = tarfile.TarInfo(f"{number:03d}.jpg")
            member.size = 500
            archive.addfile(member, io.BytesIO(image(shard, number)))
    name = f"{shard}.tar.gz" if packed else f"{shard}.tar"
    (folder / name).write_bytes(gzip.compress(buffer.getvalue()) if packed else buffer.getvalue())


def parquet(folder: Path, shard: int) -> None:
    table = pa.table({"image": pa.array([image(shard, number) for number in range(IMAGES)], pa.binary())})
    pq.write_table(table, folder / f"{shard}.parquet", row_group_size=GROUP)


def lake_of(folder: Path, kind: str) -> Lake:
    """A lake of two shards, without maps."""
    (folder / "in").mkdir()
    for shard in (0, 1):
        parquet(folder / "in", shard) if kind == "parquet" else tars(folder / "in", shard, kind == "gz")
    name = "parquet" if kind == "parquet" else "webdataset"
    job = make_job(source={"uri": f"{folder}/in/*", "format": name, "unit_images": IMAGES})
    source = open_source(job.source)
    units = list(source.plan())
    store = LakeStore(str(folder / "lake"))
    manifest = create_or_resume(store, make_manifest(freeze(units), job, attributes={}), freeze(units)).manifest
    sink = sink_for(store, manifest)
    for unit in units:
        sink.write(UnitResult(unit.unit_id, "a1", "w0", [row_of(sample) for sample in source.read(unit)], [], {}))
    return open_lake(store.uri)


def row_of(sample: Sample) -> dict[str, Any]:
    return {
        "image_id": sample.image_id,
        "uri": sample.uri,
        "byte_offset": sample.byte_offset,
        "byte_size": sample.byte_size,
        "sha256": hashlib.sha256(sample.data or b"").digest(),
        "status": "decode_error",
    }


def rows(lake: Lake, shard: int, *numbers: int) -> list[dict[str, Any]]:
    table = lake.unit_images(sorted(lake.commits)[shard]).to_pylist()
    return [table[number] for number in numbers]


def pairs(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["image_id"], row["unit_id"]) for row in found]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Unit, int]]:
    """The units that sources read, and how many samples of each."""
    found: list[tuple[Unit, int]] = []

    def counted(original: Callable[[Any, Unit], Iterator[Sample]]) -> Callable[[Any, Unit], Iterator[Sample]]:
        def counting(self: Source, unit: Unit) -> Iterator[Sample]:
            taken = 0
            try:
                for sample in original(self, unit):
                    taken += 1
                    yield sample
            finally:
                found.append((unit, taken))

        return counting

    for source in (WebDataset, Parquet):
        monkeypatch.setattr(source, "read", counted(source.read))
    return found


@pytest.mark.parametrize("kind", ["tar", "gz", "parquet"])
def test_the_same_bytes_come_back(tmp_path: Path, kind: str) -> None:
    lake = lake_of(tmp_path, kind)
    wanted = rows(lake, 1, 9, 2) + rows(lake, 0, 5)
    found = {row["image_id"]: data for row, data in Originals(lake).stream(wanted)}
    expected = [image(1, 9), image(1, 2), image(0, 5)]
    assert [found[row["image_id"]] for row in wanted] == expected
    assert [Originals(lake).get(row) for row in wanted] == expected


def test_a_compressed_shard_is_read_once_and_not_to_its_end(tmp_path: Path, read: list[tuple[Unit, int]]) -> None:
    lake = lake_of(tmp_path, "gz")
    read.clear()
    originals, wanted = Originals(lake), rows(lake, 0, 6, 1, 3)
    originals.hold(pairs(wanted))
    assert [originals.get(row) for row in wanted] == [image(0, 6), image(0, 1), image(0, 3)]
    assert [taken for _, taken in read] == [7]


def test_of_a_parquet_file_only_the_row_groups_that_hold_images_are_read(
    tmp_path: Path, read: list[tuple[Unit, int]]
) -> None:
    lake = lake_of(tmp_path, "parquet")
    read.clear()
    wanted = rows(lake, 0, 9, 1)
    assert {row["image_id"]: data for row, data in Originals(lake).stream(wanted)} == {
        "0/9": image(0, 9),
        "0/1": image(0, 1),
    }
    assert [(unit.start, unit.stop) for unit, _ in read] == [(0, 1), (2, 3)]
    whole = (tmp_path / "in" / "0.parquet").stat().st_size
    assert all(0 < (unit.byte_size or 0) < whole for unit, _ in read)


def test_no_more_is_read_than_the_bound(tmp_path: Path, read: list[tuple[Unit, int]]) -> None:
    lake = lake_of(tmp_path, "gz")
    size = (tmp_path / "in" / "0.tar.gz").stat().st_size
    read.clear()
    originals = Originals(lake, most_read=size + size // 2)
    wanted = rows(lake, 1, 4) + rows(lake, 0, 2)
    originals.hold(pairs(wanted))
    assert originals.get(wanted[0]) == image(1, 4)
    with pytest.raises(LakeError, match="would have to be read again"):
        originals.get(wanted[1])
    assert [unit.uri[-8:] for unit, _ in read] == ["1.tar.gz"]


def test_no_more_is_kept_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.lake.originals.MOST_HELD", 1200)
    lake = lake_of(tmp_path, "gz")
    originals, wanted = Originals(lake), rows(lake, 0, 1, 2, 3)
    originals.hold(pairs(wanted))
    assert [originals.get(row) for row in wanted[:2]] == [image(0, 1), image(0, 2)]
    with pytest.raises(LakeError, match="are kept"):
        originals.get(wanted[2])


def test_what_changed_is_told(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, "parquet")
    (tmp_path / "in" / "1.parquet").unlink()
    first, second = rows(lake, 0, 3)[0], rows(lake, 1, 3)[0]
    other = {**first, "sha256": bytes(32)}
    with pytest.raises(LakeError, match="has changed since the run"):
        Originals(lake).get(other)
    found = dict(zip("ab", (data for _, data in Originals(lake).stream([first, second])), strict=True))
    assert found["a"] == image(0, 3) and "1.parquet" in str(found["b"])


def test_where_the_first_cannot_be_had_no_other_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_of(tmp_path, "gz")
    asked: Counter[str] = Counter()

    def gone(self: WebDataset, unit: Unit) -> Iterator[Sample]:
        asked[unit.unit_id] += 1
        raise LakeError("the store is closed")
        yield

    monkeypatch.setattr(WebDataset, "read", gone)
    monkeypatch.setattr("pipeline.lake.originals.PROBE", min(PROBE, IMAGES))
    originals = Originals(lake)
    originals.hold(pairs(rows(lake, 0, *range(IMAGES)) + rows(lake, 1, 0)))
    assert sum(asked.values()) == 1
    with pytest.raises(LakeError, match="closed"):
        originals.get(rows(lake, 1, 0)[0])
