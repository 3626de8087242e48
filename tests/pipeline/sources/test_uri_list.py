from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sources import fetch
from pipeline.sources.base import Sample
from pipeline.sources.fetch import ImageReader
from pipeline.sources.manifest import CsvManifest, open_manifest
from schemas.errors import InputError
from tests.pipeline.sources.conftest import Place, read_all

Rows = list[dict[str, Any]]


def _csv(rows: Rows, **options: Any) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _jsonl(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=4)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_images_on_every_store(any_place: Place, kind: str) -> None:
    rows = [{"uri": f"img/{n}.jpg", "label": f"class {n % 3}", "site": "ab"[n % 2]} for n in range(9)]
    for n in range(9):
        any_place.put(f"lists/img/{n}.jpg", b"image %d" % n)
    rows.append({"uri": any_place.url("lists/img/gone.jpg"), "label": "class 1", "site": "a"})
    any_place.put(f"lists/all.{kind}", WRITERS[kind](rows))
    source = any_place.source(
        any_place.url(f"lists/all.{kind}"), "list", label="label", attributes=["site"], unit_images=4
    )
    units = list(source.plan())
    assert len(units) == 3
    assert len({unit.unit_id for unit in units}) == 3
    assert [unit.images for unit in units] == [4, 4, 2]
    samples = [sample for unit in units for sample in source.read(unit)]
    assert [sample.image_id for sample in samples] == [row["uri"] for row in rows]
    assert [sample.data for sample in samples] == [*(b"image %d" % n for n in range(9)), None]
    assert [sample.label for sample in samples] == [row["label"] for row in rows]
    assert [sample.attributes["site"] for sample in samples] == [row["site"] for row in rows]
    assert samples[0].uri.endswith("/lists/img/0.jpg")
    assert (samples[0].byte_offset, samples[0].byte_size) == (0, 7)
    assert "gone.jpg' does not exist" in str(samples[9].error)
    # units may be read alone and in any order
    assert [sample.image_id for sample in source.read(units[1])] == [row["uri"] for row in rows[4:8]]


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_csv_slices_are_the_rows_of_the_whole(place: Place, texts: list[str], end: str, mark: bool, all_: bool) -> None:
    rows = [{"uri": f"{n}.jpg", "text": text} for n, text in enumerate(texts)]
    quoting = csv.QUOTE_ALL if all_ else csv.QUOTE_MINIMAL
    data = (b"\xef\xbb\xbf" if mark else b"") + _csv(rows, lineterminator=end, quoting=quoting)
    manifest = open_manifest(place.put("m.csv", data), {})
    whole = list(manifest.records())
    assert [record.values for record in whole] == [{"uri": row["uri"], "text": row["text"] or None} for row in rows]
    for record in whole:
        assert [again.values for again in manifest.records(record.start, record.stop)] == [record.values]
    assert whole[-1].stop == len(data)


def test_a_slice_is_read_without_what_is_before_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"uri": f"{n:06d}.jpg", "pad": "x" * 100} for n in range(2000)]
    manifest = open_manifest(place.put("m.csv", _csv(rows)), {})
    records = list(manifest.records())
    parsed = 0

    def counted(self: CsvManifest, *args: Any, **more: Any) -> Any:
        nonlocal parsed
        for record in rows_of(self, *args, **more):
            parsed += 1
            yield record

    rows_of = CsvManifest._rows
    monkeypatch.setattr(CsvManifest, "_rows", counted)
    got = list(manifest.records(records[1990].start, records[1994].stop))
    assert [record.values["uri"] for record in got] == [f"{n:06d}.jpg" for n in range(1990, 1995)]
    assert parsed == 5


@pytest.mark.parametrize("column", ["uri", "path", "file_name", "image"])
def test_the_columns_that_hold_uris(place: Place, column: str) -> None:
    place.put("a.jpg", b"A")
    uri = place.put("m.csv", _csv([{"text": "no", column: "a.jpg"}]))
    assert [sample.data for sample in read_all(place.source(uri, "list"))] == [b"A"]
    uri = place.put("n.csv", _csv([{"uri": "no.jpg", "other": "a.jpg"}]))
    assert [sample.data for sample in read_all(place.source(uri, "list", image="other"))] == [b"A"]


def test_typed_labels_and_nested_fields(place: Place) -> None:
    rows = [
        {"uri": "a.jpg", "y": {"index": 3}, "meta": {"site": "s"}},
        {"uri": "a.jpg?", "y": {"index": None}, "meta": {}},
        {"uri": "b.jpg", "y": {"index": [[1]]}, "meta": {"site": "t"}},
    ]
    place.put("a.jpg", b"A")
    uri = place.put("m.jsonl", _jsonl(rows))
    samples = read_all(place.source(uri, "list", label="y.index", attributes=[{"name": "site", "field": "meta.site"}]))
    assert [sample.label for sample in samples] == [3, None, None]
    assert [sample.attributes["site"] for sample in samples] == ["s", None, "t"]
    assert "[1], neither a class index nor a class name" in str(samples[2].error)
    assert samples[2].data is None


def test_a_csv_label_of_digits_stays_text(place: Place) -> None:
    place.put("a.jpg", b"A")
    uri = place.put("m.csv", b"uri,label\na.jpg,7\nb.jpg,\n")
    assert [sample.label for sample in read_all(place.source(uri, "list", label="label"))] == ["7", None]


def test_ids_are_prefixed_by_folder_where_manifests_lie_in_several(place: Place) -> None:
    for folder in ("train", "val"):
        place.put(f"{folder}/1.jpg", folder.encode())
        place.put(f"{folder}/m.csv", b"uri\n1.jpg\n")
    samples = read_all(place.source(place.url("{train,val}/m.csv"), "list"))
    assert [(sample.image_id, sample.data) for sample in samples] == [("train/1.jpg", b"train"), ("val/1.jpg", b"val")]


def test_ids_from_a_column(place: Place) -> None:
    place.put("1.jpg", b"x")
    uri = place.put("m.csv", b"uri,id\n1.jpg,a\n1.jpg,b\n")
    assert [(s.image_id, s.data) for s in read_all(place.source(uri, "list", id="id"))] == [("a", b"x"), ("b", b"x")]


def test_relative_uris_may_climb(place: Place) -> None:
    place.put("img/1.jpg", b"x")
    uri = place.put("lists/m.csv", b"uri\n../img/1.jpg\n")
    (sample,) = read_all(place.source(uri, "list"))
    assert (sample.image_id, sample.uri, sample.data) == ("../img/1.jpg", place.url("img/1.jpg"), b"x")


def _plan_error(place: Place, uri: str | list[str], **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(place.source(uri, "list", **config).plan())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"uri,label\na.jpg,1\nb.jpg\n", "line 3 of"),
        (b'uri,label\n"a\nb.jpg",1\nc.jpg,1,2\n', "line 4 of"),
        (b'uri\n"a.jpg\n', "unexpected end of data"),
        (b"uri,uri\na,b\n", "the column 'uri' is named twice"),
        (b"uri\n" + b"a.jpg\n" * 500 + b"\xff\xfe.jpg\n", "byte 3004 of"),
        ("uri\nhäuser.jpg\n".encode("latin-1"), "a non-UTF-8 text file; write it as UTF-8"),
        ("uri\na.jpg\n".encode("utf-16"), "a UTF-16 text file; write it as UTF-8"),
        (b"uri,label\n", "holds no row"),
        (b"uri,label\na.jpg,1\n,2\n", "line 3 of"),
        (b"name,label\nx,1\n", "none of the columns uri, path, file_name, image"),
        (b"PK\x03\x04", "a zip file"),
        (b"", "is empty"),
        (b'{"uri": "a.jpg"}\n{"uri": \n', "line 2 of"),
        (b'{"uri": "a.jpg"}\n[1]\n', "line 2 of"),
    ],
)
def test_a_wrong_manifest_names_the_line(place: Place, data: bytes, part: str) -> None:
    message = _plan_error(place, place.put("m.txt", data))
    assert part in message
    assert "m.txt" in message


def test_missing_columns(place: Place) -> None:
    uri = place.put("m.csv", b"uri,label,site\na.jpg,1,x\n")
    assert "source.label: " in _plan_error(place, uri, label="lable")
    assert "no column 'lable' (did you mean label?)" in _plan_error(place, uri, label="lable")
    assert "source.attributes.camera: " in _plan_error(place, uri, attributes=["camera"])
    assert "source.image: " in _plan_error(place, uri, image="url")
    assert "source.id: " in _plan_error(place, uri, id="key")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_an_id_twice_names_both_rows(place: Place, kind: str) -> None:
    rows = [{"uri": f"{n}.jpg"} for n in (0, 1, 2, 1)]
    message = _plan_error(place, place.put(f"m.{kind}", WRITERS[kind](rows)), unit_images=2)
    lines = {"csv": ("line 5", "line 3"), "jsonl": ("line 4", "line 2"), "parquet": ("row 3", "row 1")}[kind]
    assert "'1.jpg'" in message
    assert message.index(lines[0]) < message.index(lines[1])
    place.put("n.csv", b"uri\nmemory://x/1.jpg\n")
    place.put("o.csv", b"uri\nmemory://x/1.jpg\n")
    assert "o.csv' has the image id 'memory://x/1.jpg' that line 2 of" in _plan_error(
        place, [place.url("n.csv"), place.url("o.csv")]
    )


def test_a_manifest_that_changed_since_the_plan(place: Place) -> None:
    uri = place.put("m.csv", b"uri\na.jpg\n")
    source = place.source(uri, "list")
    (unit,) = source.plan()
    place.put("m.csv", b"uri\nb.jpg\nc.jpg\n")
    with pytest.raises(InputError, match="changed since the plan"):
        next(source.read(unit))


def test_options_of_a_remote_manifest_are_not_given_to_other_stores(place: Place) -> None:
    reader = fetch.ImageReader("s3://b/m.csv", {"key": "secret"})
    assert reader.resolve("a.jpg") == "s3://b/a.jpg"
    place.put("a.jpg", b"A")
    sample = Sample("x", place.url("a.jpg"), None)
    assert reader.fill(sample).data == b"A"


def test_a_store_that_fails_for_now_fails_the_unit_and_not_the_image(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    from pipeline.sources.storage import StorageError

    def slow(self: LocalFileSystem, path: str, **more: Any) -> bytes:
        raise TimeoutError("no answer")

    uri = place.put("m.csv", b"uri\na.jpg\n")
    source = place.source(uri, "list")
    (unit,) = source.plan()
    monkeypatch.setattr(LocalFileSystem, "cat_file", slow)
    with pytest.raises(StorageError, match=r"a\.jpg' could not be read .*no answer"):
        list(source.read(unit))


def test_reading_ahead_is_bounded_and_ends_with_its_reader(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(60):
        place.put(f"{n}.jpg", b"%d" % n)
    uri = place.put("m.csv", _csv([{"uri": f"{n}.jpg"} for n in range(60)]))
    source = place.source(uri, "list")
    (unit,) = source.plan()
    begun = 0
    fill = fetch.ImageReader.fill

    def counted(self: fetch.ImageReader, sample: Sample) -> Sample:
        nonlocal begun
        begun += 1
        return fill(self, sample)

    monkeypatch.setattr(fetch.ImageReader, "fill", counted)
    before = threading.active_count()
    samples = source.read(unit)
    assert next(samples).data == b"0"
    assert begun <= 17
    samples.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


class Web(BaseHTTPRequestHandler):
    """Gives a few bytes, or the status that the path asks for."""

    def do_GET(self) -> None:
        status = int(self.path.strip("/").partition(".")[0])
        body = b"bytes" if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_url_that_has_expired_is_that_image_alone(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        reader = ImageReader(str(tmp_path / "list.csv"), {})
        samples = {
            status: reader.fill(Sample("a", f"{base}/{status}.jpg?sig=secret", None))
            for status in (200, 401, 403, 404, 410)
        }
        server.shutdown()
    assert samples.pop(200).data == b"bytes"
    for sample in samples.values():
        assert sample.data is None and sample.error is not None and "secret" not in sample.error
