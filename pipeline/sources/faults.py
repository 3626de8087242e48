"""What an error of a store means: whether a repeat may help, or the store cannot be used at all.

The clients of object stores raise errors of their own; they are known by name, since none of them needs to be there.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

from schemas.errors import CamlakeError

#: Packages whose errors come from a store.
CLIENTS = {"aiobotocore", "aiohttp", "adlfs", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "s3fs"}

_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "TokenRetrievalError",
    "NoAuthTokenError",
    "SSOTokenLoadError",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "UnauthorizedSSOTokenError"}
_INVALID = {
    "AuthorizationHeaderMalformed",
    "CredentialsNotSupported",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RefreshError",
}
_NO_GCS_BUCKET = "specified bucket does not exist"
_PASSING_CODES = {"BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "XAmzContentSHA256Mismatch"}
_PASSING_STATUS = {408, 409, 425, 429}
_PASSING_NAMES = {
    "ChecksumError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ResponseParserError",
    "TransportError",
}
_PASSING_NUMBERS = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETUNREACH,
    errno.ESTALE,
    errno.ETIMEDOUT,
    getattr(errno, "EREMOTEIO", errno.ETIMEDOUT),
}
_WRONG_OBJECT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


class ShortBodyError(OSError):
    """A reply has fewer or more bytes than the store announced; asking again may help."""

    def __init__(self, got: int, announced: int) -> None:
        super().__init__(errno.EBUSY, f"the reply has {got} bytes where {announced} were announced")


class Refusal(NamedTuple):
    """Why a store cannot be used at all, and what to do about it, in words."""

    reason: str
    remedy: str


def error_code(error: BaseException | None) -> str | None:
    """Return the error code of an S3 answer (``NoSuchBucket``; of a HEAD only its status), from the error's chain."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
        error = error.__cause__ or error.__context__
    return None


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the answer behind an error, from its chain; None where there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            # Not all names at once: aiohttp warns where it is asked for its old one.
            status = getattr(response, "status_code", None) or getattr(error, "status", None)
            status = getattr(error, "code", None) if status is None else status
        if str(status).isdigit():
            return int(str(status))
        error = error.__cause__
    return None


def refusal(error: BaseException) -> Refusal | None:
    """Return why the store as a whole cannot be used (credentials, bucket, space), or None.

    A single object that is not there or may not be read is no refusal.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    code = error_code(error)
    if names & _NO_CREDENTIALS:
        return Refusal(
            "it needs credentials and none were found",
            "set them in the environment or in storage_options (anon: true for public buckets)",
        )
    if code in _EXPIRED or names & _EXPIRED:
        return Refusal("the credentials have expired", "renew them")
    if code == "RequestTimeTooSkewed":
        return Refusal("the clock of this machine differs from the store's", "set the clock")
    if code in _INVALID or names & _INVALID:
        return Refusal(f"the credentials are not valid ({code or type(error).__name__})", "correct them")
    if code == "NoSuchBucket" or (isinstance(error, FileNotFoundError) and _NO_GCS_BUCKET in str(error).lower()):
        return Refusal("there is no such bucket", "create it, or correct its name and the endpoint")
    if isinstance(error, OSError) and code is None:
        return _LOCAL.get(error.errno or 0)
    return None


_LOCAL = {
    errno.ENOSPC: Refusal("the disk is full (No space left on device)", "free some space"),
    errno.EDQUOT: Refusal("the quota of the disk is used up", "free some space or raise the quota"),
    errno.EFBIG: Refusal("a file of this size is not allowed (File too large)", "raise the limit (ulimit -f)"),
    errno.EROFS: Refusal("the file system is read-only", "mount it for writing, or give another place"),
}


def denied(error: BaseException) -> Refusal | None:
    """Return the refusal of an access that the rights do not allow, or None."""
    if not isinstance(error, PermissionError):
        return None
    code = error_code(error)
    detail = code if code and not code.isdigit() else " ".join(str(error).split()) or "no reason is given"
    return Refusal(f"access is denied ({detail})", "check the credentials and the rights")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed later: an overloaded store, a broken connection, a short reply."""
    if isinstance(error, CamlakeError) or refusal(error) is not None or isinstance(error, _WRONG_OBJECT):
        return False
    if isinstance(error, ShortBodyError | TimeoutError | ConnectionError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in CLIENTS | {"http"}}
    if names & _PASSING_NAMES:
        return not any("SSL" in name or "Certificate" in name for name in names)
    status = http_status(error)
    if status is not None:
        return status in _PASSING_STATUS or (status >= 500 and status != 501) or error_code(error) in _PASSING_CODES
    return isinstance(error, OSError) and error.errno in _PASSING_NUMBERS


def clarified(fs: Any, path: str, error: Exception) -> Exception:
    """Return the error that tells why ``path`` could not be looked up on S3: a HEAD has no body to say it in."""
    if not hasattr(fs, "call_s3") or http_status(error) not in (400, 403) or not str(error_code(error)).isdigit():
        return error
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
    except Exception as told:  # noqa: BLE001 - it is returned, and raised by the caller
        return told
    return error
