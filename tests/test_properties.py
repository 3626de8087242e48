"""Properties that hold whatever the input: plans and units, stored maps, tables and documents."""

from __future__ import annotations

import csv
import io
import json
import math
import uuid
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import schemas.job
from pipeline.lake import arrays, tables
from pipeline.lake.documents import object_info, read_commit, read_quarantine, seal, to_bytes
from pipeline.lake.plan import digest_of, freeze, read_plan
from pipeline.lake.reader import open_lake
from pipeline.lake.run import create_or_resume, finalize
from pipeline.lake.sink import MapSet, MapTargets, UnitResult
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from pipeline.sources import open_source
from schemas import layout
from schemas.documents import Attempt, Commit, Quarantine
from schemas.redact import redact
from schemas.tables import ATTRIBUTE_TYPES
from schemas.unit import Unit
from tests.pipeline.lake.helpers import make_job, make_manifest, sink_for, statistics

#: Whatever UTF-8 can write, in any script, and often the characters that formats are sensitive to.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(
    st.sampled_from(" \t\r\n'\"`,;:#%&?=/\\.-~*{}[]0aZéß字🎈\u0085\u2028\ufeff\x00"), max_size=12
)
COUNT = st.integers(0, 2**63 - 1)
few = settings(max_examples=25, deadline=None)


def memory(name: str = "properties") -> str:
    return f"memory://{name}-{uuid.uuid4().hex}"


# Plans and units -----------------------------------------------------------------------------------------------------

UNIT = st.fixed_dictionaries(
    {"uri": TEXT},
    optional={
        "start": COUNT,
        "stop": COUNT,
        "byte_size": COUNT,
        "etag": TEXT,
        "images": COUNT,
        "members": st.lists(TEXT, max_size=4).map(tuple),
    },
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, UNIT), min_size=1, max_size=30))
def test_a_plan_is_read_back_as_it_was_frozen(rows: list[tuple[str, dict[str, Any]]]) -> None:
    units = [Unit(layout.unit_id(i, name), i, **members) for i, (name, members) in enumerate(rows)]
    plan = freeze(units)
    store = LakeStore(f"{memory()}/lake")
    store.put(layout.PLAN_UNITS, plan.data)
    assert list(read_plan(store)) == units
    assert (plan.units, plan.digest) == (len(units), digest_of(plan.data, "p"))
    assert freeze(iter(units)) == plan, "the same units, the same bytes"
    reordered = [Unit(unit.unit_id, i, unit.uri) for i, unit in enumerate(reversed(units))]
    assert len(units) == 1 or freeze(reordered).digest != plan.digest


@settings(max_examples=100, deadline=None)
@given(names=st.lists(TEXT | st.sampled_from(["a", "a/b", "a-b", "..", "", "x" * 200]), min_size=1, max_size=20))
def test_unit_ids_are_unique_stable_and_fit_for_paths(names: list[str]) -> None:
    ids = [layout.unit_id(i, name) for i, name in enumerate(names)]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids) == [layout.unit_id(i, name) for i, name in enumerate(names)]
    for each in ids:
        assert each == layout.safe(each) and len(each) <= 55
        # An attempt's id has no '-', so that the unit's is what stands before the last one.
        assert layout.images(each, "a1").removesuffix(".parquet").rpartition("-")[0] == f"images/{each}"


def put(uri: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, data)
    return uri


def planned(uri: str | list[str], kind: str, limit: int, **more: Any) -> tuple[list[Unit], list[list[Any]]]:
    """The units of a source and the samples of each."""
    source = open_source(schemas.job.Source.model_validate({"uri": uri, "format": kind, "unit_images": limit, **more}))
    units = list(source.plan())
    assert units == list(source.plan()), "the same plan each time"
    assert [unit.unit_index for unit in units] == list(range(len(units)))
    return units, [list(source.read(unit)) for unit in units]


@few
@given(
    files=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=3),
    limit=st.integers(1, 40),
)
def test_units_of_parquet_cover_every_row_once(files: list[tuple[int, int]], limit: int) -> None:
    root, expected = memory(), []
    for number, (rows, group) in enumerate(files):
        data = [b"image %d of %d" % (row, number) for row in range(rows)]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"image": data}), buffer, row_group_size=group)
        put(f"{root}/part-{number}.parquet", buffer.getvalue())
        expected += data
    units, samples = planned(f"{root}/part-*.parquet", "parquet", limit)
    found = [sample.data for part in samples for sample in part]
    assert found == expected
    assert len({sample.image_id for part in samples for sample in part}) == len(expected)
    assert [unit.images for unit in units] == [len(part) for part in samples]
    for unit, part in zip(units, samples, strict=True):
        # A row group is the least that can be read alone.
        assert part and (len(part) <= limit or (unit.stop or 0) - (unit.start or 0) == 1)


@few
@given(
    files=st.lists(st.lists(TEXT, min_size=1, max_size=20), min_size=1, max_size=3),
    limit=st.integers(1, 12),
    form=st.sampled_from(["csv", "jsonl", "parquet"]),
    blank_lines=st.booleans(),
)
def test_units_of_a_list_cover_every_row_once(files: list[list[str]], limit: int, form: str, blank_lines: bool) -> None:
    """The rows hold texts with commas, quotes and newlines, which a slice at a byte offset must not cut."""
    root, uris, expected = memory(), [], []
    image = put(f"{root}/image.png", b"image")
    for number, texts in enumerate(files):
        if form == "csv":  # a file with NUL is no text
            texts = [text.replace("\0", "") for text in texts]
        rows = [{"id": f"{number}/{i}", "uri": image, "note": text} for i, text in enumerate(texts)]
        uris.append(put(f"{root}/list-{number}.{form}", listed(rows, form, blank_lines)))
        expected += [(row["id"], row["note"]) for row in rows]
    units, samples = planned(uris, "list", limit, id="id", attributes=["note"])
    found = [(sample.image_id, sample.attributes["note"]) for part in samples for sample in part]
    if form == "csv":  # where an empty field may be none
        found = [(image_id, note or "") for image_id, note in found]
    assert found == expected
    assert all(sample.data == b"image" for part in samples for sample in part)
    assert [unit.images for unit in units] == [len(part) for part in samples]
    assert all(0 < len(part) <= limit for part in samples)


def listed(rows: list[dict[str, str]], form: str, blank_lines: bool) -> bytes:
    if form == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=7)
        return buffer.getvalue()
    if form == "jsonl":
        return ("\n\n" if blank_lines else "\n").join(json.dumps(row) for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), quoting=csv.QUOTE_ALL, lineterminator="\r\n" if blank_lines else "\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


# Stored maps ---------------------------------------------------------------------------------------------------------

#: Every float32: NaN, infinity, -0, subnormals and the largest.
ANY_MAPS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.floats(width=32))
STEPS = {"float16": 2.0**-12, "uint8": 1 / 510, "int8": 1 / 254}


@settings(max_examples=150, deadline=None)
@given(maps=ANY_MAPS, dtype=st.sampled_from(["float16", "uint8"]), signed=st.booleans())
def test_a_stored_map_is_the_raw_one_but_for_rounding(maps: npt.NDArray[np.float32], dtype: Any, signed: bool) -> None:
    maps = maps if signed else np.abs(maps)
    stored, vmax = arrays.quantise(maps, dtype, signed)
    kind = arrays.stored_dtype(dtype, signed)
    assert stored.dtype.name == kind and vmax.dtype == np.float32
    finite = np.isfinite(maps).all(axis=(1, 2))
    assert np.array_equal(np.isnan(vmax), ~finite)
    assert np.array_equal(vmax[finite], np.abs(maps[finite]).max(axis=(1, 2)))
    hollow = stored[~finite]
    assert np.isnan(hollow).all() if kind == "float16" else not hollow.any()
    metadata, shard = (arrays.encode(stored, {})[name] for name in (arrays.METADATA, arrays.SHARD))
    grid, decoded = arrays.decode(metadata, shard, "x.zarr")
    assert decoded.tobytes() == stored.tobytes()
    raw = decoded[finite].astype(np.float64) * grid.scale * vmax[finite][:, None, None]
    # Quotients and steps are rounded in float32; a subnormal vmax has few digits of its own.
    allowed = STEPS[kind] * vmax[finite].astype(np.float64) * 1.0001 + 2.0**-149
    assert (np.abs(raw - maps[finite]) <= allowed[:, None, None]).all()
    scaled = np.abs(decoded[finite].astype(np.float64)).max(axis=(1, 2), initial=0) * grid.scale
    assert np.allclose(scaled, vmax[finite] > 0), "the largest value is exact"


# Tables and documents ------------------------------------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXT,
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(),
    "bool": st.booleans(),
}
COLUMN = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,12}\Z").map(lambda name: f"x_{name}")


@st.composite
def image_tables(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the images table, and the attributes among them."""
    attributes = draw(st.dictionaries(COLUMN, st.sampled_from(sorted(ATTRIBUTE_TYPES)), max_size=4))
    ids = draw(st.lists(TEXT, min_size=1, max_size=8, unique=True))
    rows = []
    for image_id in ids:
        row: dict[str, Any] = {"image_id": image_id, "uri": draw(TEXT), "status": "ok"}
        optional = {"label": st.integers(0, 3), "label_name": TEXT, "error": TEXT, "byte_offset": COUNT}
        for name, values in {**optional, **{name: VALUES[kind] for name, kind in attributes.items()}}.items():
            row[name] = draw(st.none() | values)
        rows.append(row)
    return rows, attributes


def same(left: Any, right: Any) -> bool:
    both_nan = isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    return both_nan or bool(left == right)


@settings(max_examples=80, deadline=None)
@given(drawn=image_tables())
def test_an_images_table_is_read_back_as_it_was_written(
    drawn: tuple[list[dict[str, Any]], dict[str, str]],
) -> None:
    rows, attributes = drawn
    data = tables.to_parquet(tables.images_table("unit", rows, attributes), {"unit_id": "unit"})
    found = pq.read_table(io.BytesIO(data)).to_pylist()
    for row, read in zip(rows, found, strict=True):
        texts = {"uri", "error", *(name for name, kind in attributes.items() if kind == "string")}
        for name, value in row.items():
            expected = redact(value) if name in texts and value is not None else value
            assert same(read[name], expected), name
        assert read["unit_id"] == "unit"
        assert all(read[name] is None for name in set(read) - set(row) - {"unit_id"})


@few
@given(
    drawn=image_tables(),
    names=st.lists(TEXT, min_size=4, max_size=4, unique=True),
    dtype=st.sampled_from(["float16", "uint8"]),
    data=st.data(),
)
def test_a_lake_is_read_back_as_it_was_written(
    drawn: tuple[list[dict[str, Any]], dict[str, str]], names: list[str], dtype: str, data: st.DataObject
) -> None:
    """Through the sink and the reader: names of every script, any labels and targets."""
    rows, attributes = drawn
    store = LakeStore(f"{memory()}/lake")
    plan = freeze([Unit(layout.unit_id(0, names[0]), 0, names[1])])
    manifest = make_manifest(plan, make_job(), attributes=attributes)
    manifest = create_or_resume(store, manifest, plan).manifest
    unit = next(read_plan(store)).unit_id
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, len(rows) - 1), st.integers(0, 3)), max_size=8, unique=True), label="targets"
    )
    maps = data.draw(
        hnp.arrays(np.float32, (len(pairs), 3, 4), elements=st.floats(0, 2.0**100, width=32)), label="maps"
    )
    numbers = np.arange(len(pairs))
    targets = MapTargets(
        image_index=np.array([image for image, _ in pairs], np.int64),
        target_class=np.array([target for _, target in pairs], np.int32),
        target_name=[names[target] for _, target in pairs],
        target_kind=["class"] * len(pairs),
        target_rank=numbers.astype(np.int32),
        is_label=[None if rows[image]["label"] is None else rows[image]["label"] == target for image, target in pairs],
        is_predicted=numbers % 2 == 0,
        logit=numbers.astype(np.float32),
        probability=numbers.astype(np.float32),
    )
    map_set = MapSet("grad_cam", "layer4", False, targets, maps, statistics(maps))
    sink_for(store, manifest, dtype).write(UnitResult(unit, "a1", "w", rows, [map_set]))
    finalize(store)
    assert verify(store).problems == []
    lake = open_lake(store.uri)
    found = {(row["image_id"], row["target_class"]): (row, raw) for row, raw in lake.heatmaps()}
    assert set(found) == {(rows[image]["image_id"], target) for image, target in pairs}
    for number, (image, target) in enumerate(pairs):
        row, raw = found[rows[image]["image_id"], target]
        assert (row["target_name"], row["target_rank"]) == (names[target], number)
        assert row["is_label"] == targets.is_label[number]
        step = STEPS[arrays.stored_dtype(dtype, False)]  # type: ignore[arg-type]
        np.testing.assert_allclose(raw, maps[number], rtol=0, atol=step * 1.001 * float(row["vmax"]) + 2.0**-149)
    for row in rows:
        assert lake.image(row["image_id"])["label_name"] == row["label_name"]


SECONDS = st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=4)


@settings(max_examples=80, deadline=None)
@given(texts=st.lists(TEXT, min_size=4, max_size=4), seconds=SECONDS, images=st.dictionaries(TEXT, COUNT, max_size=4))
def test_a_document_is_read_back_as_it_was_written(
    texts: list[str], seconds: dict[str, float], images: dict[str, int]
) -> None:
    store = LakeStore(f"{memory()}/lake")
    commit = Commit(
        unit_id="u",
        attempt=texts[0],
        created=texts[1],
        worker=texts[2],
        images=images,
        maps=3,
        objects=[object_info(text, text.encode()) for text in texts],
        seconds=seconds,
    )
    history = [Attempt(attempt="a", when=texts[1], worker=texts[2], kind="died", reason=text) for text in texts]
    record = Quarantine(unit_id="u", created=texts[0], attempts=history)
    for document, path, read in (
        (commit, layout.commit("u"), read_commit),
        (record, layout.quarantine("u"), read_quarantine),
    ):
        store.put(path, to_bytes(document))
        assert read(store, "u") == seal(document)
        assert to_bytes(read(store, "u")) == store.get(path)


@pytest.fixture(autouse=True, scope="module")
def _empty_memory() -> Any:
    yield
    store = fsspec.filesystem("memory").store
    for name in [name for name in store if name.startswith("/properties-")]:
        del store[name]
