"""An HTTP proxy in front of an S3 server that makes the faults that stores and networks make, on demand."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.s3_server import S3Store

Kind = Literal[
    "error",  # 500 InternalError
    "slow_down",  # 503 SlowDown
    "denied",  # 403 AccessDenied
    "expired",  # 403 ExpiredToken
    "no_bucket",  # 404 NoSuchBucket
    "reset",  # the connection breaks in the middle of the reply, of a PUT in the middle of the request
    "cut",  # the reply ends in the middle, in order, with a Content-Length of the whole
    "stall",  # no byte any more, in the middle of the reply, of a PUT in the middle of the request
    "silent",  # the head of the request is taken, and then not a byte, nor is one sent
    "shorter",  # the reply lacks bytes, and its Content-Length says so
    "longer",  # the reply has bytes too many, and its Content-Length says so
    "drop_reply",  # the request is carried out and the connection breaks without a reply
]

#: The faults after which a repeat helps; those that take time come once in :meth:`FaultProxy.storm`.
PASSING: list[Kind] = ["error", "slow_down", "reset", "cut", "stall", "silent", "shorter", "longer", "drop_reply"]
SLOW = ("stall", "silent")

_ANSWERS: dict[str, tuple[int, str]] = {
    "error": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "expired": (403, "ExpiredToken"),
    "no_bucket": (404, "NoSuchBucket"),
}
_WRONG_BY = 7
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(eq=False)
class Fault:
    """A fault at the requests of one method whose path (decoded, with the query) holds a text.

    It is made at the ``nth`` matching request (from 1) and at ``times`` of them from there; None: at all from there.
    ``made`` counts them.
    """

    kind: Kind
    method: str | None = None
    path: str = ""
    nth: int = 1
    times: int | None = 1
    seen: int = 0
    made: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Count a request, and tell whether the fault is made at it."""
        if self.method not in (None, method) or self.path not in path:
            return False
        self.seen += 1
        strikes = self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)
        self.made += strikes
        return strikes


@dataclass
class FaultProxy:
    """Passes requests on to ``upstream`` (an endpoint), but for the faults of :attr:`faults`; a context manager."""

    upstream: str
    faults: list[Fault] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> FaultProxy:
        self._lock = threading.Lock()
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self, kind: Kind, method: str | None = None, path: str = "", *, nth: int = 1, times: int | None = 1
    ) -> Fault:
        """Make a fault from now on; see :class:`Fault`."""
        fault = Fault(kind, method, path, nth, times)
        with self._lock:
            self.faults.append(fault)
        return fault

    def storm(self, every: int, faults: int = 80) -> None:
        """Make a fault at every so many requests from now on, in turn each kind that may pass."""
        self.made.clear()
        quick = [kind for kind in PASSING if kind not in SLOW]
        for number in range(faults):
            kind = PASSING[number] if number < len(PASSING) else quick[number % len(quick)]
            self.add(kind, nth=every * (number + 1))

    def clear(self) -> None:
        """Make no fault any more, and forget the requests; what was made stays counted."""
        with self._lock:
            self.faults.clear()
            self.requests.clear()

    def storage_options(self, store: S3Store, **config: Any) -> dict[str, Any]:
        """Options that open the store's bucket through the proxy; ``config`` goes to botocore's Config."""
        client = {**store.storage_options["client_kwargs"], "endpoint_url": self.endpoint}
        return {**store.storage_options, "client_kwargs": client, "config_kwargs": config}

    def fault_at(self, method: str, path: str) -> Kind | None:
        """Note a request and return the kind of the fault to be made at it; the first that strikes counts."""
        with self._lock:
            self.requests.append((method, path))
            struck = [fault for fault in self.faults if fault.strikes(method, path)]
            for fault in struck[:1]:
                self.made[fault.kind] += 1
            return struck[0].kind if struck else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: clients that give a connection up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        kind = self.server.proxy.fault_at(self.command, unquote(self.path))
        if kind == "silent":
            self._break(kind)
            return
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        size = int(self.headers.get("Content-Length") or 0)
        if self.command == "PUT" and kind in ("reset", "stall"):
            self.rfile.read(size // 2)
            self._break(kind)
            return
        body = self.rfile.read(size)
        if kind in _ANSWERS:
            self._refuse(*_ANSWERS[kind])
            return
        status, headers, data = self._forward(body)
        if kind == "drop_reply":
            self._break("reset")
            return
        if kind in ("reset", "stall") and not data:
            # A reply without a body has no middle.
            self._break(kind)
            return
        announced = len(data)
        if self.command == "HEAD":
            announced = int(dict(headers).get("Content-Length", 0))
        if kind in ("shorter", "longer"):
            change = _WRONG_BY if kind == "longer" else -min(_WRONG_BY, announced)
            announced += change
            data = data[:announced] if change < 0 else data + b"\0" * change
        self._head(status, headers, announced)
        if kind in ("reset", "cut", "stall"):
            self.wfile.write(data[: len(data) // 2])
            self._break(kind)
        elif self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        url = urlsplit(self.server.proxy.upstream)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "expect")}
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _head(self, status: int, headers: list[tuple[str, str]], size: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            # Many stores keep no checksums, and then only lengths tell.
            if name.lower() not in _HOP and not name.lower().startswith("x-amz-checksum"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _refuse(self, status: int, code: str) -> None:
        data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by a test</Message></Error>".encode()
        self._head(status, [("Content-Type", "application/xml")], len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _break(self, kind: Kind) -> None:
        self.wfile.flush()
        self.close_connection = True
        if kind in ("stall", "silent"):
            self.server.proxy.ended.wait()
        if kind != "cut":
            # With this option the kernel sends a reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The server would end the connection in order first.
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle_expect_100(self) -> bool:
        """Leave the word to :meth:`handle_any`, which may have none."""
        return True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""
