"""The lake against stores that fail: over HTTP with a fault-making proxy, on a full disk and on a read-only one."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.lake import store as store_module
from pipeline.lake.run import committed, create_or_resume, finalize, quarantine, quarantined
from pipeline.lake.store import LakeStore, StoreError
from pipeline.lake.verify import verify
from pipeline.sources import retry
from schemas import layout
from schemas.errors import AccessError
from tests.fault_proxy import PASSING, SLOW, FaultProxy, Kind
from tests.lakes import assert_equal_lakes
from tests.pipeline.lake.helpers import build, make_manifest, make_plan, make_result, sink_for, unit_id
from tests.pipeline.lake.test_run import given_up
from tests.s3_server import S3Server, S3Store

ROOT = Path(__file__).parents[3]
DATA = bytes(range(256)) * 40
SECONDS = 0.4  # of patience with a stalled server
REFUSALS: dict[Kind, str] = {
    "denied": r"access is denied .*; check the credentials and the rights",
    "expired": "the credentials have expired; renew them",
    "no_bucket": "there is no such bucket; create it",
}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_LONGEST_PAUSE", 0.02)


@pytest.fixture(scope="module")
def one_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as made:
        yield made


@pytest.fixture
def proxy(one_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy without faults; one for all tests, since a new endpoint means a new client, which takes a second."""
    yield one_proxy
    one_proxy.clear()


@pytest.fixture
def store(proxy: FaultProxy, s3_store: S3Store) -> LakeStore:
    """A lake's store behind the proxy, with one object."""
    options = proxy.storage_options(s3_store, read_timeout=SECONDS, connect_timeout=SECONDS)
    store = LakeStore(s3_store.url("lake"), options)
    store.put("a.bin", DATA)
    return store


#: Method of the request that is disturbed, and the operation, which returns True where all is as it should be.
OPERATIONS: dict[str, tuple[str, Callable[[LakeStore], bool]]] = {
    "put": ("PUT", lambda store: (store.put("b.bin", DATA), store.get("b.bin") == DATA)[1]),
    "get": ("GET", lambda store: store.get("a.bin") == DATA),
    "get after a look-up": ("HEAD", lambda store: store.get("a.bin") == DATA),
    "get_range": ("GET", lambda store: store.get_range("a.bin", 100, 5000) == DATA[100:5000]),
    "list": ("GET", lambda store: [(entry.path, entry.size) for entry in store.list()] == [("a.bin", len(DATA))]),
    "delete": ("DELETE", lambda store: (store.delete("a.bin"), not store.exists("a.bin"))[1]),
}


@pytest.mark.parametrize(
    ("operation", "kind"),
    # Those that take time for one operation of each sort.
    [(name, kind) for name in OPERATIONS for kind in PASSING if kind not in SLOW or name in ("put", "get", "list")],
)
def test_what_may_pass_is_repeated(store: LakeStore, proxy: FaultProxy, operation: str, kind: Kind) -> None:
    method, run = OPERATIONS[operation]
    fault = proxy.add(kind, method)
    assert run(store)
    assert fault.made == 1


@pytest.mark.parametrize("kind", PASSING)
def test_a_creation_that_is_repeated(store: LakeStore, proxy: FaultProxy, s3_store: S3Store, kind: Kind) -> None:
    """Written once and whole; where the reply was lost the answer may be "it is there", and reading back tells."""
    fault = proxy.add(kind, "PUT")
    created = store.put_if_absent("c.json", b"mine")
    assert fault.made == 1
    assert store.get("c.json") == b"mine"
    if kind in ("error", "slow_down", "reset", "stall", "silent"):
        assert created  # the first request was not carried out
    assert not store.put_if_absent("c.json", b"of another")
    assert store.get("c.json") == b"mine"


@pytest.mark.parametrize("kind", ["shorter", "longer", "cut", "reset"])
def test_a_body_of_another_length_is_never_returned(
    store: LakeStore, proxy: FaultProxy, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "TRIES", 3)
    fault = proxy.add(kind, "GET", times=None)
    with pytest.raises(StoreError, match=r"cannot read .*a\.bin"):
        store.get("a.bin")
    assert fault.made == 3
    with pytest.raises(StoreError, match=r"cannot read .*a\.bin"):
        store.get_range("a.bin", 0, len(DATA))
    assert fault.made == 6


def test_repeats_are_logged_and_bounded_in_tries(
    store: LakeStore, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.clear()
    proxy.add("slow_down", "PUT", times=None)
    with caplog.at_level(logging.WARNING, "pipeline.sources.retry"), pytest.raises(StoreError, match="made by a test"):
        store.put("b.bin", DATA)
    assert len(proxy.requests) == retry.TRIES
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == retry.TRIES - 1
    assert lines[1].startswith(f"cannot write {store.uri}/b.bin (OSError")
    assert f"; try 3 of {retry.TRIES} follows in" in lines[1]
    assert not any("\n" in line for line in lines)


def test_repeats_are_bounded_in_time(store: LakeStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_SECONDS", 1.0)
    proxy.add("stall", "GET", times=None)
    began = time.monotonic()
    with pytest.raises(StoreError, match="cannot read"):
        store.get("a.bin")
    assert time.monotonic() - began < 5


def test_a_server_that_takes_no_bytes_is_given_up(
    store: LakeStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body beyond what the kernel buffers: no answer is awaited yet, so the client's own limits do not apply."""
    monkeypatch.setattr(store_module, "_SLOWEST_LINK", 2**30)
    large = bytes(24 << 20)
    fault = proxy.add("stall", "PUT")
    began = time.monotonic()
    store.put("large.bin", large)
    assert fault.made == 1
    assert time.monotonic() - began < 30
    assert store.size("large.bin") == len(large)


@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("operation", [*OPERATIONS, "create"])
def test_a_refusal_is_told_at_once(store: LakeStore, proxy: FaultProxy, operation: str, kind: Kind) -> None:
    proxy.clear()
    fault = proxy.add(kind, times=None)
    run = OPERATIONS[operation][1] if operation in OPERATIONS else lambda store: store.put_if_absent("b.bin", DATA)
    began = time.monotonic()
    with pytest.raises(AccessError, match=REFUSALS[kind]) as caught:
        run(store)
    assert store.uri in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 2
    assert fault.made <= 2  # a HEAD has no body to say why: a GET asks
    proxy.clear()
    assert run(store)


def fill(store: LakeStore, units: int = 2) -> None:
    """What a run does with a lake, from its start or from where it stands."""
    plan = make_plan(units)
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    for unit in sorted({unit_id(i) for i in range(units)} - committed(store)):
        sink_for(store, manifest).write(make_result(unit))
    finalize(store)


def undisturbed(path: Path, units: int = 2) -> str:
    build(LakeStore(str(path)), units)
    return str(path)


def test_a_storm_changes_nothing(store: LakeStore, proxy: FaultProxy, s3_store: S3Store, tmp_path: Path) -> None:
    """Every third request of a whole run fails, in turn in each way that may pass."""
    store.delete("a.bin")
    proxy.storm(every=3)
    fill(store)
    assert set(proxy.made) == set(PASSING)
    assert proxy.made.total() > 20
    proxy.clear()
    clear = LakeStore(store.uri, s3_store.storage_options)
    assert verify(clear).problems == []
    assert_equal_lakes(undisturbed(tmp_path / "lake"), store.uri, right_options=s3_store.storage_options)


def test_a_lost_reply_to_any_write_is_no_conflict(
    store: LakeStore, proxy: FaultProxy, s3_store: S3Store, tmp_path: Path
) -> None:
    """To one write of each sort in a run."""
    store.delete("a.bin")
    proxy.clear()
    sorts = (".camlake-probe-", layout.PLAN_UNITS, layout.MANIFEST, "images/", "c/0/0/0", "commits/", layout.SUCCESS)
    faults = [proxy.add("drop_reply", "PUT", sort) for sort in sorts]
    fill(store, 1)
    assert [fault.made for fault in faults] == [1] * len(sorts)
    clear = LakeStore(store.uri, s3_store.storage_options)
    result = verify(clear)
    assert result.problems == []
    assert result.orphans == 0
    assert_equal_lakes(undisturbed(tmp_path / "lake", 1), store.uri, right_options=s3_store.storage_options)


def test_a_lost_reply_to_a_commit_counts_as_ours(store: LakeStore, proxy: FaultProxy) -> None:
    plan = make_plan(1)
    store.delete("a.bin")
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    proxy.add("drop_reply", "PUT", "commits/")
    written = sink_for(store, manifest).write(make_result(unit_id(0), "a1"))
    assert written.ours
    assert written.commit.attempt == "a1"


def test_a_lost_reply_to_a_record_of_a_unit_that_is_given_up(store: LakeStore, proxy: FaultProxy) -> None:
    proxy.add("drop_reply", "PUT", "quarantine/")
    quarantine(store, given_up(0))
    assert quarantined(store) == {unit_id(0)}


@pytest.mark.parametrize("nth", [3, 9])
def test_a_refusal_in_mid_run_ends_it_and_the_rest_is_done_later(
    store: LakeStore, proxy: FaultProxy, s3_store: S3Store, tmp_path: Path, nth: int
) -> None:
    """In the midst of the objects of a unit, and at its commit."""
    store.delete("a.bin")
    plan = make_plan(2)
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    sink_for(store, manifest).write(make_result(unit_id(0)))
    for kind, match in REFUSALS.items():
        proxy.clear()
        proxy.add(kind, "PUT", nth=nth, times=None)
        began = time.monotonic()
        with pytest.raises(AccessError, match=match):
            fill(store)
        assert time.monotonic() - began < 5
        proxy.clear()
        assert committed(store) == {unit_id(0)}
    fill(store)
    assert verify(store).problems == []
    assert_equal_lakes(undisturbed(tmp_path / "lake"), store.uri, right_options=s3_store.storage_options)


# A real disk --------------------------------------------------------------------------------------------------------

SCRIPT = """
import errno, os, resource, subprocess, sys
from pathlib import Path
from pipeline.lake import local
from pipeline.lake.run import committed
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from schemas.errors import CamlakeError
from tests.lakes import assert_equal_lakes
from tests.pipeline.lake.test_storage_faults import fill, undisturbed

fault, real, folder, reference = sys.argv[1], sys.argv[2] == "real", sys.argv[3], sys.argv[4]
opened = os.open

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)

def refuse(path, flags, *rest, **more):
    if flags & os.O_CREAT and str(path).startswith(folder) and "/heatmaps/" in str(path):
        raise OSError(errno.EROFS, "Read-only file system")
    return opened(path, flags, *rest, **more)

if real:
    mount("size=56k" if fault == "full" else "size=8m")
elif fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
store = LakeStore(folder + "/lake")
if fault == "read-only":
    if real:
        Path(folder, "lake").mkdir()
        mount("remount,ro")
    else:
        os.open = refuse
try:
    fill(store, 3)
except CamlakeError as error:
    print(type(error).__name__, error)
else:
    sys.exit("nothing went wrong")
if real:
    mount("remount,rw,size=8m")
elif fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
os.open = opened
left = [str(path) for path in Path(folder).rglob("*.partial")]
assert left == [], left
print("committed", len(committed(store)))
fill(store, 3)
assert verify(store).problems == []
assert_equal_lakes(undisturbed(Path(reference), 3), store.uri)
print("whole")
"""


def can_mount() -> bool:
    """Whether this user may mount in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
    )


def on_a_disk(fault: str, tmp_path: Path, *, real: bool) -> str:
    """Run the script on a small tmpfs, or with a limit of the process or a patched call; return what it printed."""
    (tmp_path / "disk").mkdir()
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        fault,
        "real" if real else "made",
        str(tmp_path / "disk"),
        str(tmp_path / "b"),
    ]
    done = subprocess.run(
        ["unshare", "-rm", *command] if real else command, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("fault", "match"),
    [("full", "the disk is full|file of this size"), ("read-only", "the file system is read-only")],
)
def test_a_disk_that_is_full_or_read_only(tmp_path: Path, fault: str, match: str) -> None:
    """A clear error at once, no torn object, and where there is space again the rest is done."""
    said = on_a_disk(fault, tmp_path, real=can_mount())
    first, *rest = said.splitlines()
    assert first.split()[0] in ("AccessError", "InputError")
    assert any(part in first for part in match.split("|")), said
    assert rest[-1] == "whole"
