"""Shards, tables and lists that are damaged or hold what they should not: what each is, and what has to come of it."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile import encode, picture

#: Names that an image may have, in whatever holds it.
NAMES = (
    "with blanks  in it",
    "quote ' and \" and `",
    "new\nline and\ttab",
    "n" * 500,
    "日本語 ünïcode 🦆",
    "a::b",
    "%2e%2e%2f",
    "glob*?[x]{y,z}",
    "# hash ; semicolon & ampersand",
    "$(touch evil)",
    "-rf",
    " blanks around ",
)


@dataclass(frozen=True)
class Container:
    """A file of ``format``, and what reading it must give.

    ``good`` are names (of members or rows, behind the container's own in the image ids) and bytes of the images that
    are there, ``bad`` names and patterns of the errors of those that are not. ``ends`` is a pattern of the error of the
    container as a whole, raised by ``plan`` where ``at_plan``. ``label`` is the field of labels, if they are read.
    """

    data: bytes
    format: str = "webdataset"
    good: dict[str, bytes] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    ends: str | None = None
    at_plan: bool = False
    label: str | None = None


@functools.cache
def image(seed: int) -> bytes:
    """A small image of its own for every seed."""
    return encode(picture(1000 + seed), "PNG")


@functools.cache
def containers() -> dict[str, Container]:
    """All hostile containers by file name."""
    return {**_tars(), **_odd_members(), **_damaged_tars(), **_parquets(), **_lists()}


def tar(members: Sequence[tuple[str, bytes] | tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive of (name, bytes), and of headers without bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def numbered(count: int) -> list[tuple[str, bytes]]:
    """Members ``0.png``, ``1.png``, ..."""
    return [(f"{number}.png", image(number)) for number in range(count)]


def _good(*numbers: int) -> dict[str, bytes]:
    return {str(number): image(number) for number in numbers}


def _tars() -> dict[str, Container]:
    twice = [("a.png", image(0)), ("b.png", image(1)), ("a.png", image(2)), ("c.png", image(3)), ("c.png", image(4))]
    places = ("/etc/evil", "../evil", "../../../../../../tmp/evil", "a/../../evil", "./fine")
    members = [(f"{place}.png", image(number)) for number, place in enumerate(places)]
    by_place = {place.removeprefix("./"): image(number) for number, place in enumerate(places)}
    by_name = {name: image(number) for number, name in enumerate(NAMES)}
    return {
        "repeated keys.tar": Container(
            tar(twice), good={"a": image(0), "b": image(1), "a#2": image(2)}, bad={"c": "appears twice"}
        ),
        "places.tar": Container(tar(members), good=by_place),
        "names.tar": Container(tar([(f"{name}.png", data) for name, data in by_name.items()]), good=by_name),
        "names in extensions.tar": Container(
            tar([(f"{name}.png", data) for name, data in by_name.items()], tarfile.PAX_FORMAT), good=by_name
        ),
        "not utf-8.tar": Container(
            _renamed(tar([("xx.png", image(0)), ("yy.png", image(1))]), {b"xx": b"\xff\xfe", b"yy": b"\xc3\x28"}),
            good={r"\xff\xfe": image(0), r"\xc3(": image(1)},
        ),
        "no members.tar": Container(tar([])),
        "no images.tar": Container(tar([("0.cls", b"1"), ("README", b"x")]), bad={"0": "no image member"}),
        "packed.tar.gz": Container(gzip.compress(tar(numbered(3))), good=_good(0, 1, 2)),
    }


def _renamed(archive: bytes, names: dict[bytes, bytes]) -> bytes:
    """Put other bytes into members' names, which Python would not write."""
    data = bytearray(archive)
    for old, new in names.items():
        data[data.index(old) : data.index(old) + len(new)] = new
    return summed(data)


def summed(data: bytearray) -> bytes:
    """Set the checksum of every header."""
    for place in range(0, len(data) - 511, 512):
        if data[place + 257 : place + 262] == b"ustar":
            data[place + 148 : place + 156] = b" " * 8
            data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])
    return bytes(data)


def _header(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def _odd_members() -> dict[str, Container]:
    odd = [
        ("0.png", image(0)),
        _header("hard.png", tarfile.LNKTYPE, "0.png"),
        _header("soft.png", tarfile.SYMTYPE, "/etc/passwd"),
        _header("loop.png", tarfile.SYMTYPE, "loop.png"),
        _header("character.png", tarfile.CHRTYPE),
        _header("block.png", tarfile.BLKTYPE),
        _header("pipe.png", tarfile.FIFOTYPE),
        _header("folder.png", tarfile.DIRTYPE),
        ("1.png", image(1)),
    ]
    return {
        "odd members.tar": Container(
            tar(odd),
            good=_good(0, 1),
            bad={"hard": "link to '0.png'", "soft": "link to '/etc/passwd'", "loop": "link to 'loop.png'"}
            | dict.fromkeys(("character", "block", "pipe"), "device or pipe"),
        ),
        # A terabyte of zeros in half a kilobyte.
        "sparse bomb.tar": Container(_sparse_bomb(), good=_good(0, 2), bad={"1": "more than the limit"}),
    }


def _sparse_bomb() -> bytes:
    data = bytearray(tar([("0.png", image(0)), ("1.png", b"x" * 512), ("2.png", image(2))]))
    place = data.index(b"1.png")
    data[place + 156] = ord("S")
    data[place + 386 : place + 410] = b"%011o\0%011o\0" % (0, 512)
    data[place + 483 : place + 495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    return summed(data)


def _sized(size: bytes) -> bytes:
    """Four members, of which the third's header says ``size``."""
    data = bytearray(tar(numbered(4)))
    place = data.index(b"2.png")
    data[place + 124 : place + 136] = size
    return summed(data)


def _damaged_tars() -> dict[str, Container]:
    whole = tar(numbered(4))
    third = whole.index(b"2.png")
    endless = tar([_header("x", tarfile.XHDTYPE) for _ in range(1500)] + [_header("0.png", tarfile.REGTYPE)])
    broken = bytearray(whole)
    broken[third + 150] ^= 0x15
    packed = gzip.compress(whole, 0)
    sizes = {
        "negative size.tar": b"\xff" * 11 + b"\0",
        "size minus one.tar": b"\xff" * 12,
        "size of a terabyte.tar": b"\x80" + (1 << 40).to_bytes(11, "big"),
        "size of petabytes.tar": b"\x80" + (1 << 55).to_bytes(11, "big"),
        "size beyond numbers.tar": b"\x80" + b"\x7f" * 11,
        "size in no digits.tar": b"zzzzzzzzzzz\0",
    }
    return {
        "no bytes.tar": Container(b"", ends="no readable tar"),
        "garbage.tar": Container(image(0) * 3, ends="no readable tar"),
        "garbage.tar.gz": Container(gzip.compress(b"garbage" * 999), ends="no readable tar"),
        "cut in a member.tar": Container(whole[: third + 700], good=_good(0, 1), ends="cut inside the member '2.png'"),
        "cut in a header.tar": Container(whole[: third + 100], good=_good(0, 1), ends="damaged or cut|cut at"),
        "cut between members.tar": Container(whole[:third], good=_good(0, 1), ends="between two members"),
        "broken header.tar": Container(bytes(broken), good=_good(0, 1), ends="damaged or cut"),
        "cut.tar.gz": Container(packed[: len(packed) // 2], good=_good(0, 1), ends="damaged|cut"),
        "joined.tar": Container(whole + tar([("9.png", image(9))]), good=_good(0, 1, 2, 3), ends="goes on after"),
        "endless extensions.tar": Container(endless, ends="no readable tar|damaged"),
        **{
            name: Container(
                _sized(size), good=_good(0, 1), bad={"2": "limit"} if "terabyte" in name else {}, ends="damaged"
            )
            for name, size in sizes.items()
        },
    }


def table(columns: dict[str, Any], **options: Any) -> bytes:
    """A Parquet file of the columns."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def _parquets() -> dict[str, Container]:
    data = [image(number) for number in range(6)]
    structs = [{"bytes": data[0], "path": "x"}, None, {"bytes": None, "path": None}, {"bytes": data[3], "path": None}]
    plain = table({"image": data, "n": range(6)}, row_group_size=2, compression="none", use_dictionary=False)
    broken = bytearray(plain)
    place = plain.index(data[2]) - 60  # the page's header is before its values
    broken[place : place + 60] = b"\xff" * 60
    unreadable = pa.StringArray.from_buffers(
        2, pa.py_buffer(b"\0\0\0\0\4\0\0\0\7\0\0\0"), pa.py_buffer(b"\xff\xfe\xfd\xfca.p")
    )
    null = "is null in this row"
    return {
        "nulls.parquet": Container(
            table({"image": [data[0], None, data[2]], "label": [1, 2, None]}),
            "parquet",
            {"0": data[0], "2": data[2]},
            {"1": null},
            label="label",
        ),
        "null structs.parquet": Container(
            table({"image": structs}), "parquet", {"0": data[0], "3": data[3]}, {"1": null, "2": null}
        ),
        "odd labels.parquet": Container(
            table({"image": data[:3], "label": [[[1]], [[2]], None]}),
            "parquet",
            {"2": data[2]},
            {"0": "neither a class index", "1": "neither a class index"},
            label="label",
        ),
        "numbers.parquet": Container(table({"image": [1, 2]}), "parquet", ends="seems to hold images", at_plan=True),
        "no rows.parquet": Container(
            table({"image": pa.array([], pa.binary())}), "parquet", ends="hold no row", at_plan=True
        ),
        "two columns.parquet": Container(
            table({"image": data, "mask": data}), "parquet", ends="several columns", at_plan=True
        ),
        "cut.parquet": Container(plain[:-100], "parquet", ends="cut or damaged", at_plan=True),
        "no bytes.parquet": Container(b"", "parquet", ends="is empty", at_plan=True),
        "broken group.parquet": Container(
            bytes(broken), "parquet", {"0": data[0], "1": data[1]}, ends="damaged in row group 1"
        ),
        "odd paths.parquet": Container(
            table({"path": ["gone.png", "nul\0.png", ".", None]}),
            "parquet",
            bad={"0": "does not exist", "1": "no file's name", "2": "is a folder", "3": null},
        ),
        "numbers for paths.parquet": Container(
            table({"image": [{"bytes": None, "path": 7}, {"bytes": data[1], "path": 8}]}),
            "parquet",
            {"1": data[1]},
            {"0": "does not exist"},
        ),
        "no utf-8.parquet": Container(table({"path": unreadable}), "parquet", ends="damaged in row 0"),
    }


#: Images that the lists name, to be written beside them.
BESIDE = {f"{number}.png": image(number) for number in range(3)} | {
    f"{name}.png": image(20 + number) for number, name in enumerate(NAMES) if len(name) < 250 and name != "a::b"
}


def _lists() -> dict[str, Container]:
    three = {f"{number}.png": image(number) for number in range(3)}
    text = "uri,label\n0.png,0\n\n1.png,1\n\n\n2.png,2\n"
    lines = "".join(json.dumps({"uri": name}) + "\n" for name in three)
    odd = {
        "gone.png": "does not exist",
        ".": "is a folder",
        "nul\0.png": "no file's name",
        "half\ud800.png": "no file's name",
        "byte\udcff.png": "no file's name",
        "foo://bar/x.png": "unknown protocol",
        "0.png/x.png": "is a file",
        "a::b.png": "a::b.png",
    }
    rows = ["0.png", *odd, "1.png"]
    bad = {name.encode("utf-8", "backslashreplace").decode(): reason for name, reason in odd.items()}

    def listed(data: bytes, good: dict[str, bytes], **more: Any) -> Container:
        return Container(data, "list", good, **more)

    def refused(data: bytes, ends: str) -> Container:
        return Container(data, "list", ends=ends, at_plan=True)

    return {
        "marked.csv": listed(b"\xef\xbb\xbf" + text.encode(), three, label="label"),
        "dos.csv": listed(text.replace("\n", "\r\n").encode(), three),
        "marked dos.jsonl": listed(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n\r\n").encode(), three),
        "no end.csv": listed(text.rstrip().encode(), three),
        "names.jsonl": listed("".join(json.dumps({"uri": name}) + "\n" for name in BESIDE).encode(), dict(BESIDE)),
        "odd.jsonl": listed(
            "".join(json.dumps({"uri": name}) + "\n" for name in rows).encode(),
            {name: three[name] for name in ("0.png", "1.png")},
            bad=bad,
        ),
        "long name.jsonl": listed(
            "".join(json.dumps({"uri": name}) + "\n" for name in ("0.png", f"{'n' * 500}.png", "1.png")).encode(),
            {name: three[name] for name in ("0.png", "1.png")},
            bad={f"{'n' * 500}.png": "too long"},
        ),
        "without header.txt": refused(b"0.png\n1.png\n", "none of the columns"),
        "blank.txt": refused(b"\n\n\n", "none of the columns"),
        "no bytes.csv": refused(b"", "is empty"),
        "only a header.csv": refused(b"uri\n", "holds no row"),
        "wide.csv": refused("uri\n0.png\n".encode("utf-16"), "UTF-16"),
        "latin.csv": refused("uri\nä.png\n".encode("latin-1"), "UTF-8"),
        "ragged.csv": refused(b"uri,label\n0.png,1\n1.png\n", "1 fields and the header 2"),
        "open quote.csv": refused(b'uri\n"0.png\n1.png\n', "not readable"),
        "twice.csv": refused(b"uri\n0.png\n0.png\n", "has the image id '0.png'"),
        "no name.jsonl": refused(b'{"uri": "0.png"}\n{"uri": null}\n', "has no 'uri'"),
        "no object.jsonl": refused(b'{"uri": "0.png"}\n[1]\n', "no JSON object"),
        "cut.jsonl": refused(b'{"uri": "0.png"}\n{"uri": "1.p', "not readable"),
    }
