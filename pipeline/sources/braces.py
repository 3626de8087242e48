"""Brace patterns as bash and WebDataset write them: ``{000..099}``, ``{a..e..2}``, ``{a,b}``, nested."""

from __future__ import annotations

import re
from collections.abc import Iterator

from schemas.errors import InputError

_INTEGERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.-?(\d+))?")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def expand_braces(pattern: str, *, field: str = "source.uri") -> Iterator[str]:
    """Yield the strings of a brace pattern, the rightmost brace varying fastest; nothing is held.

    A leading zero in either bound pads all numbers to the longer bound, as in bash; a range may run downwards and
    may have a step. A brace pair without comma or range stands for itself; a backslash takes the next character
    literally.

    Raises:
        InputError: the braces do not pair.
    """
    _check_balance(pattern, field)
    for text in _concatenations(pattern):
        yield _unescape(text)


def _check_balance(pattern: str, field: str) -> None:
    depth = 0
    for position in _unescaped(pattern):
        depth += {"{": 1, "}": -1}.get(pattern[position], 0)
        if depth < 0:
            break
    if depth:
        raise InputError(f"{field}: the braces of '{pattern}' do not pair; write \\{{ or \\}} for a literal brace")


def _concatenations(text: str) -> Iterator[str]:
    """Yield all strings of ``text``: alternatives of the first brace, joined with those of the rest."""
    span = _first_brace(text)
    if span is None:
        yield text
        return
    start, stop = span
    head = text[:start]
    for middle in _alternatives(text[start + 1 : stop]):
        for tail in _concatenations(text[stop + 1 :]):
            yield head + middle + tail


def _alternatives(body: str) -> Iterator[str]:
    if match := _INTEGERS.fullmatch(body):
        yield from _integers(*match.groups())
    elif match := _LETTERS.fullmatch(body):
        yield from _letters(*match.groups())
    else:
        parts = _split(body)
        if len(parts) == 1:
            for text in _concatenations(body):
                yield f"{{{text}}}"
        for part in parts if len(parts) > 1 else ():
            yield from _concatenations(part)


def _integers(first: str, last: str, step: str | None) -> Iterator[str]:
    padded = any(bound.lstrip("-").startswith("0") and bound not in ("0", "-0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    stride = int(step or 1) or 1
    start, stop = int(first), int(last)
    numbers = range(start, stop + 1, stride) if start <= stop else range(start, stop - 1, -stride)
    for number in numbers:
        yield f"{number:0{width}d}"


def _letters(first: str, last: str, step: str | None) -> Iterator[str]:
    stride = int(step or 1) or 1
    start, stop = _ALPHABET.index(first), _ALPHABET.index(last)
    positions = range(start, stop + 1, stride) if start <= stop else range(start, stop - 1, -stride)
    for position in positions:
        yield _ALPHABET[position]


def _first_brace(text: str) -> tuple[int, int] | None:
    """Return the positions of the first outer brace pair."""
    depth = start = 0
    for position in _unescaped(text):
        if text[position] == "{":
            if depth == 0:
                start = position
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return start, position
    return None


def _split(body: str) -> list[str]:
    """Split at the commas that stand in no inner brace."""
    parts, depth, start = [], 0, 0
    for position in _unescaped(body):
        depth += {"{": 1, "}": -1}.get(body[position], 0)
        if body[position] == "," and depth == 0:
            parts.append(body[start:position])
            start = position + 1
    return [*parts, body[start:]]


def _unescaped(text: str) -> Iterator[int]:
    position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
        else:
            yield position
            position += 1


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
