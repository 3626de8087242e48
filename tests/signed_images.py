"""An HTTP server whose files need a signature in the query, or user and password; and what its secrets look like."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

USER, PASSWORD = "reader", "hunter2-Passw0rd"
SIGNATURE = "5f3dSIGNATUREc0ffee"


class SignedImages:
    """Serves ``files`` by path from the loopback address; a context manager.

    ``signed(path)`` is a URL with a signature and ``with_password(path)`` one with user and password; ``plain(path)``
    is what is left without them, and ``header`` is the value of ``Authorization`` that opens it.
    """

    header = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def __init__(self, files: dict[str, bytes]) -> None:
        header = self.header

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                signed = parse_qs(parts.query).get("X-Amz-Signature") == [SIGNATURE]
                data = files.get(parts.path)
                allowed = signed or self.headers.get("Authorization") == header
                self.send_response(404 if data is None else 200 if allowed else 401)
                body = data if data is not None and allowed else b"no"
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> SignedImages:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plain(self, path: str) -> str:
        return f"http://{self.place}{path}"

    def signed(self, path: str) -> str:
        return f"{self.plain(path)}?X-Amz-Credential=AKIASIGNER&X-Amz-Signature={SIGNATURE}"

    def with_password(self, path: str) -> str:
        return f"http://{USER}:{PASSWORD}@{self.place}{path}"


def forms(secret: str) -> set[bytes]:
    """The secret as it may stand in an output: as it is, quoted for URLs, in base64 at any offset."""
    raw = secret.encode()
    coded = {base64.b64encode(b" " * shift + raw)[4 if shift else 0 : -4] for shift in range(3)}
    return {raw, quote(secret, safe="").encode(), *coded}
