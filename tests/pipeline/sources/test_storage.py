from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources.storage import (
    StorageError,
    etag,
    is_final,
    open_fs,
    open_sequential,
    protocol_of,
    read_head,
    storage_errors,
    strip_protocol,
    translate,
)
from schemas.errors import AccessError, CamlakeError, InputError
from tests.pipeline.sources.conftest import Place
from tests.s3_server import S3Server, S3Store


def _message(uri: str, options: dict[str, Any], field: str = "source.uri") -> tuple[type[CamlakeError], str]:
    with pytest.raises(CamlakeError) as caught, storage_errors(uri, field):
        fs, path = open_fs(uri, options, field=field)
        fs.cat_file(path)
    assert "\n" not in str(caught.value)
    return type(caught.value), str(caught.value)


def test_files_open_on_every_store(any_place: Place) -> None:
    data = bytes(range(256)) * 5000
    uri = any_place.put("x.bin", data)
    fs, path = open_fs(uri, any_place.storage_options)
    assert read_head(fs, path, 10) == data[:10]
    with open_sequential(fs, path, block_bytes=300_000) as file, open_sequential(fs, path) as other:
        assert file.read(5) == data[:5]
        assert other.read(5) == data[:5]  # each has a position of its own
        file.seek(700_000)
        assert file.read(100_000) == data[700_000:800_000]
        assert file.read() == data[800_000:]


def test_an_unknown_protocol() -> None:
    with pytest.raises(InputError, match=r"model\.weights: 'ss3://b/x' has the unknown protocol 'ss3' .*did you mean"):
        open_fs("ss3://b/x", field="model.weights")
    with pytest.raises(InputError, match="unknown protocol 'ss3'"):
        strip_protocol("ss3://b/x")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(InputError, match=r"'s3://b/x' needs a package .*install camlake\[s3\]"):
        open_fs("s3://b/x")


@pytest.mark.parametrize("options", [{"bogus": 1}, {"client_kwargs": {"bogus": 1}}, {"config_kwargs": {"bogus": 1}}])
def test_options_that_do_not_fit(options: dict[str, Any]) -> None:
    kind, message = _message("s3://b/x", {"key": "k", "secret": "s", **options})
    assert kind is InputError
    assert "is refused with its storage_options" in message
    assert "'bogus'" in message


def test_s3_errors_are_sentences(s3_store: S3Store) -> None:
    options = s3_store.storage_options
    kind, message = _message("s3://no-such-bucket-anywhere/x.tar", options)
    assert kind is AccessError
    assert "there is no such bucket; create it" in message
    kind, message = _message(s3_store.url("x.tar"), options)
    assert kind is InputError
    assert "does not exist" in message


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.retry.TRIES", 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
        kind, message = _message(
            "s3://b/x.tar",
            {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": endpoint}, "config_kwargs": config},
        )
    assert kind is StorageError
    assert "cannot be reached; check the network and the endpoint" in message


def test_no_credentials(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    options = {"client_kwargs": s3_server.storage_options["client_kwargs"]}
    kind, message = _message("s3://b/x.tar", options)
    assert kind is AccessError
    assert "needs credentials and none were found" in message


class _Answer(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}


def _coded(kind: type[OSError], code: str) -> OSError:
    error = kind("said the store")
    error.__cause__ = _Answer(code)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "part", "final"),
    [
        (FileNotFoundError("x"), InputError, "does not exist; check the path", True),
        (_coded(FileNotFoundError, "NoSuchBucket"), AccessError, "there is no such bucket", False),
        (PermissionError("x"), InputError, "access is denied (x)", True),
        (_coded(PermissionError, "AccessDenied"), InputError, "access is denied (AccessDenied)", True),
        (_coded(PermissionError, "ExpiredToken"), AccessError, "the credentials have expired", False),
        (IsADirectoryError("x"), InputError, "is a folder, not a file", True),
        (NotADirectoryError("x"), InputError, "is a file, not a folder", True),
        (TimeoutError("slow\nserver"), StorageError, "(TimeoutError: slow server); try again", False),
        (OSError(5, "I/O"), StorageError, "could not be read (OSError", False),
    ],
)
def test_every_error_has_a_sentence(error: OSError, kind: type[CamlakeError], part: str, final: bool) -> None:
    told = translate(error, "s3://b/x", "source.uri")
    assert type(told) is kind
    assert str(told).startswith("source.uri: 's3://b/x' ")
    assert part in str(told)
    assert is_final(error) == final


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors("x", "f"):
        raise ZeroDivisionError
    with pytest.raises(TypeError, match="of ours"), storage_errors("x", "f"):
        raise TypeError("of ours")
    with pytest.raises(InputError, match=r"^mine$"), storage_errors("x", "f"):
        raise InputError("mine")


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"ETag": '"abc"', "size": 1, "mtime": 2.0}, "abc"),
        ({"size": 1, "mtime": 2.5}, "1-2.5"),
        ({"size": 1}, None),
    ],
)
def test_versions(info: dict[str, Any], expected: str | None) -> None:
    assert etag(info) == expected


@pytest.mark.parametrize(
    ("uri", "protocol", "path"),
    [
        ("s3://b/k.tar", "s3", "b/k.tar"),
        ("/a/b", "file", "/a/b"),
        ("file:///a/b", "file", "/a/b"),
        ("memory://a/b", "memory", "/a/b"),
        ("simplecache::s3://b/k", "s3", "b/k"),
        ("zip://in/x.jpg::s3://b/k.zip", "zip", "in/x.jpg"),
    ],
)
def test_protocols(uri: str, protocol: str, path: str) -> None:
    assert (protocol_of(uri), strip_protocol(uri)) == (protocol, path)


def test_chained_uris_open(place: Place) -> None:
    import zipfile

    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("in/x.bin", b"inside")
    uri = f"zip://in/x.bin::file://{place.put('a.zip', sink.getvalue())}"
    fs, path = open_fs(uri)
    assert fs.cat_file(path) == b"inside"
