"""What a run tells, in one place: lines of text for people, or one JSON object per line for machines.

The text is written as it stands. As JSON (``--log-format json``) a line shows what it carries as data; records of
:mod:`logging` become objects too, and so does whatever else reaches stdout and stderr, such as the output of workers
that Ray forwards, so that a collector of logs can parse every line. Credentials in URIs are taken out of all of them.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console

from schemas.redact import redact

Format = Literal["text", "json"]

# How Ray marks a line that it forwards: what printed it, the process, and the node's address where it is another one.
_FORWARDED = re.compile(r"^\((?P<name>[^()]*?) ?pid=(?P<pid>\d+)(?:, ip=(?P<node>[^)]+))?\) (?P<text>.*)$", re.DOTALL)
_WORKER = re.compile(r"^worker-\d+$")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Line(str):
    """A line for people that carries what it says as data.

    Args:
        text: as people see it; it may hold line breaks.
        event: what kind of line it is, such as ``unit_done``.
        level: of :mod:`logging`.
        fields: numbers as numbers; ``unit_id`` and ``worker_id`` where they apply.
    """

    event: str
    level: int
    fields: Mapping[str, Any]

    def __new__(cls, text: str, event: str, level: int = logging.INFO, **fields: Any) -> Line:
        line = super().__new__(cls, text)
        line.event, line.level, line.fields = event, level, fields
        return line


class _State:
    """How this process writes, and what is added to every object."""

    json = False
    context: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed


_state = _State()


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (RFC 3339, UTC), level, event, the context's and its own fields, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, without a line break."""
        fields = getattr(record, "fields", {})
        shown: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "event": getattr(record, "event", "log"),
            **_state.context,
            **fields,
            "message": record.getMessage(),
        }
        if shown["event"] == "log":
            shown["logger"] = record.name
        if record.exc_info:
            shown["exception"] = self.formatException(record.exc_info)
        return json.dumps(_plain(shown), ensure_ascii=False)


_formatter = JsonFormatter()


def tell(line: str, stream: TextIO | None = None) -> None:
    """Write a line to ``stream`` (default: stdout), in the format of this process.

    A plain text is shown as event ``note``.
    """
    out = stream or sys.stdout
    if not _state.json:
        print(line, file=out, flush=True)
        return
    carried = line if isinstance(line, Line) else Line(line, "note")
    if text := " ".join(str(carried).split()):
        _emit(out, text, carried.event, carried.level, carried.fields)


@contextmanager
def written_as(form: Format) -> Iterator[None]:
    """Write in a format inside the block; the streams are as before afterwards."""
    if form == "text":
        yield
        return
    out, err = sys.stdout, sys.stderr
    wrapped = _Lines(out, logging.INFO), _Lines(err, logging.WARNING)
    handler = logging.StreamHandler(err)
    handler.setFormatter(_formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    sys.stdout, sys.stderr = wrapped
    _state.json = True
    try:
        yield
    finally:
        for each in wrapped:
            each.finish()
        _state.json = False
        sys.stdout, sys.stderr = out, err
        root.removeHandler(handler)


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Add fields, such as ``run_id``, to every object that is written inside the block."""
    before = _state.context
    _state.context = {**before, **fields}
    try:
        yield
    finally:
        _state.context = before


def is_json() -> bool:
    """Whether this process writes JSON."""
    return _state.json


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar may be drawn on ``stream``: it is a terminal, and what goes there is for people."""
    return not _state.json and Console(file=stream).is_terminal


class _Lines(io.TextIOBase):
    """Stands for stdout or stderr: what is printed there becomes objects, a line each."""

    def __init__(self, stream: TextIO, level: int) -> None:
        self.stream = stream
        self._level = level
        # By thread: print() writes a line and its end one by one, and Ray prints on a thread of its own.
        self._parts: dict[int, str] = {}
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Take text in; every line that is whole is written."""
        own = threading.get_ident()
        with self._lock:
            *whole, rest = (self._parts.pop(own, "") + text).split("\n")
            if rest:
                self._parts[own] = rest
        for line in whole:
            self._foreign(line)
        return len(text)

    def finish(self) -> None:
        """Write what no line break has ended."""
        with self._lock:
            left, self._parts = list(self._parts.values()), {}
        for line in left:
            self._foreign(line)

    def flush(self) -> None:
        """Flush the stream behind."""
        self.stream.flush()

    def fileno(self) -> int:
        """The file behind."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """It is."""
        return True

    def _foreign(self, line: str) -> None:
        text = _COLOURS.sub("", line).rstrip()
        if not text:
            return
        found = _FORWARDED.match(text)
        if found is None:
            _emit(self, text, "output", self._level, {})
            return
        fields: dict[str, Any] = {"pid": int(found["pid"])}
        if _WORKER.match(found["name"]):
            fields = {"worker_id": found["name"], **fields}
        elif found["name"]:
            fields["source"] = found["name"]
        if found["node"]:
            fields["node"] = found["node"]
        _emit(self, found["text"], "worker_output", self._level, fields)


def _emit(stream: TextIO | _Lines, message: str, event: str, level: int, fields: Mapping[str, Any]) -> None:
    record = logging.LogRecord("camlake", level, "", 0, message, None, None)
    record.event, record.fields = event, fields
    target = stream.stream if isinstance(stream, _Lines) else stream
    # In one write, so that lines of several threads do not mix.
    target.write(_formatter.format(record) + "\n")
    target.flush()


def _plain(value: Any) -> Any:
    """Return what JSON can hold: without credentials, and None for what is no finite number."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else redact(str(value))
