"""Credentials in URIs: what counts as one, and text without them.

The rule: a password (``scheme://user:password@``), any user information of ``http(s)``, and the parameters of a query
that sign or authorise (``X-Amz-Signature``, ``sig``, ``token``, ...). They are taken out, not masked, so that what is
left is the URI that a reader with credentials of his own opens. Job files may not hold such URIs at all; lists of
images may, since signed URLs are how such lists are handed around.
"""

from __future__ import annotations

import re

# A password may hold '/', which AWS's do, so that the URI is not well-formed; a port is no password.
_USER = re.compile(
    r"""(?P<scheme>[a-z][a-z0-9+.-]*://)
        (?: [^\s/?\#'":@]* : [^\s/?\#'"]* @
          | [^\s/?\#'":@]* : (?! \d+ (?:[/?\#'"\s]|$) ) [^\s@'"]* @ )""",
    re.IGNORECASE | re.VERBOSE,
)
_HTTP_USER = re.compile(r"(?P<scheme>https?://)[^\s/?#'\"@]*@", re.IGNORECASE)
_QUERY = re.compile(r"\?(?P<query>[^\s'\"<>?]*=[^\s'\"<>?]*)")
_SECRET_NAME = re.compile(
    r"^(?:x-(?:amz|goog|oss|cos|obs)-.*"
    r"|(?:.*[-_.])?(?:sig|key|auth|pwd)"
    r"|.*(?:signature|token|secret|password|passwd|credentials?|access-?_?key|access-?_?id|api-?_?key|key-?_?id"
    r"|authorization))$",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return ``text``, a URI or a message with URIs in it, without the credentials of its URIs."""
    if "://" in text:
        text = _HTTP_USER.sub(r"\g<scheme>", _USER.sub(r"\g<scheme>", text))
    return _QUERY.sub(_without_secrets, text) if "?" in text else text


def _without_secrets(match: re.Match[str]) -> str:
    parts = match["query"].split("&")
    kept = [part for part in parts if not _SECRET_NAME.match(part.partition("=")[0])]
    if len(kept) == len(parts):
        return match[0]
    return f"?{'&'.join(kept)}" if kept else ""


def holds_credentials(uri: str) -> bool:
    """Tell whether a URI holds what :func:`redact` would take out."""
    return redact(uri) != uri
