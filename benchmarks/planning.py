"""A plan of a million shards: time, requests and memory, for shards under a prefix of S3 and for a list of images.

    python -m benchmarks.planning [--objects 1000000]

The bucket is a server in another process that makes up each page of a listing (1,000 keys, as S3 has them) and has the
same small shard under each; the list is a CSV file of as many rows. Planning is the job's own, from ``source`` to the
frozen plan. Memory is what the process holds more at its peak than before.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from benchmarks.harness import machine
from benchmarks.inputs import positive
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.job import Source

_PAGE = 1000
_ENTRY = (
    "<Contents><Key>shards/train-{0:07d}.tar</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{0:032x}&quot;</ETag><Size>{1}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def serve(objects: int, port: Any) -> None:
    """Answer listings of ``shards/`` for ever; puts the port into ``port``."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo("000000.jpg")
        member.size = 100
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    shard = made.getvalue()

    class Listing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(shard, "application/x-tar", body=False)

        def do_GET(self) -> None:
            if "list-type" not in self.path:
                self._answer(shard, "application/x-tar")
                return
            asked = parse_qs(urlsplit(self.path).query)
            first = int(asked.get("continuation-token", ["0"])[0])
            stop = min(first + _PAGE, objects)
            more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < objects else ""
            text = (
                '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
                f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}"
                f"{''.join(_ENTRY.format(number, len(shard)) for number in range(first, stop))}</ListBucketResult>"
            )
            self._answer(text.encode(), "application/xml")

        def _answer(self, data: bytes, kind: str, body: bool = True) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """A line per request would be many."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    port.put(server.server_address[1])
    server.serve_forever()


def plan(source: dict[str, Any]) -> str:
    """Plan a source, and say in words what it took."""
    before, began = _peak_mib(), time.process_time()
    frozen = freeze(open_source(Source.model_validate(source)).plan())
    seconds = time.process_time() - began
    return (
        f"{frozen.units} units, {len(frozen.data) / 1e6:.1f} MB stored; {seconds:.0f} s of CPU "
        f"({seconds / frozen.units * 1e6:.0f} us per unit); {_peak_mib() - before:.0f} MiB more at the peak"
    )


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what both plans took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=positive, default=1_000_000, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    print(f"Machine: {machine()}", flush=True)
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    server = context.Process(target=serve, args=(options.objects, port), daemon=True)
    server.start()
    try:
        endpoint = {"endpoint_url": f"http://127.0.0.1:{port.get(timeout=60)}", "region_name": "us-east-1"}
        bucket = {"key": "x", "secret": "x", "client_kwargs": endpoint}
        small = {"format": "webdataset", "storage_options": bucket}
        # What the libraries take when they are first used does not count.
        plan({"uri": "s3://b/shards/train-0000000.tar", **small})
        print(f"under a prefix: {plan({'uri': 's3://b/shards/*.tar', **small})}", flush=True)
    finally:
        server.terminate()
        server.join()
    with tempfile.TemporaryDirectory(prefix="camlake-planning-") as folder:
        path = Path(folder) / "images.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("uri,label\n")
            file.writelines(f"s3://b/images/{number:09d}.jpg,{number % 1000}\n" for number in range(options.objects))
        print(f"a list of as many rows, one unit each: {plan({'uri': str(path), 'format': 'list', 'unit_images': 1})}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
