"""Sources that read from a store that fails, over HTTP with a fault-making proxy: nothing is ever silently short."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import schemas.job
from pipeline.sources import Sample, Source, open_source, retry, storage
from pipeline.sources.remote import RemoteFiles
from pipeline.sources.storage import StorageError, open_fs, open_random, open_sequential, read_head
from schemas.errors import AccessError, CamlakeError, InputError
from schemas.unit import Unit
from tests.fault_proxy import PASSING, FaultProxy, Kind
from tests.pipeline.sources.conftest import tar_bytes
from tests.s3_server import S3Server, S3Store

SECONDS = 0.4  # of patience with a stalled server
REFUSALS: dict[Kind, str] = {
    "expired": "the credentials have expired; renew them",
    "no_bucket": "there is no such bucket; create it",
}
IMAGES = {f"{i:03d}": np.random.default_rng(i).bytes(3000 + 700 * i) for i in range(12)}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and shards that take several requests."""
    monkeypatch.setattr(retry, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(open_sequential, "__kwdefaults__", {"block_bytes": 20_000, "size": None})
    monkeypatch.setattr(storage, "_BUFFER_BYTES", 1000)


@pytest.fixture(scope="module")
def one_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as made:
        yield made


@pytest.fixture
def proxy(one_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy without faults; one for all tests, since a new endpoint means a new client, which takes a second."""
    yield one_proxy
    one_proxy.clear()


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Store:
    """A bucket with the same images in every format."""
    store = s3_server.store()
    store.put("a.tar", tar_bytes((f"{key}.jpg", data) for key, data in IMAGES.items()))
    table = pa.table({"image": list(IMAGES.values()), "key": list(IMAGES)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=4)
    store.put("a.parquet", buffer.getvalue())
    for key, data in IMAGES.items():
        store.put(f"folder/{key}.jpg", data)
    lines = "\n".join(f'{{"uri": "folder/{key}.jpg"}}' for key in IMAGES)
    store.put("a.jsonl", lines.encode())
    return store


FORMATS = {"webdataset": "a.tar", "parquet": "a.parquet", "folder": "folder", "list": "a.jsonl"}


def source(proxy: FaultProxy, bucket: S3Store, kind: str, path: str | None = None) -> Source:
    options = proxy.storage_options(bucket, read_timeout=SECONDS, connect_timeout=SECONDS)
    config: dict[str, Any] = {"uri": bucket.url(path or FORMATS[kind]), "format": kind, "storage_options": options}
    return open_source(schemas.job.Source.model_validate(config))


def read(source: Source, units: list[Unit]) -> list[Sample]:
    return [sample for unit in units for sample in source.read(unit)]


def assert_all(samples: list[Sample]) -> None:
    assert [(sample.error, sample.data) for sample in samples] == [(None, data) for data in IMAGES.values()]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_storm_while_planning_and_reading(proxy: FaultProxy, bucket: S3Store, kind: str) -> None:
    """Every third request fails, in turn in each way that may pass: the plan and the bytes are those of a calm day."""
    calm = source(proxy, bucket, kind)
    plan = list(calm.plan())
    proxy.clear()
    proxy.storm(every=3)
    again = source(proxy, bucket, kind)
    units = list(again.plan())
    assert units == plan
    for _ in range(3 if kind in ("webdataset", "parquet") else 1):
        assert_all(read(again, units))
    assert set(proxy.made) == set(PASSING)


@pytest.mark.parametrize("kind", PASSING)
def test_a_tar_that_breaks_off_goes_on_where_it_was(proxy: FaultProxy, bucket: S3Store, kind: Kind) -> None:
    tar = source(proxy, bucket, "webdataset")
    units = list(tar.plan())
    proxy.clear()
    fault = proxy.add(kind, "GET", "a.tar", nth=3)
    assert_all(read(tar, units))
    assert fault.made == 1
    gets = [request for request in proxy.requests if request[0] == "GET"]
    whole = sum(len(data) for data in IMAGES.values())
    assert len(gets) < whole / 20_000 + 5  # the one block again, not the shard


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fault", ["shorter", "cut"])
def test_replies_that_stay_short_are_an_error(
    proxy: FaultProxy, bucket: S3Store, kind: str, fault: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No damaged sample, no short unit: the attempt fails, and a later one may succeed."""
    monkeypatch.setattr(retry, "TRIES", 2)
    some = source(proxy, bucket, kind)
    units = list(some.plan())
    path = "folder/" if kind in ("folder", "list") else FORMATS[kind]
    proxy.add(fault, "GET", path, nth=2, times=None)
    with pytest.raises(StorageError, match=r"could not be read .*; try again"):
        read(some, units)
    proxy.clear()
    assert_all(read(some, units))


@pytest.mark.parametrize("kind", ["shorter", "longer"])
def test_a_file_that_is_announced_with_another_size_once(proxy: FaultProxy, bucket: S3Store, kind: Kind) -> None:
    some = source(proxy, bucket, "parquet")
    units = list(some.plan())
    proxy.clear()
    faults = [proxy.add(kind, "HEAD", nth=nth) for nth in (2, 5)]
    assert_all(read(some, units))
    assert_all(read(some, units))
    assert [fault.made for fault in faults] == [1, 1]


def test_a_shard_that_is_announced_shorter_than_planned(
    proxy: FaultProxy, bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would look cut, and what is cut is recorded as damage for good."""
    tar = source(proxy, bucket, "webdataset")
    units = list(tar.plan())
    fault = proxy.add("shorter", "HEAD", nth=2)
    assert_all(read(tar, units))
    assert fault.made == 1
    monkeypatch.setattr(retry, "TRIES", 2)
    proxy.add("shorter", "HEAD", times=None)
    with pytest.raises(StorageError, match="announced"):
        read(tar, units)


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_store_that_refuses_ends_it_at_once(proxy: FaultProxy, bucket: S3Store, kind: str, fault: Kind) -> None:
    some = source(proxy, bucket, kind)
    units = list(some.plan())
    proxy.clear()
    proxy.add(fault, nth=3, times=None)
    began = time.monotonic()
    with pytest.raises(AccessError, match=REFUSALS[fault]) as caught:
        read(some, units)
    assert time.monotonic() - began < 3
    assert "\n" not in str(caught.value)
    assert bucket.bucket in str(caught.value)
    with pytest.raises(AccessError, match=REFUSALS[fault]):
        list(source(proxy, bucket, kind).plan())
    proxy.clear()
    assert_all(read(some, units))


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_listing_that_is_refused_is_not_an_empty_one(proxy: FaultProxy, bucket: S3Store, fault: Kind) -> None:
    proxy.add(fault, times=None)
    with pytest.raises(AccessError, match=REFUSALS[fault]):
        list(source(proxy, bucket, "webdataset", "*.tar").plan())


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_one_image_that_may_not_be_read_is_that_image_alone(proxy: FaultProxy, bucket: S3Store, kind: str) -> None:
    some = source(proxy, bucket, kind)
    units = list(some.plan())
    proxy.add("denied", path="folder/005.jpg", times=None)
    samples = read(some, units)
    failed = {sample.image_id: sample.error for sample in samples if sample.error is not None}
    assert len(failed) == 1
    ((name, error),) = failed.items()
    assert "005" in name
    assert "access is denied (AccessDenied)" in str(error)
    assert len(samples) == len(IMAGES)


def test_one_shard_that_may_not_be_read_is_that_unit_alone(proxy: FaultProxy, bucket: S3Store) -> None:
    tar = source(proxy, bucket, "webdataset")
    units = list(tar.plan())
    proxy.add("denied", path="a.tar", times=None)
    with pytest.raises(InputError, match=r"a\.tar' may not be read: access is denied \(AccessDenied\)"):
        read(tar, units)


def test_errors_of_a_read_are_those_of_its_last_try(proxy: FaultProxy, bucket: S3Store) -> None:
    """Credentials that expire between two tries."""
    tar = source(proxy, bucket, "webdataset")
    units = list(tar.plan())
    proxy.add("slow_down", "GET", "a.tar", times=2)
    proxy.add("expired", path="a.tar", nth=5, times=None)
    with pytest.raises(CamlakeError, match="the credentials have expired"):
        read(tar, units)


def test_files_are_read_whole_and_in_ranges(proxy: FaultProxy, bucket: S3Store) -> None:
    fs, path = open_fs(bucket.url("a.tar"), proxy.storage_options(bucket, read_timeout=SECONDS))
    assert isinstance(fs, RemoteFiles)
    data = fs.cat_file(path)
    assert read_head(fs, path, 300) == data[:300]
    with open_random(fs, path) as file:
        file.seek(5000)
        assert file.read(7000) == data[5000:12000]
    assert fs.isfile(path)
    assert not fs.isdir(path)
    assert fs.isdir(f"{bucket.bucket}/folder")
    assert not fs.exists(f"{bucket.bucket}/none")


def test_logs_hold_no_signature() -> None:
    import fsspec

    files = RemoteFiles(fsspec.filesystem("http"))
    name = files._name("https://user:word@host/path/a.tar?X-Amz-Signature=secret")
    assert name == "https://host/path/a.tar"
