"""What every source keeps to."""

from __future__ import annotations

import io
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import Source
from schemas.registries import SOURCES
from tests.pipeline.sources.conftest import Place, tar_bytes


def _source(place: Place, kind: str) -> Source:
    images = {f"c{n % 2}/{n}.jpg": b"image %d" % n for n in range(9)}
    if kind == "webdataset":
        for part in range(3):
            place.put(f"w/{part}.tar", tar_bytes((f"{n}.jpg", b"image %d" % (3 * part + n)) for n in range(3)))
        return place.source(place.url("w/{0..2}.tar"), kind)
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({"image": list(images.values())}), sink, row_group_size=3)
        return place.source(place.put("p/t.parquet", sink.getvalue()), kind, unit_images=3)
    for name, data in images.items():
        place.put(f"f/{name}", data)
    if kind == "folder":
        return place.source(place.url("f"), kind, unit_images=3)
    uri = place.put("f/list.csv", "\n".join(["uri", *images]).encode())
    return place.source(uri, kind, unit_images=3)


@pytest.mark.parametrize("kind", list(SOURCES))
def test_the_contract(any_place: Place, kind: str) -> None:
    source = _source(any_place, kind)
    units = list(source.plan())
    assert units == list(source.plan())  # the same order and the same units again
    assert [unit.unit_index for unit in units] == [0, 1, 2]
    assert len({unit.unit_id for unit in units}) == 3
    # a worker opens the source anew from what travelled to it, and units come to it in any order
    elsewhere = pickle.loads(pickle.dumps(source))
    again = {unit.unit_id: list(elsewhere.read(pickle.loads(pickle.dumps(unit)))) for unit in reversed(units)}
    samples = [sample for unit in units for sample in source.read(unit)]
    assert samples == [sample for unit in units for sample in again[unit.unit_id]]
    assert sorted(sample.data or b"" for sample in samples) == [b"image %d" % n for n in range(9)]
    assert len({sample.image_id for sample in samples}) == 9
    assert all(sample.error is None and sample.byte_size == 7 for sample in samples)


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_reader_may_stop_early(place: Place, kind: str) -> None:
    source = _source(place, kind)
    samples = source.read(next(source.plan()))
    assert next(samples).data is not None
    samples.close()  # type: ignore[attr-defined]
