from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset import tariterators

from pipeline.sources.base import Sample, UnitError
from pipeline.sources.webdataset import split_name
from schemas.errors import InputError
from tests.pipeline.sources.conftest import Place, read_all, tar_bytes

SHARD = [
    ("0001.jpg", b"first image"),
    ("0001.cls", b"3\n"),
    ("0001.json", json.dumps({"site": "a", "meta": {"camera": 7}}).encode()),
    ("0002.JPG", b"second image"),
    ("0002.cls", b"4"),
    ("0002.json", json.dumps({"site": "b"}).encode()),
]


def test_samples_on_every_store(any_place: Place) -> None:
    data = tar_bytes(SHARD)
    any_place.put("train-000.tar", data)
    any_place.put("train-001.tar", tar_bytes([("x.png", b"third"), ("x.cls", b"0")]))
    source = any_place.source(
        any_place.url("train-{000..001}.tar"), "webdataset", label="cls", attributes=["site", "meta.camera"][:1]
    )
    units = list(source.plan())
    assert [unit.unit_id for unit in units] == ["000000-train-000", "000001-train-001"]
    assert [unit.unit_index for unit in units] == [0, 1]
    assert units[0].byte_size == len(data)
    samples = [sample for unit in units for sample in source.read(unit)]
    assert [(s.image_id, s.data, s.label, s.attributes["site"], s.error) for s in samples] == [
        ("train-000/0001", b"first image", 3, "a", None),
        ("train-000/0002", b"second image", 4, "b", None),
        ("train-001/x", b"third", 0, None, None),
    ]
    for sample in samples[:2]:
        assert sample.byte_offset is not None
        assert sample.byte_size is not None
        assert data[sample.byte_offset : sample.byte_offset + sample.byte_size] == sample.data
        assert sample.uri == units[0].uri


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_hold_behind_long_names(place: Place, kind: int) -> None:
    folder = f"{'d' * 90}/{'e' * 60}" if kind == tarfile.USTAR_FORMAT else f"{'d' * 150}/{'é' * 90}"
    data = tar_bytes([(f"{folder}/a.jpg", b"A" * 700), (f"{folder}/b.jpg", b"B" * 512)], kind=kind)
    uri = place.put("s.tar", data)
    samples = read_all(place.source(uri, "webdataset"))
    assert [sample.image_id for sample in samples] == [f"s/{folder}/a", f"s/{folder}/b"]
    for sample in samples:
        assert data[sample.byte_offset : (sample.byte_offset or 0) + (sample.byte_size or 0)] == sample.data


def test_gzip_has_the_same_samples_without_offsets(place: Place) -> None:
    place.put("s.tar.gz", gzip.compress(tar_bytes(SHARD)))
    samples = read_all(place.source(place.url("s.tar.gz"), "webdataset", label="cls"))
    assert [(s.image_id, s.data, s.label) for s in samples] == [
        ("s.tar.gz/0001", b"first image", 3),
        ("s.tar.gz/0002", b"second image", 4),
    ]
    assert [(sample.byte_offset, sample.byte_size) for sample in samples] == [(None, 11), (None, 12)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d.v1/img.v2.JPG", ("d.v1/img", "v2.jpg")),
        ("./a.b", ("./a", "b")),
        ("noext", None),
        ("d/.hidden.jpg", None),
        (".hidden", None),
        ("__meta__/a.jpg", None),
        ("a.", ("a", "")),
    ],
)
def test_the_key_rule(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def _oracle(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    with path.open("rb") as file:
        members = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
        return [
            (sample["__key__"], {name: value for name, value in sample.items() if not name.startswith("__")})
            for sample in tariterators.group_by_keys(members)
        ]


_KEYS = st.sampled_from(["a", "b", "d/a", "d.x/a", "./c", "__m__"])
_SUFFIXES = st.sampled_from(["jpg", "JPG", "seg.png", "cls", "json", "", "txt"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(_KEYS, _SUFFIXES, st.booleans()), min_size=1, max_size=10))
def test_keys_and_groups_agree_with_the_webdataset_package(place: Place, members: list[tuple[str, str, bool]]) -> None:
    named = [(f"{key}.{suffix}" if dotted else key, b"%d" % n) for n, (key, suffix, dotted) in enumerate(members)]
    # a suffix twice in one sample ends the whole shard there; ours is tested apart
    fresh: list[tuple[str, bytes]] = []
    seen: tuple[str, set[str]] = ("", set())
    for name, data in named:
        split = split_name(name)
        if split is not None:
            seen = seen if seen[0] == split[0] else (split[0], set())
            if split[1] in seen[1]:
                continue
            seen[1].add(split[1])
        fresh.append((name, data))
    uri = place.put("s.tar", tar_bytes(fresh))
    expected = [(key, fields["jpg"]) for key, fields in _oracle(Path(uri)) if "jpg" in fields]
    try:
        samples = read_all(place.source(uri, "webdataset", image="jpg"))
    except InputError:
        assert expected == []
        return
    ours = [(_plain(sample), sample.data) for sample in samples if sample.error is None]
    assert ours == [(key.removeprefix("./"), data) for key, data in expected]


def _plain(sample: Sample) -> str:
    return sample.image_id.removeprefix("s/").partition("#")[0]


def test_only_adjacent_members_group_and_a_late_key_has_an_id_of_its_own(place: Place) -> None:
    uri = place.put("s.tar", tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.png", b"3"), ("b.cls", b"1")]))
    samples = read_all(place.source(uri, "webdataset"))
    assert [(s.image_id, s.data) for s in samples] == [("s/a", b"1"), ("s/b", b"2"), ("s/a#2", b"3"), ("s/b#2", None)]
    assert "no image member, only cls; its key came before" in str(samples[3].error)


def test_the_preferred_image_member_does_not_depend_on_the_order(place: Place) -> None:
    for name, members in {
        "a": [("x.png", b"mask"), ("x.seg.png", b"s"), ("x.jpg", b"photo")],
        "b": [("x.jpg", b"photo"), ("x.png", b"mask")],
    }.items():
        uri = place.put(f"{name}.tar", tar_bytes(members))
        assert [sample.data for sample in read_all(place.source(uri, "webdataset"))] == [b"photo"]
    assert [sample.data for sample in read_all(place.source(uri, "webdataset", image=".PNG"))] == [b"mask"]


def test_what_spoils_a_sample_spoils_no_other(place: Place) -> None:
    good = [("ok.jpg", b"ok"), ("ok.cls", b"1"), ("ok.json", b'{"site": "a"}')]
    members = [
        *(("0.cls", b"1"), ("0.json", b"{}")),
        *(("1.jpg", b"1"), ("1.cls", b"cat"), ("1.json", b"{}")),
        *(("2.jpg", b"2"), ("2.cls", b"2"), ("2.json", b"{not json")),
        *(("3.jpg", b"3"), ("3.JPG", b"3b"), ("3.cls", b"2"), ("3.json", b"{}")),
        *(("4.jpg", b"4"), ("4.cls", b""), ("4.json", b"[" * 100_000)),
        *(("5.jpg", b"5"), ("5.json", b"{}")),
        *good,
    ]
    uri = place.put("s.tar", tar_bytes(members))
    samples = read_all(place.source(uri, "webdataset", label="cls", attributes=["site"]))
    errors = [sample.error for sample in samples]
    for error, part in zip(
        errors,
        ("no image member, only cls, json", "'cat', not a class index", "'2.json' is no readable JSON",
         "'3.jpg' appears twice", "'4.json' is no readable JSON", None, None), strict=True,
    ):  # fmt: skip
        assert (error is None) == (part is None)
        assert part is None or part in str(error)
    assert [sample.data is None for sample in samples] == [error is not None for error in errors]
    assert [sample.label for sample in samples[5:]] == [None, 1]
    assert samples[6].attributes == {"site": "a"}


@pytest.mark.parametrize(
    ("label", "members", "expected"),
    [
        ("cls", {"cls": b" 12\n"}, 12),
        ("txt", {"txt": b"tabby cat\n"}, "tabby cat"),
        ("label", {"label": b"7"}, "7"),
        ("json.label", {"json": b'{"label": 5}'}, 5),
        ("label", {"json": b'{"label": "dog"}'}, "dog"),
        ("json.a.b", {"json": b'{"a": {"b": 2.0}}'}, 2),
        ("json.a.b", {"json": b'{"a.b": 1, "a": {"b": 2}}'}, 1),
        ("json.label", {"json": b'{"label": null}'}, None),
        ("json.label", {"json": b'{"label": true}'}, 1),
    ],
)
def test_labels(place: Place, label: str, members: dict[str, bytes], expected: Any) -> None:
    data = tar_bytes([("x.jpg", b"i"), *((f"x.{suffix}", value) for suffix, value in members.items())])
    (sample,) = read_all(place.source(place.put("s.tar", data), "webdataset", label=label))
    assert (sample.label, sample.error) == (expected, None)
    assert type(sample.label) is type(expected)


@pytest.mark.parametrize("value", [b'{"label": [[1]]}', b'{"label": 1.5}', b'{"label": {"a": 1}}'])
def test_a_label_that_is_neither_index_nor_name(place: Place, value: bytes) -> None:
    data = tar_bytes([("x.jpg", b"i"), ("x.json", value)])
    (sample,) = read_all(place.source(place.put("s.tar", data), "webdataset", label="json.label"))
    assert "neither a class index nor a class name" in str(sample.error)
    assert sample.data is None and sample.status == "label_error"


def test_attributes_come_from_members_first_and_then_from_json(place: Place) -> None:
    record = b'{"site": "json", "camera": {"id": 3}, "json.odd": 1, "none": null}'
    data = tar_bytes([("x.jpg", b"i"), ("x.site", b"member\n"), ("x.json", record), ("x.raw", b"\xff\xfe")])
    names = [
        *("site", {"name": "camera", "field": "json.camera.id"}, {"name": "plain", "field": "camera.id"}),
        *({"name": "odd", "field": "json.odd"}, "none", "raw"),
    ]
    (sample,) = read_all(place.source(place.put("s.tar", data), "webdataset", attributes=names))
    assert sample.attributes == {
        "site": "member", "camera": 3, "plain": 3, "odd": 1, "none": None, "raw": b"\xff\xfe"
    }  # fmt: skip


def test_ids_from_a_field(place: Place) -> None:
    members = [(f"{n}.{suffix}", data) for n, name in enumerate(["p", "q", "p", ""]) for suffix, data in
               (("jpg", b"i"), ("json", json.dumps({"name": name}).encode()))]  # fmt: skip
    uri = place.put("s.tar", tar_bytes(members))
    samples = read_all(place.source(uri, "webdataset", id="name"))
    assert [sample.image_id for sample in samples] == ["p", "q", "p#2", "s/3"]
    assert [sample.error is None for sample in samples] == [True, True, False, False]
    assert "'p' appears again" in str(samples[2].error)


def test_a_link_is_named(place: Place) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            if name == "b.jpg":
                info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
            archive.addfile(info, io.BytesIO())
    samples = read_all(place.source(place.put("s.tar", sink.getvalue()), "webdataset"))
    assert samples[0].error is None
    assert "'b.jpg' is a link to 'a.jpg'" in str(samples[1].error)


def test_names_that_are_no_utf8_stay_distinct(place: Place) -> None:
    data = tar_bytes([("aa.jpg", b"1"), ("ab.jpg", b"2")])
    for old, new in ((b"aa.jpg", b"\xff\xfe.jpg"), (b"ab.jpg", b"\xff\xfd.jpg")):
        header = bytearray(data[data.index(old) : data.index(old) + 512])
        header[: len(new)] = new
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data = data.replace(data[data.index(old) : data.index(old) + 512], bytes(header))
    samples = read_all(place.source(place.put("s.tar", data), "webdataset"))
    assert [sample.image_id for sample in samples] == [r"s/\xff\xfe", r"s/\xff\xfd"]


# Damage -----------------------------------------------------------------------------------------------------------


def _read_until_error(place: Place, data: bytes) -> tuple[list[str], str]:
    # the first shard is checked at plan time; the damage is in the second, as it would be in life
    place.put("s-0.tar", tar_bytes(SHARD))
    place.put("s-1.tar", data)
    source = place.source(place.url("s-{0..1}.tar"), "webdataset", label="cls")
    *_, unit = source.plan()
    samples = []
    with pytest.raises(UnitError) as caught:
        for sample in source.read(unit):
            samples.append(sample.image_id)  # noqa: PERF401 - what came before the error counts
    assert "s-1.tar" in str(caught.value)
    return samples, str(caught.value)


def test_a_cut_inside_a_member(place: Place) -> None:
    data = tar_bytes([("a.jpg", b"a"), ("a.cls", b"1"), ("b.jpg", b"b" * 5000), ("b.cls", b"1")])
    samples, message = _read_until_error(place, data[: data.index(b"bbbb") + 100])
    assert samples == ["s-1/a"]
    assert "cut inside the member 'b.jpg': 100 of 5000 bytes" in message


def test_a_cut_inside_a_member_that_is_skipped(place: Place) -> None:
    data = tar_bytes([("a.jpg", b"a"), ("b.npy", b"b" * 5000), ("c.jpg", b"c")])
    samples, message = _read_until_error(place, data[: data.index(b"bbbb") + 100])
    assert samples == ["s-1/a"]
    assert "damaged or cut near offset" in message


def test_a_cut_between_members_is_found_by_the_missing_end_mark(place: Place) -> None:
    names = [(f"{n}.{suffix}", b"x") for n in range(4) for suffix in ("jpg", "cls")]
    data = tar_bytes(names)
    samples, message = _read_until_error(place, data[: 6 * 1024])  # after 2.cls: three whole samples
    assert samples == ["s-1/0", "s-1/1", "s-1/2"]
    assert "cut at offset 6144, between two members" in message
    # after 2.jpg: whether 2 had a label cannot be known, so it is not given out without one
    samples, _ = _read_until_error(place, data[: 5 * 1024])
    assert samples == ["s-1/0", "s-1/1"]


def test_a_broken_header_is_not_the_end(place: Place) -> None:
    data = bytearray(tar_bytes([(f"{n}.jpg", b"x") for n in range(4)]))
    data[2 * 1024 + 150] ^= 0x15
    samples, message = _read_until_error(place, bytes(data))
    assert samples == ["s-1/0", "s-1/1"]
    assert "damaged or cut near offset 2048" in message


def test_joined_archives_are_not_read_in_part(place: Place) -> None:
    one = tar_bytes([("a.jpg", b"x")])
    samples, message = _read_until_error(place, one + tar_bytes([("b.jpg", b"x")]))
    assert samples == ["s-1/a"]
    assert "goes on after its end-of-archive mark" in message


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_gzip(place: Place, damage: str) -> None:
    whole = tar_bytes([(f"{n}.jpg", bytes([n]) * 4000) for n in range(50)])
    packed = bytearray(gzip.compress(whole, 0))  # stored blocks: most of the archive comes before the damage
    if damage == "cut":
        packed = packed[:-3000]
    else:
        packed[-6] ^= 1  # the checksum at the end
    samples, message = _read_until_error(place, bytes(packed))
    assert samples[:30] == [f"s-1/{n}" for n in range(30)]
    assert "damaged" in message


def test_a_lone_end_block_is_accepted(place: Place) -> None:
    uri = place.put("s.tar", tar_bytes([("a.jpg", b"x")])[: 1024 + 512])
    assert [sample.image_id for sample in read_all(place.source(uri, "webdataset"))] == ["s/a"]


def test_a_damaged_first_shard_does_not_stop_the_plan(place: Place) -> None:
    data = tar_bytes([("a.jpg", b"a" * 5000)])
    place.put("s-0.tar", data[:2000])
    place.put("s-1.tar", tar_bytes(SHARD))
    assert len(list(place.source(place.url("s-*.tar"), "webdataset").plan())) == 2


def test_a_shard_that_changed_since_the_plan(place: Place) -> None:
    uri = place.put("s.tar", tar_bytes(SHARD))
    source = place.source(uri, "webdataset")
    (unit,) = source.plan()
    place.put("s.tar", tar_bytes([*SHARD, ("3.jpg", b"new")]) + b"\0" * 512)
    with pytest.raises(InputError, match="changed since the plan"):
        next(source.read(unit))


# Wrong input ------------------------------------------------------------------------------------------------------


def _plan_error(place: Place, uri: str, **config: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(place.source(uri, "webdataset", **config).plan())
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"PAR1....", "a Parquet file; set format: parquet"),
        (b"uri,label\na.jpg,1\n", "a text file; set format: list"),
        (b"\xff\xd8\xff\xe0JFIF", "a JPEG file; set format: folder"),
        (b"", "is empty"),
        (b"BZh91AY&SY", "a bzip2 file; give files of kind tar or gzip"),
        (b"\x00\x01\x02\x03" * 300, "of an unknown kind"),
    ],
)
def test_another_format_is_named(place: Place, data: bytes, part: str) -> None:
    message = _plan_error(place, place.put("s.tar", data))
    assert message.startswith("source.format: 'webdataset' reads tar or gzip files, but ")
    assert part in message


def test_a_gzip_file_that_is_no_tar(place: Place) -> None:
    assert "gzip file that holds no tar" in _plan_error(place, place.put("s.tgz", gzip.compress(b"a,b\n" * 500)))


def test_a_shard_without_samples(place: Place) -> None:
    assert "hold no sample" in _plan_error(place, place.put("s.tar", tar_bytes([("README", b"x")])))
    place.put("t-1.tar", tar_bytes(SHARD))
    place.put("t-0.tar", tar_bytes([]))
    assert len(list(place.source(place.url("t-{0,1}.tar"), "webdataset").plan())) == 2


def test_fields_that_no_sample_has(place: Place) -> None:
    uri = place.put("s.tar", tar_bytes(SHARD))
    assert "source.label: none of the first 2 samples" in _plan_error(place, uri, label="clss")
    assert "(did you mean cls?)" in _plan_error(place, uri, label="clss")
    assert "source.attributes.sites" in _plan_error(place, uri, attributes=["sites"])
    assert "json.site" in _plan_error(place, uri, attributes=["sites"])
    assert "source.id" in _plan_error(place, uri, id="name")
    assert "source.image: none of the first 2 samples" in _plan_error(place, uri, image="jpgg")
    uri = place.put("t.tar", tar_bytes([("a.npy", b"x")]))
    assert "has an image member; their members are npy" in _plan_error(place, uri)


def test_a_label_that_only_some_samples_have_is_planned(place: Place) -> None:
    uri = place.put("s.tar", tar_bytes([("a.jpg", b"a"), ("b.jpg", b"b"), ("b.cls", b"1")]))
    assert [sample.label for sample in read_all(place.source(uri, "webdataset", label="cls"))] == [None, 1]


def test_a_shard_is_not_held_whole(place: Place) -> None:
    import tracemalloc

    size, count = 200_000, 100
    uri = place.put("s.tar", tar_bytes([(f"{n:04d}.jpg", bytes([n % 251]) * size) for n in range(count)]))
    source = place.source(uri, "webdataset")
    (unit,) = source.plan()
    tracemalloc.start()
    total = sum(len(sample.data or b"") for sample in source.read(unit))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size * count
    assert peak < 4 << 20


def test_wherever_a_shard_is_cut_no_sample_is_wrong_and_none_is_lost_in_silence(place: Place) -> None:
    members = [(f"{n}.{suffix}", b"%d" % n * 300) for n in range(3) for suffix in ("jpg", "cls")]
    data = tar_bytes(members)
    end = 6 * 1024  # the last member's end; from one block behind it on the shard is whole
    whole = [(f"s/{n}", b"%d" % n * 300) for n in range(3)]
    place.put("s.tar", data)
    source = place.source(place.url("s.tar"), "webdataset", label="cls")
    unit = replace(next(source.plan()), etag=None)
    for cut in range(0, len(data), 128):
        place.put("s.tar", data[:cut])
        samples = []
        complete = True
        try:
            for sample in source.read(unit):
                samples.append((sample.image_id, sample.data))
                assert sample.label is not None
        except UnitError:
            complete = False
        assert complete == (cut >= end + 512)
        assert samples == whole[: len(samples)]
        assert not complete or len(samples) == 3
