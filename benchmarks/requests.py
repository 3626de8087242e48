"""What a job asks of an object store: requests by phase and kind, and per unit.

    python -m benchmarks.requests [--units 8] [--images 4] [--json FILE]

A job of its own (scenes of the demo in tar shards, a small network, two methods) runs in this process against an
S3-compatible server behind a proxy that writes each request down. Kinds, numbers and places of the requests do not
depend on the size of images, network or shards, as long as a shard is below 8 MiB, which is what one request reads.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from jobs.config import absolute, parse_job
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import save_weights

#: (phase, method, path of the bucket with its query) of a request.
Request = tuple[str, str, str]
METHODS = ["grad_cam", "layer_cam"]
_WIDTHS = [4, 4, 4, 4]


def requests_of_a_job(units: int, images: int, *, listed: bool = False) -> list[Request]:
    """Run a job of ``units`` shards with ``images`` images each, start to end and once more, and return its requests.

    The shards are named one by one (``{000000..000007}``) or, with ``listed``, by a pattern (``*.tar``).

    The phases are ``start`` (model, plan, manifest), ``worker`` (a replica's start), ``units``, ``finish`` (checks,
    sweep of one object that a lost attempt left, ``_SUCCESS.json``), ``status`` and ``again`` (the same command on the
    lake that is done).
    """
    from pipeline.engine.run import make_manifest, resolve
    from pipeline.engine.worker import AttributionWorker
    from pipeline.lake import LakeStore, create_or_resume, finalize, new_attempt, read_plan, status
    from pipeline.lake.plan import freeze
    from pipeline.lake.run import committed
    from pipeline.sources import open_source
    from schemas import layout

    found: list[Request] = []
    with _bucket(units, images, listed) as (document, requests):

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            requests.clear()
            yield
            found.extend((name, method, path) for method, path in requests)

        job = absolute(parse_job(document))

        def begin() -> Any:
            resolved = resolve(job)
            plan = freeze(open_source(job.source).plan())
            store = LakeStore(job.output.uri, job.output.storage_options)
            run = create_or_resume(store, make_manifest(job, resolved, plan), plan)
            return store, run, committed(store), list(read_plan(store, run.manifest))

        with phase("start"):
            store, run, _, planned = begin()
        worker = AttributionWorker(job, run.manifest, "counting", device="cpu")
        with phase("worker"):
            worker.start()
        with phase("units"):
            for unit in planned:
                worker.process(unit, new_attempt())
        store.put(layout.images(planned[0].unit_id, new_attempt()), b"of an attempt that was lost")
        with phase("finish"):
            finalize(store)
        with phase("status"):
            status(store)
        with phase("again"):
            store = begin()[0]
            finalize(store)
    return found


@contextmanager
def _bucket(units: int, images: int, listed: bool) -> Iterator[tuple[dict[str, Any], list[tuple[str, str]]]]:
    """Yield a job on shards in a bucket, and the growing list of what is asked of its server."""
    from tests.fault_proxy import FaultProxy
    from tests.s3_server import S3Server

    server = S3Server()
    try:
        with tempfile.TemporaryDirectory() as made, FaultProxy(server.endpoint) as proxy:
            folder, bucket = Path(made), server.store()
            write_shards(make_scenes(units * images, split="test", seed=5), folder / "shards", shards=units)
            torch.manual_seed(3)
            save_weights(DigitNet(10, _WIDTHS), folder / "net.safetensors", 96)
            for path in sorted((folder / "shards").glob("*.tar")):
                bucket.put(f"shards/{path.name}", path.read_bytes())
            bucket.put("net.safetensors", (folder / "net.safetensors").read_bytes())
            options = proxy.storage_options(bucket)
            document = {
                "source": {
                    "uri": bucket.url(f"shards/scenes-{'*' if listed else f'{{000000..{units - 1:06d}}}'}.tar"),
                    "format": "webdataset",
                    "label": "cls",
                    "storage_options": options,
                },
                "model": {
                    "name": "jobs.demo.network:digit_net",
                    "weights": bucket.url("net.safetensors"),
                    "options": {"widths": _WIDTHS},
                    "storage_options": options,
                },
                "methods": METHODS,
                "output": {"uri": bucket.url("lakes/run-1"), "storage_options": options},
            }
            yield document, proxy.requests
    finally:
        server.stop()


def kind(method: str, path: str) -> str:
    """Return what S3 calls a request."""
    if method == "GET" and "list-type=2" in path:
        return "ListObjectsV2"
    names = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
    return names.get(method, method)


def place(path: str) -> str:
    """Return which of a job's objects a path is of."""
    if "list-type=2" in path:
        prefix = re.search(r"prefix=([^&]*)", path)
        path = f"/bucket/{prefix[1] if prefix else ''}"
    key = path.partition("?")[0].removeprefix("/").partition("/")[2]
    inside = key.removeprefix("lakes/run-1").removeprefix("/")
    if inside == key:
        return "shard" if key.startswith("shards") else "weights"
    if "/" in inside:
        return f"lake: {inside.partition('/')[0]}/"
    name = re.sub(r"(probe-).*", r"\1*", inside) or "the whole"
    return f"lake: {name}"


def summary(units: int, found: list[Request]) -> list[str]:
    """Return lines for people: requests per phase, kind and place, those of units per unit."""
    lines = []
    for phase in dict.fromkeys(each[0] for each in found):
        counts = Counter((kind(method, path), place(path)) for name, method, path in found if name == phase)
        share: Callable[[int], str] = (lambda n: f"{n / units:.2f} per unit") if phase == "units" else str
        lines.append(f"{phase}: {share(sum(counts.values()))}")
        lines += [f"    {share(count):>14}  {what:<14} {where}" for (what, where), count in sorted(counts.items())]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the requests of a job."""
    parser = argparse.ArgumentParser(prog="benchmarks.requests", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--units", type=int, default=8, help="shards (default: %(default)s)")
    parser.add_argument("--images", type=int, default=4, help="images per shard (default: %(default)s)")
    parser.add_argument("--listed", action="store_true", help="name the shards by a pattern")
    parser.add_argument("--json", type=Path, help="file for all requests")
    options = parser.parse_args(arguments)
    found = requests_of_a_job(options.units, options.images, listed=options.listed)
    print(f"{options.units} units of {options.images} images, {len(METHODS)} arrays per unit")
    print("\n".join(summary(options.units, found)))
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
