"""A folder of a million files is listed without being held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.sources.listing import files_in
from pipeline.sources.remote import RemoteFiles
from pipeline.sources.storage import StorageError


class Pages:
    """As much of s3fs as a listing asks for, over pages of keys."""

    protocol = ("s3", "s3a")
    version_aware = False
    retries = 5

    def __init__(self, *pages: list[str]) -> None:
        self.pages = pages
        self.asked: list[dict[str, Any]] = []
        self.req_kw = {"RequestPayer": "requester"}

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def unstrip_protocol(self, path: str) -> str:
        return f"s3://{path}"

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append({"method": method, **arguments})
        number = int(arguments.get("ContinuationToken", 0))
        contents = [{"Key": key, "Size": 3, "ETag": '"tag"'} for key in self.pages[number]]
        page: dict[str, Any] = {"Contents": contents, "IsTruncated": number + 1 < len(self.pages)}
        return page | {"NextContinuationToken": str(number + 1)}


def test_s3_is_asked_for_a_page_when_the_last_one_is_used_up() -> None:
    s3 = Pages(["f/", "f/a.tar", "f/b.tar"], ["f/c.tar"])
    files = files_in(RemoteFiles(s3), "bucket/f/", "s3://bucket/f/")
    assert next(files) == (
        "a.tar",
        {"Key": "f/a.tar", "Size": 3, "ETag": '"tag"', "name": "bucket/f/a.tar", "type": "file", "size": 3},
    )
    assert next(files)[0] == "b.tar" and len(s3.asked) == 1
    assert [name for name, _ in files] == ["c.tar"] and len(s3.asked) == 2
    asked = {"Bucket": "bucket", "Prefix": "f/", "Delimiter": "/", "RequestPayer": "requester"}
    assert s3.asked[0] == {"method": "list_objects_v2", **asked}


def test_a_store_that_does_not_list_in_order_is_refused() -> None:
    with pytest.raises(StorageError, match=r"f/a\.tar is listed after f/b\.tar; name the files by braces"):
        list(files_in(RemoteFiles(Pages(["f/b.tar"], ["f/a.tar"])), "bucket/f", "s3://bucket/f"))


def test_directory_buckets_of_s3_which_are_not_sorted_are_listed_whole() -> None:
    assert not RemoteFiles(Pages()).lists_in_order("shards--use1-az4--x-s3/f")
    assert RemoteFiles(Pages()).lists_in_order("shards/f")


def test_of_a_local_folder_files_are_looked_up_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text("x")
    (tmp_path / "d").mkdir()
    (tmp_path / "e").symlink_to(tmp_path / "a")
    looked: list[str] = []
    info = LocalFileSystem.info
    monkeypatch.setattr(LocalFileSystem, "info", lambda self, path, **more: looked.append(path) or info(self, path))
    files = files_in(LocalFileSystem(), str(tmp_path), str(tmp_path))
    assert next(files)[0] == "a"
    assert not [path for path in looked if path.endswith(("b", "c"))]
    (tmp_path / "b").unlink()
    assert [name for name, _ in files] == ["c", "e"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert not list(files_in(LocalFileSystem(), str(tmp_path / "none"), "none"))
