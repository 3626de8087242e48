"""Whole units with shards, weights and lake in a bucket behind a fault-making proxy: the lake is that of a calm day."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import schemas.job
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import save_weights
from pipeline.engine.run import Resolved, make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, committed, create_or_resume, finalize, verify
from pipeline.lake.plan import freeze, read_plan
from pipeline.lake.sink import new_attempt
from pipeline.sources import open_source, retry
from schemas.errors import AccessError, InputError
from tests.fault_proxy import PASSING, Fault, FaultProxy, Kind
from tests.lakes import assert_equal_lakes
from tests.s3_server import S3Server, S3Store

pytestmark = pytest.mark.slow

SHARDS, SECONDS = 3, 0.5
WIDTHS = [4, 6, 8, 8]
REFUSALS: dict[Kind, str] = {
    "denied": r"access is denied .*; check the credentials and the rights",
    "expired": "the credentials have expired; renew them",
    "no_bucket": "there is no such bucket; create it",
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_LONGEST_PAUSE", 0.02)


@dataclass
class Place:
    """A bucket with shards, weights and the lake of a calm day, and the proxy before it."""

    proxy: FaultProxy
    bucket: S3Store
    calm: str = ""
    resolved: Resolved | None = None

    def job(self, lake: str, options: dict[str, Any]) -> schemas.job.Job:
        uri = self.bucket.url(f"shards/scenes-{{000000..{SHARDS - 1:06d}}}.tar")
        return schemas.job.Job.model_validate(
            {
                "source": {"uri": uri, "format": "webdataset", "label": "cls", "storage_options": options},
                "model": {
                    "name": "jobs.demo.network:digit_net",
                    "weights": self.bucket.url("net.safetensors"),
                    "options": {"widths": WIDTHS},
                    "storage_options": options,
                },
                "targets": {"label": True, "predicted": True},
                "methods": ["grad_cam"],
                "output": {"uri": lake, "storage_options": options},
                "compute": {"batch_size": 4, "threads": 1},
            }
        )

    def disturbed(self, lake: str) -> schemas.job.Job:
        options = self.proxy.storage_options(self.bucket, read_timeout=SECONDS, connect_timeout=SECONDS)
        return self.job(lake, options)

    def assert_as_calm(self, lake: str) -> None:
        assert verify(LakeStore(lake, self.bucket.storage_options)).problems == []
        assert_equal_lakes(self.calm, lake, storage_options=self.bucket.storage_options)


def run(
    job: schemas.job.Job, before_units: Callable[[], None] = lambda: None, resolved: Resolved | None = None
) -> Resolved:
    """What the driver and one worker do, in this process; goes on where a lake stands."""
    resolved = resolved or resolve(job)
    plan = freeze(open_source(job.source).plan())
    store = LakeStore(job.output.uri, job.output.storage_options)
    manifest = create_or_resume(store, make_manifest(job, resolved, plan), plan).manifest
    worker = AttributionWorker(job, manifest, "worker", device="cpu")
    worker.start()
    before_units()
    done = committed(store)
    for unit in read_plan(store):
        if unit.unit_id not in done:
            worker.process(unit, new_attempt())
    finalize(store)
    return resolved


@pytest.fixture(scope="module")
def one_place(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("dataset")
    torch.manual_seed(3)
    save_weights(DigitNet(10, WIDTHS), folder / "net.safetensors", 96)
    bucket = s3_server.store()
    bucket.put("net.safetensors", (folder / "net.safetensors").read_bytes())
    for path in write_shards(make_scenes(4 * SHARDS, split="test", seed=5), folder / "shards", shards=SHARDS):
        bucket.put(f"shards/{path.name}", path.read_bytes())
    with FaultProxy(s3_server.endpoint) as proxy:
        place = Place(proxy, bucket, bucket.url("calm"))
        place.resolved = run(place.job(place.calm, bucket.storage_options))
        yield place


@pytest.fixture
def place(one_place: Place) -> Iterator[Place]:
    """The bucket; the proxy makes no fault at first."""
    yield one_place
    one_place.proxy.clear()


@pytest.fixture
def lake(place: Place) -> str:
    """URI of a lake to be written."""
    return place.bucket.url(f"lake-{uuid.uuid4().hex[:8]}")


#: Where a fault is made: method and path of the request, and which of them.
PLACES = {"shard": ("GET", "shards/", 2), "object": ("PUT", "heatmaps/", 2), "commit": ("PUT", "commits/", 1)}


@pytest.mark.parametrize("kinds", [PASSING[:3], PASSING[3:6], PASSING[6:]], ids=" ".join)
def test_units_survive_what_passes(place: Place, lake: str, kinds: list[Kind]) -> None:
    """Each fault in a unit of its own: while its shard is read, while an object is written and at its commit."""
    faults: list[Fault] = []

    def disturb() -> None:
        for number, kind in enumerate(kinds):
            name = f"{number:06d}"
            for method, path in (
                ("GET", f"shards/scenes-{name}"),
                ("PUT", f"/{name}-scenes"),
                ("PUT", f"commits/{name}"),
            ):
                faults.append(place.proxy.add(kind, method, path))

    run(place.disturbed(lake), disturb, place.resolved)
    assert [fault.made for fault in faults] == [1] * 9
    place.proxy.clear()
    place.assert_as_calm(lake)


def test_a_storm_over_a_whole_run(place: Place, lake: str) -> None:
    """Every fourth request fails, from plan and weights on: in turn in each way that may pass."""
    place.proxy.storm(every=4)
    run(place.disturbed(lake))
    assert set(place.proxy.made) == set(PASSING)
    place.proxy.clear()
    place.assert_as_calm(lake)


@pytest.mark.parametrize("where", PLACES)
def test_a_refusal_ends_it_at_once_and_the_rest_is_done_later(place: Place, lake: str, where: str) -> None:
    """Each in turn, from a request at that place on: the first unit is done each time the commits are reached."""
    method, path, nth = PLACES[where]
    job = place.disturbed(lake)
    for kind, match in REFUSALS.items():
        began = 0.0

        def disturb(kind: Kind = kind) -> None:
            nonlocal began
            began = time.monotonic()
            place.proxy.add(kind, None if kind == "expired" else method, path, nth=nth, times=None)

        # That a shard may not be read is the failure of its unit alone.
        expected = InputError if (kind, where) == ("denied", "shard") else AccessError
        with pytest.raises(expected, match=match) as caught:
            run(job, disturb, place.resolved)
        assert time.monotonic() - began < 10
        assert place.bucket.bucket in str(caught.value)
        place.proxy.clear()
    run(job, resolved=place.resolved)
    place.assert_as_calm(lake)
