"""Values that sources take from records: paths into JSON, labels and ids."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.errors import InputError

#: Suffixes of image files, the preferred first, in lower case.
IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "jpe", "jfif"),
    *("avif", "heic", "heif", "dib", "ico", "tga"),
)

MISSING: Any = object()


class LabelError(ValueError):
    """A label that is neither an index nor a name; the message is one sentence."""


def lookup(record: Any, path: str) -> Any:
    """Return the value at ``path`` of a JSON-like record, or :data:`MISSING`.

    Dots enter objects; a key that holds dots itself is found before its parts.
    """
    if not isinstance(record, Mapping):
        return MISSING
    if path in record:
        return record[path]
    start = path.find(".")
    while start >= 0:
        head, rest = path[:start], path[start + 1 :]
        if head in record:
            value = lookup(record[head], rest)
            if value is not MISSING:
                return value
        start = path.find(".", start + 1)
    return MISSING


#: A label: a class index, a class name, or all the classes of an image that has any number of them.
Label = int | str | tuple[int | str, ...]


def as_label(value: Any, field: str) -> Label | None:
    """Return a label as the contract has it: a class index, a class name, several of them, or None for none.

    A string stays a name even if it is of digits: the model's resolver looks for a class of that name first and
    takes digits as an index only where there is none. Several classes are a list, or text that is one in JSON, as a
    cell of a CSV file may hold it; an empty list says that the image has none of the classes.

    Raises:
        LabelError: the value is none of these.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value  # a name in brackets
        value = parsed
    if isinstance(value, list | tuple):
        found = [_one_label(each, field) for each in value]
        if None in found:
            raise LabelError(f"the label in '{field}' is {_shown(value)}, a list with an empty entry")
        return tuple(each for each in found if each is not None)
    return _one_label(value, field)


def _one_label(value: Any, field: str) -> int | str | None:
    if value is None or value is MISSING:
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if value != value:  # NaN is how tables write a missing number
            return None
        if value.is_integer():
            return int(value)
    if isinstance(value, str):
        return printable(value).strip() or None
    raise LabelError(f"the label in '{field}' is {_shown(value)}, neither a class index nor a class name")


def as_id(value: Any) -> str | None:
    """Return an image id as text that UTF-8 can write, or None where there is none."""
    if value is None or value is MISSING or value == "":
        return None
    return printable(str(value))


def as_attribute(value: Any) -> Any:
    """Return an attribute's value with text that UTF-8 can write; None where there is none."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {as_attribute(key): as_attribute(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_attribute(item) for item in value]
    return None if value is MISSING else value


def printable(text: str) -> str:
    """Return ``text`` with each half of a surrogate pair, which UTF-8 cannot write, as an escape.

    JSON may hold such halves, and Python reads each byte of a file's name that is not UTF-8 as one.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def name_fault(uri: str) -> str | None:
    """Say why no file can be called ``uri``, which no store would do in one way; None where one can."""
    if "\0" in uri or printable(uri) != uri:
        return f"the URI {_shown(uri)} holds a character that no file's name may have"
    return None


def unique(name: str, seen: set[str]) -> str:
    """Return ``name``, or ``name#2``, ``name#3``, ... where it was seen before; the result is added to ``seen``."""
    candidate, number = name, 1
    while candidate in seen:
        number += 1
        candidate = f"{name}#{number}"
    seen.add(candidate)
    return candidate


def require_fields(wanted: Mapping[str, str], known: Sequence[str], place: str, kind: str) -> None:
    """Check that the job file's fields exist.

    Args:
        wanted: field of the job file -> the name that it gives; a dot may enter a column of objects.
        known: the names that exist.
        place: where they were looked for.
        kind: what the names are ("column").

    Raises:
        InputError: a name is missing; the message lists the near ones, or all.
    """
    for field, name in wanted.items():
        if not any(name == other or name.startswith(f"{other}.") for other in known):
            raise InputError(
                f"{field}: {place} has no {kind} '{name}'{closest(name, known)}; it has: {', '.join(known) or 'none'}"
            )


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean a?)"`` for names that resemble ``name`` or its last part."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    last = name.rpartition(".")[2]
    found += [other for other in names if other.rpartition(".")[2] == last and other not in found]
    return f" (did you mean {', '.join(found[:3])}?)" if found else ""


def _shown(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
