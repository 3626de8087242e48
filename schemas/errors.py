"""Errors that a person reads: one sentence that names the file or field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from schemas.redact import redact


class CamlakeError(Exception):
    """Base of every error whose message is written for the user; commands print it without a traceback.

    The credentials of URIs in the message are taken out: it goes to terminals, logs and quarantine records.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(each) if isinstance(each, str) else each for each in arguments))


class InputError(CamlakeError):
    """The job file, the data or the command line is wrong; commands exit with code 2."""


class LakeError(CamlakeError):
    """A lake does not hold what its commits say, or is of another format version."""


class AccessError(CamlakeError):
    """A store cannot be used at all: rights, credentials, bucket or space are wanting, and trying again will not help.

    A run that meets it ends at once and keeps what is committed; once the remedy is applied, the same command goes on.
    """


def near(name: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to ``limit`` of ``choices`` that resemble ``name``, best first."""
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold(), list(by_folded), n=limit, cutoff=0.5)
    return [by_folded[folded] for folded in found]


def did_you_mean(name: str, choices: Iterable[str], limit: int = 3) -> str:
    """Return ``" (did you mean a, b?)"`` for the choices near ``name``, or an empty string."""
    found = near(name, choices, limit)
    return f" (did you mean {', '.join(found)}?)" if found else ""
