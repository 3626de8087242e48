from __future__ import annotations

import io
import tracemalloc

import pytest

from pipeline.sources.base import UnitError
from pipeline.sources.tar import TarStream
from tests.pipeline.sources.conftest import tar_bytes


def test_members_are_read_or_skipped_in_one_pass() -> None:
    data = tar_bytes([("a", b"A" * 700), ("b", b"B" * 512), ("c", b""), ("d", b"D")])
    file = io.BytesIO(data)
    with TarStream(file, "x.tar") as stream:
        got = [(member.name, stream.read(member) if member.name != "a" else None) for member in stream.members()]
        assert stream.ended
    assert got == [("a", None), ("b", b"B" * 512), ("c", b""), ("d", b"D")]
    assert file.closed


def test_headers_are_not_kept() -> None:
    data = tar_bytes((f"{n:05d}.jpg", b"") for n in range(4000))
    tracemalloc.start()
    with TarStream(io.BytesIO(data), "x.tar") as stream:
        assert sum(1 for _ in stream.members()) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # a header takes some 600 bytes; BytesIO shares the archive's


def test_no_tar_closes_the_file() -> None:
    file = io.BytesIO(b"nothing" * 200)
    with pytest.raises(UnitError, match=r"x\.tar is no readable tar archive"):
        TarStream(file, "x.tar")
    assert file.closed
