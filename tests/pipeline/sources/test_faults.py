"""What the errors of stores mean, without a store."""

from __future__ import annotations

import errno
import logging
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
import requests
from gcsfs.retry import HttpError
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from pipeline.sources import retry
from pipeline.sources.faults import ShortBodyError, denied, is_transient, refusal
from pipeline.sources.remote import with_limits
from pipeline.sources.retry import repeat
from schemas.errors import InputError


def s3(status: int, code: str, kind: type[Exception] = OSError) -> Exception:
    """An error as s3fs raises it: one of Python's, caused by the client's."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = kind("said the store")
    error.__cause__ = boto.ClientError(answer, "GetObject")
    return error


PASSES = [
    s3(500, "InternalError"),
    s3(503, "SlowDown"),
    s3(429, "TooManyRequests"),
    s3(400, "RequestTimeout"),
    s3(400, "XAmzContentSHA256Mismatch"),
    s3(409, "ConditionalRequestConflict"),
    ShortBodyError(1, 2),
    TimeoutError(),
    ConnectionResetError(),
    boto.EndpointConnectionError(endpoint_url="http://x", error="refused"),
    boto.ReadTimeoutError(endpoint_url="http://x", error="slow"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    aiohttp.ClientPayloadError("short"),
    aiohttp.ServerDisconnectedError(),
    requests.exceptions.ConnectionError(),
    HttpError({"code": 503, "message": "later"}),
    TransportError("metadata server"),
    OSError(errno.ESTALE, "Stale file handle"),
]
STAYS = [
    s3(404, "NoSuchKey", FileNotFoundError),
    s3(403, "AccessDenied", PermissionError),
    s3(400, "InvalidRequest"),
    s3(416, "InvalidRange"),
    s3(501, "NotImplemented"),
    boto.SSLError(endpoint_url="https://x", error="certificate"),
    boto.ParamValidationError(report="bucket"),
    HttpError({"code": 400, "message": "bad"}),
    IsADirectoryError(),
    OSError(errno.EIO, "Input/output error"),
    InputError("ours"),
    ValueError("ours"),
]


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_what_may_pass(error: Exception) -> None:
    assert is_transient(error)
    assert refusal(error) is None


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_what_stays(error: Exception) -> None:
    assert not is_transient(error)
    assert refusal(error) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (s3(400, "ExpiredToken"), "the credentials have expired"),
        (s3(403, "InvalidAccessKeyId", PermissionError), "not valid (InvalidAccessKeyId)"),
        (s3(403, "RequestTimeTooSkewed", PermissionError), "the clock of this machine"),
        (s3(404, "NoSuchBucket", FileNotFoundError), "there is no such bucket"),
        (FileNotFoundError("The specified bucket does not exist."), "there is no such bucket"),
        (boto.NoCredentialsError(), "none were found"),
        (DefaultCredentialsError("none"), "none were found"),
        (RefreshError("revoked"), "not valid (RefreshError)"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (OSError(errno.EFBIG, "File too large"), "file of this size"),
    ],
    ids=repr,
)
def test_what_refuses_everything(error: Exception, reason: str) -> None:
    found = refusal(error)
    assert found is not None
    assert reason in found.reason
    assert found.remedy
    assert not is_transient(error)


def test_a_path_that_speaks_of_a_bucket_is_no_missing_bucket() -> None:
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/bucket/x.tar")) is None


def test_rights() -> None:
    found = denied(s3(403, "AccessDenied", PermissionError))
    assert found is not None
    assert found.reason == "access is denied (AccessDenied)"
    assert denied(OSError(errno.EACCES, "Permission denied")) is not None
    assert denied(FileNotFoundError()) is None


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


def test_pauses_grow_and_are_jittered(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            assert repeat(Flaky(*[TimeoutError("slow\nserver")] * 4), "read x") == "done"
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["cannot read x"] * 200
    assert not any("\n" in record.getMessage() for record in caplog.records)
    for number in range(4):
        same = pauses[number::4]
        assert max(same) <= 0.25 * 2**number
        assert max(same) > 0.6 * 0.25 * 2**number
        assert min(same) < 0.4 * 0.25 * 2**number


def test_no_signature_reaches_the_log(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    url = "https://host/path/a.tar?X-Amz-Signature=secret&X-Amz-Date=1"
    with caplog.at_level(logging.WARNING):
        repeat(
            Flaky(boto.ReadTimeoutError(endpoint_url=url, error="slow"), TimeoutError(f"is {url} down? yes")), "read x"
        )
    assert "secret" not in caplog.text
    assert '"https://host/path/a.tar")' in caplog.text
    assert "down? yes" in caplog.text


def test_tries_are_bounded(pauses: list[float]) -> None:
    flaky = Flaky(*[TimeoutError(str(i)) for i in range(100)])
    with pytest.raises(TimeoutError, match=f"^{retry.TRIES - 1}$"):
        repeat(flaky, "read x")
    assert flaky.calls == retry.TRIES


def test_time_is_bounded(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 50.0, 119.9, 121.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    flaky = Flaky(*[TimeoutError()] * 100)
    with pytest.raises(TimeoutError):
        repeat(flaky, "read x")
    assert flaky.calls == 3
    assert pauses[1] <= 0.11


def test_what_cannot_pass_is_not_repeated(pauses: list[float]) -> None:
    flaky = Flaky(PermissionError("no"))
    with pytest.raises(PermissionError):
        repeat(flaky, "read x")
    assert flaky.calls == 1


@pytest.mark.parametrize(
    ("uri", "options", "config"),
    [
        ("s3://b/x", {}, {"connect_timeout": 5, "read_timeout": 20, "retries": {"total_max_attempts": 1}}),
        (
            "s3://b/x",
            {"config_kwargs": {"read_timeout": 90, "retries": {"max_attempts": 9}}},
            {"connect_timeout": 5, "read_timeout": 90, "retries": {"max_attempts": 9}},
        ),
        ("gs://b/x", {}, None),
        ("/data/x", {}, None),
        ("simplecache::s3://b/x", {}, None),
    ],
)
def test_limits_are_set_unless_the_user_sets_them(uri: str, options: dict[str, Any], config: Any) -> None:
    before = repr(options)
    assert with_limits(uri, options).get("config_kwargs") == config
    assert repr(options) == before
