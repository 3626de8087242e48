from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import parquet
from pipeline.sources.base import UnitError
from pipeline.sources.parquet import image_column
from schemas.errors import InputError
from tests.pipeline.sources.conftest import Place, read_all


def _bytes(columns: dict[str, Any] | pa.Table, **options: Any) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _images(count: int, start: int = 0) -> list[bytes]:
    return [b"image %d" % n for n in range(start, start + count)]


def test_rows_on_every_store(any_place: Place) -> None:
    any_place.put("d/a.parquet", _bytes({"image": _images(5), "label": [0, 1, 2, None, 4]}, row_group_size=2))
    any_place.put("d/b.parquet", _bytes({"image": _images(1, 5), "label": [7]}))
    source = any_place.source(any_place.url("d/*.parquet"), "parquet", label="label", unit_images=2)
    units = list(source.plan())
    assert [unit.images for unit in units] == [2, 2, 1, 1]
    assert [(u.start, u.stop, u.unit_id) for u in units] == [
        (0, 1, "000000-a-0"), (1, 2, "000001-a-1"), (2, 3, "000002-a-2"), (0, 1, "000003-b-0")
    ]  # fmt: skip
    samples = [sample for unit in units for sample in source.read(unit)]
    assert [(s.image_id, s.data, s.label, s.byte_offset, s.byte_size) for s in samples] == [
        *((f"a/{n}", b"image %d" % n, [0, 1, 2, None, 4][n], None, 7) for n in range(5)),
        ("b/0", b"image 5", 7, None, 7),
    ]
    assert samples[0].uri == units[0].uri


def test_units_are_runs_of_row_groups(place: Place) -> None:
    uri = place.put("a.parquet", _bytes({"image": _images(10)}, row_group_size=2))
    for limit, expected in ((5, [(0, 2), (2, 4), (4, 5)]), (1, [(n, n + 1) for n in range(5)]), (99, [(0, 5)])):
        source = place.source(uri, "parquet", unit_images=limit)
        assert [(unit.start, unit.stop) for unit in source.plan()] == expected
        assert [sample.image_id for sample in read_all(source)] == [f"a/{n}" for n in range(10)]


def test_hugging_face_images(place: Place) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    place.put("x/outside.jpg", b"outside")
    images = [{"bytes": b"in", "path": "a.jpg"}, {"bytes": None, "path": "outside.jpg"}, None,
              {"bytes": None, "path": None}, {"bytes": None, "path": "gone.jpg"}]  # fmt: skip
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table(
        {"photo": pa.array(images, kind), "label": [1, 0, 1, 0, 1], "site": ["a", "b", None, "d", "e"]}
    ).replace_schema_metadata({"huggingface": json.dumps(features)})
    uri = place.put("x/t.parquet", _bytes(table))
    samples = read_all(place.source(uri, "parquet", label="label", attributes=["site"]))
    assert [sample.data for sample in samples] == [b"in", b"outside", None, None, None]
    assert [sample.label for sample in samples] == [1, 0, 1, 0, 1]
    assert [sample.attributes["site"] for sample in samples] == ["a", "b", None, "d", "e"]
    assert samples[1].uri == place.url("x/outside.jpg")
    assert (samples[1].byte_offset, samples[1].byte_size) == (0, 7)
    assert [sample.error is None for sample in samples] == [True, True, False, False, False]
    assert "column 'photo' is null" in str(samples[2].error)
    assert "gone.jpg' does not exist" in str(samples[4].error)


def test_uris_are_relative_to_the_file_and_read_in_order(any_place: Place) -> None:
    for n in range(40):
        any_place.put(f"img/{n}.jpg", _images(1, n)[0])
    uris = [f"img/{n}.jpg" for n in range(39)] + [any_place.url("img/39.jpg"), "img/none.jpg"]
    any_place.put("t.parquet", _bytes({"image_path": uris, "cls": pa.array(["cat"] * 41).dictionary_encode()}))
    samples = read_all(any_place.source(any_place.url("t.parquet"), "parquet", label="cls"))
    assert [sample.data for sample in samples] == [*_images(40), None]
    assert samples[39].uri == any_place.url("img/39.jpg")
    assert samples[7].uri.endswith("/img/7.jpg")
    assert [sample.image_id for sample in samples[:2]] == ["t/0", "t/1"]
    assert "img/none.jpg" in str(samples[40].error)
    assert samples[40].label == "cat"


_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": _STRUCT, "thumb": pa.binary(), "path": pa.string()}, ("a", "struct")),
        ({"x": pa.large_binary(), "path": pa.string()}, ("x", "bytes")),
        ({"text": pa.string(), "path": pa.string(), "image": pa.string()}, ("image", "uri")),
        ({"image": pa.int64(), "path": pa.large_string()}, ("path", "uri")),
    ],
)
def test_the_image_column_is_found(columns: dict[str, pa.DataType], expected: tuple[str, str]) -> None:
    assert image_column(pa.schema(columns.items()), None, "t") == expected


@pytest.mark.parametrize(
    ("columns", "wanted", "part"),
    [
        ({"a": pa.binary(), "b": pa.binary()}, None, "several columns that may hold images; name one of a, b"),
        ({"text": pa.string(), "n": pa.int64()}, None, "no column of 't' seems to hold images; name one of: text (str"),
        ({"image": pa.binary()}, "imag", r"has no column 'imag' (did you mean image?)"),
        ({"image": pa.int64()}, "image", "the column 'image' of 't' is of type int64"),
    ],
)  # fmt: skip
def test_an_image_column_that_is_not_clear(columns: dict[str, pa.DataType], wanted: str | None, part: str) -> None:
    with pytest.raises(InputError) as caught:
        image_column(pa.schema(columns.items()), wanted, "t")
    assert str(caught.value).startswith("source.image: ")
    assert part in str(caught.value)


def test_fields_may_enter_structs_and_have_dots(place: Place) -> None:
    columns = {
        "image": _images(2),
        "meta": [{"site": "a", "n": {"x": 1}}, {"site": "b", "n": None}],
        "a.b": [1.5, None],
    }
    uri = place.put("t.parquet", _bytes(columns))
    attributes = [{"name": name, "field": path} for name, path in
                  (("site", "meta.site"), ("x", "meta.n.x"), ("ab", "a.b"))]  # fmt: skip
    samples = read_all(place.source(uri, "parquet", attributes=attributes))
    assert [sample.attributes for sample in samples] == [
        {"site": "a", "x": 1, "ab": 1.5}, {"site": "b", "x": None, "ab": None}
    ]  # fmt: skip


def test_ids_from_a_column(place: Place) -> None:
    uri = place.put("t.parquet", _bytes({"image": _images(4), "id": ["a", "b", "a", None]}))
    samples = read_all(place.source(uri, "parquet", id="id"))
    assert [sample.image_id for sample in samples] == ["a", "b", "a#2", "t/3"]
    assert [sample.error is None for sample in samples] == [True, True, False, False]
    assert [sample.data is None for sample in samples] == [False, False, True, True]


def test_a_label_of_another_type_is_the_rows_error(place: Place) -> None:
    uri = place.put("t.parquet", _bytes({"image": _images(2), "y": [2.0, 1.5]}))
    samples = read_all(place.source(uri, "parquet", label="y"))
    assert samples[0].label == 2
    assert "1.5, neither a class index nor a class name" in str(samples[1].error)


def _plan_error(place: Place, uri: str, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(place.source(uri, "parquet", **config).plan())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_input(place: Place) -> None:
    uri = place.put("t.parquet", _bytes({"image": _images(2), "label": [0, 1]}))
    assert "source.label: " in _plan_error(place, uri, label="labels")
    assert "(did you mean label?)" in _plan_error(place, uri, label="labels")
    assert "source.attributes.site: " in _plan_error(place, uri, attributes=["site"])
    text = place.put("t.csv", b"uri,label\n")
    assert "source.format: 'parquet' reads Parquet files, but" in _plan_error(place, text)
    assert "a text file; set format: list" in _plan_error(place, text)
    assert "is empty" in _plan_error(place, place.put("e.parquet", b""))
    assert "hold no row" in _plan_error(place, place.put("z.parquet", _bytes({"image": pa.array([], pa.binary())})))
    cut = place.put("c.parquet", _bytes({"image": _images(2)})[:-20])
    assert "c.parquet' is cut or damaged" in _plan_error(place, cut)


def test_damage_is_the_units_and_spares_what_came_before(place: Place) -> None:
    noise = [bytes([n]) * 4000 for n in range(6)]
    data = bytearray(_bytes({"image": noise}, row_group_size=2, compression="none", use_dictionary=False,
                            write_page_checksum=True))  # fmt: skip
    place.put("t.parquet", bytes(data))
    source = place.source(place.url("t.parquet"), "parquet")
    (unit,) = source.plan()
    start = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    place.put("t.parquet", bytes(data))
    unit = type(unit)(unit.unit_id, 0, unit.uri, unit.start, unit.stop)
    samples = []
    with pytest.raises(UnitError, match=r"t\.parquet is damaged in row group 1"):
        for sample in source.read(unit):
            samples.append(sample.data)  # noqa: PERF401 - what came before the error counts
    assert samples == noise[:2]


def test_a_file_that_changed_since_the_plan(place: Place) -> None:
    uri = place.put("t.parquet", _bytes({"image": _images(2)}))
    source = place.source(uri, "parquet")
    (unit,) = source.plan()
    place.put("t.parquet", _bytes({"image": _images(30)}))
    with pytest.raises(InputError, match="changed since the plan"):
        next(source.read(unit))


def test_a_row_group_is_not_read_whole_and_other_columns_not_at_all(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, rows = 50_000, 400
    random = [bytes([n % 251, n // 251]) * (size // 2) for n in range(rows)]
    table = {"image": random, "junk": [value[::-1] for value in random]}
    uri = place.put("t.parquet", _bytes(table, compression="none", use_dictionary=False, write_batch_size=8))
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 1 << 20)
    opened: list[_Counting] = []

    def counting(fs: Any, path: str) -> Any:
        opened.append(_Counting(path))
        return opened[-1]

    monkeypatch.setattr(parquet, "open_random", counting)
    source = place.source(uri, "parquet", image="image")
    (unit,) = source.plan()
    assert opened[-1].total < 100_000  # a plan reads footers
    samples = source.read(unit)
    assert next(samples).data == random[0]
    assert opened[-1].total < size * rows // 4
    assert sum(1 for _ in samples) == rows - 1
    assert opened[-1].total < size * rows * 1.3


class _Counting(io.FileIO):
    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.total += len(data)
        return data
