"""Credentials are taken out of URIs and messages, and nothing else is."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import AccessError, InputError, LakeError
from schemas.redact import holds_credentials, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://AKIA:SECRET@bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://AKIA:SEC/RE+T=@bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://AKIA:SEC@RET@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://user:SECRET@host/x", "https://host/x"),
        ("https://SECRET@host:8080/x", "https://host:8080/x"),
        ("ftp://user:SECRET@host/x", "ftp://host/x"),
        ("simplecache::https://user:SECRET@host/x", "simplecache::https://host/x"),
        ("https://h/x.jpg?X-Amz-Credential=AKIA&X-Amz-Signature=SECRET", "https://h/x.jpg"),
        ("https://h/x.jpg?versionId=7&X-Amz-Signature=SECRET&part=2", "https://h/x.jpg?versionId=7&part=2"),
        ("https://h/x.jpg?sv=2024&sig=SECRET", "https://h/x.jpg?sv=2024"),
        ("https://h/x?access_token=SECRET", "https://h/x"),
        ("https://h/x?api-key=SECRET", "https://h/x"),
        (
            "cannot read 'https://u:SECRET@h/x?token=SECRET' (url='https://h/y?Signature=SECRET'); try again",
            "cannot read 'https://h/x' (url='https://h/y'); try again",
        ),
        ("two: s3://a:SECRET@b/c, s3://d:SECRET@e/f", "two: s3://b/c, s3://e/f"),
    ],
)
def test_credentials_are_taken_out(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert holds_credentials(text)
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b.tar",
        "s3://bucket/a:b@c.tar",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://user@host/x",
        "http://localhost:8080/a@b.jpg",
        "http://localhost:8080 is not there, ask admin@example.org",
        "shards/{000..002}-?.tar",
        "s3://bucket/shard-?.tar",
        "https://h/x?versionId=3&monkey=4",
        "is the key=value form right? yes=no",
        "memory://lake",
        "",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert redact(text) == text
    assert not holds_credentials(text)


_PART = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="@'\"?#:"), min_size=1)


@given(user=_PART, secret=_PART, scheme=st.sampled_from(["s3", "https", "ftp", "gs", "webdav"]))
def test_any_password_is_taken_out(user: str, secret: str, scheme: str) -> None:
    user = user.replace("/", "_")
    secret = f"!{secret}"  # digits before a '/' would be a port
    assert redact(f"{scheme}://{user}:{secret}@bucket/key") == f"{scheme}://bucket/key"


@pytest.mark.parametrize("kind", [InputError, LakeError, AccessError])
def test_our_errors_never_hold_credentials(kind: type[Exception]) -> None:
    error = kind("cannot read s3://AKIA:SECRET@bucket/a.tar")
    assert str(error) == "cannot read s3://bucket/a.tar"
    assert "SECRET" not in repr(pickle.loads(pickle.dumps(error)))
