from __future__ import annotations

import tarfile

import pytest

from pipeline.sources.sniff import HEAD_BYTES, kind_of
from tests.pipeline.sources.conftest import tar_bytes


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars(kind: int) -> None:
    assert kind_of(tar_bytes([("d" * 60 + "/" + "é" * 40 + ".jpg", b"x")], kind=kind)[:HEAD_BYTES]) == "tar"


def test_an_empty_archive_is_a_tar() -> None:
    assert kind_of(tar_bytes([])[:HEAD_BYTES]) == "tar"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"uri,label\n", "text"),
        ("x" * 1023 + "é", "text"),
        (b"h\xe4user", "non-UTF-8 text"),
        (b"\x01\x80\x02" * 20, "unknown"),
        (b"a\0b", "unknown"),
    ],
)
def test_kinds(head: bytes | str, kind: str) -> None:
    data = head.encode() if isinstance(head, str) else head
    assert kind_of(data[:HEAD_BYTES]) == kind
