from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import fsspec
import pytest

from pipeline.sources.patterns import Naming, check_unchanged, find, glob
from schemas.errors import InputError
from tests.pipeline.sources.conftest import Place

TREE = ("x.tar", "b/y.tar", "b/.z.tar", "c/y1.tar", "c/y2.tar", "c/d/y1.tar", "c/notes.txt")


def _tree(place: Place) -> None:
    for name in TREE:
        place.put(name, name.encode())


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.tar", ["x.tar"]),
        ("*/*.tar", ["b/y.tar", "c/y1.tar", "c/y2.tar"]),
        ("**/*.tar", ["b/y.tar", "c/d/y1.tar", "c/y1.tar", "c/y2.tar", "x.tar"]),
        ("**/c/**/y1.tar", ["c/d/y1.tar", "c/y1.tar"]),
        ("c/**", ["d/y1.tar", "notes.txt", "y1.tar", "y2.tar"]),
        ("b/.*", [".z.tar"]),
        ("c/y[2-9].tar", ["y2.tar"]),
        ("c/y?.tar", ["y1.tar", "y2.tar"]),
        ("c/y{2..1}.tar", ["y2.tar", "y1.tar"]),
        ("{c,b}/y*.tar", ["c/y1.tar", "c/y2.tar", "b/y.tar"]),
        ("b/y.tar", ["y.tar"]),
    ],
)
def test_patterns_on_every_store(any_place: Place, pattern: str, names: list[str]) -> None:
    _tree(any_place)
    found = list(find([any_place.url(pattern)], any_place.storage_options))
    assert [item.name for item in found] == names
    for item in found:
        fs, path = fsspec.core.url_to_fs(item.uri, **any_place.storage_options)
        assert item.size == len(fs.cat_file(path))
        assert item.etag


def test_etag_is_the_same_by_name_and_by_listing_and_changes_with_the_file(any_place: Place) -> None:
    _tree(any_place)
    options = any_place.storage_options
    (named,) = find([any_place.url("x.tar")], options)
    (listed,) = find([any_place.url("*.tar")], options)
    assert named.etag is not None
    assert named.uri == listed.uri
    if not any_place.root.startswith("s3"):
        assert named == listed
    assert named.etag == listed.etag
    fs, path = fsspec.core.url_to_fs(named.uri, **options)
    check_unchanged(fs, path, named.uri, named.etag)
    any_place.put("x.tar", b"another content")
    with pytest.raises(InputError, match=r"x\.tar' changed since the plan"):
        check_unchanged(fs, path, named.uri, named.etag)


def test_listings_are_not_stale(any_place: Place) -> None:
    any_place.put("a/1.tar", b"1")
    pattern = any_place.url("a/*.tar")
    assert len(list(find([pattern], any_place.storage_options))) == 1
    any_place.put("a/2.tar", b"2")
    assert len(list(find([pattern], any_place.storage_options))) == 2


def test_relative_local_patterns_become_absolute(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(place)
    monkeypatch.chdir(place.root)
    for pattern in ("c/y1.tar", "c/y1*", "./c/y1.tar"):
        (found,) = find([pattern], {})
        assert found.uri == f"{place.root}/c/y1.tar"
    assert [found.uri for found in find(["*.tar"], {})] == [f"{place.root}/x.tar"]


@pytest.mark.parametrize(
    ("patterns", "uri", "name"),
    [
        (["s3://b/t/train-{000..099}.tar"], "s3://b/t/train-007.tar", "train-007.tar"),
        (["s3://b/{train,val}/*.tar"], "s3://b/train/0.tar", "train/0.tar"),
        (["s3://a/x/*.tar", "s3://a/y/*.tar"], "s3://a/y/0.tar", "y/0.tar"),
        (["s3://{a,b}/*.tar"], "s3://b/0.tar", "b/0.tar"),
        (["s3://a/x.tar", "memory://a/x.tar"], "memory://a/x.tar", "x.tar"),
        (["s3://a/tree/v1.tar", "s3://a/tree/v2/x.tar"], "s3://a/tree/v2/x.tar", "v2/x.tar"),
    ],
)
def test_names_depend_on_the_patterns_alone(patterns: list[str], uri: str, name: str) -> None:
    assert Naming(patterns).name(uri) == name


def test_globs_in_chained_uris(place: Place) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in ("in/a.tar", "in/b.tar", "out/c.tar"):
            archive.writestr(name, name)
    tail = f"::file://{place.put('all.zip', sink.getvalue())}"
    found = list(find([f"zip://in/*.tar{tail}"], {}))
    assert [(item.name, item.uri) for item in found] == [
        ("a.tar", f"zip://in/a.tar{tail}"),
        ("b.tar", f"zip://in/b.tar{tail}"),
    ]
    (cached,) = find([f"simplecache::file://{place.root}/*.zip"], {})
    assert cached.name == "all.zip"


def test_names_of_folders() -> None:
    assert Naming(["s3://b/val"], folders=True).name("s3://b/val") == ""
    assert Naming(["s3://b/val", "s3://b/train/"], folders=True).name("s3://b/train") == "train"
    assert Naming(["s3://b/{val,train}"], folders=True).name("s3://b/val") == "val"


def test_a_missing_file_names_the_pattern_and_what_is_there(any_place: Place) -> None:
    _tree(any_place)
    with pytest.raises(InputError) as caught:
        list(find([any_place.url("c/y{1..3}.tar")], any_place.storage_options))
    message = str(caught.value)
    assert message.startswith("source.uri: no file matches ")
    for part in ("c/y3.tar", "c/y{1..3}.tar", "y2.tar", "holds 4 entries"):
        assert part in message


def test_a_glob_without_match_names_the_nearest_folder(place: Place) -> None:
    _tree(place)
    with pytest.raises(
        InputError, match=rf"no file matches .*cc/\*\.tar'; the folder '{place.root}' holds 3.*such as c"
    ):
        list(find([place.url("cc/*.tar")], {}))
    with pytest.raises(InputError, match=r"no file matches .*none of its folders exists"):
        list(find(["memory://nowhere-at-all/x/*.tar"], {}))


def test_a_folder_is_no_file_and_a_file_no_folder(any_place: Place) -> None:
    _tree(any_place)
    options = any_place.storage_options
    with pytest.raises(InputError, match=r"/c' is a folder; this format reads files, such as .*/c/\*\.tar"):
        list(find([any_place.url("c")], options, example="*.tar"))
    with pytest.raises(InputError, match=r"x\.tar' is a file; this format reads folders"):
        list(find([any_place.url("x.tar")], options, folders=True))
    assert [found.name for found in find([any_place.url("*")], options, folders=True)] == ["b", "c"]


def test_the_same_file_twice_is_refused(place: Place) -> None:
    _tree(place)
    with pytest.raises(InputError, match=r"x\.tar' is matched twice"):
        list(find([place.url("x.tar"), place.url("*.tar")], {}))


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.tar").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "dangling.tar").symlink_to(tmp_path / "nothing")
    (tmp_path / "real" / "b.tar").symlink_to(tmp_path / "real" / "a.tar")
    assert [uri for uri, _ in glob(f"{tmp_path}/*/*.tar", {})] == [
        f"{tmp_path}/{name}" for name in ("link/a.tar", "link/b.tar", "real/a.tar", "real/b.tar")
    ]
    assert [uri for uri, _ in glob(f"{tmp_path}/**/a.tar", {})] == [f"{tmp_path}/real/a.tar"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    with pytest.raises(InputError, match=r"closed.*access is denied"):
        list(glob(f"{tmp_path}/*/*.tar", {}))


def test_a_listing_that_fails_is_not_an_empty_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    from pipeline.sources.storage import StorageError

    _tree(place)
    whole = LocalFileSystem.ls

    def broken(self: LocalFileSystem, path: str, detail: bool = False, **more: object) -> object:
        if path.endswith("/c"):
            raise TimeoutError("the store is slow today")
        return whole(self, path, detail=detail, **more)

    monkeypatch.setattr(LocalFileSystem, "ls", broken)
    with pytest.raises(StorageError, match="slow today"):
        list(find([place.url("*/*.tar")], {}))
