"""Pseudo-label jobs on Ray: workers that die, drivers that are killed, an object store, and the dense CRF on CPUs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from typer.testing import Result

from pipeline.lake import LakeStore, open_lake, verify
from pipeline.pseudolabels import crf
from tests.faulty import picture
from tests.jobs.faults import commits, job, make_data, start, wait_for, write
from tests.jobs.inline import run_inline
from tests.jobs.test_s3 import flat
from tests.lakes import assert_equal_lakes
from tests.pipeline.pseudolabels.test_from_lake import label_stored
from tests.s3_server import S3Store
from tests.tars import write_tar

pytestmark = pytest.mark.usefixtures("local_ray")
UNITS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two scenes."""
    return make_data(tmp_path_factory.mktemp("faults"), 2 * UNITS, UNITS)


def label_job(data: Path, lake: Path, **settings: Any) -> dict[str, Any]:
    return job(data, lake) | {
        "methods": ["grad_cam"],
        "targets": {"label": True},
        "pseudo_labels": {"scales": [1.0, 0.5], "files": {"confidence": True}} | settings,
    }


@pytest.mark.slow
def test_workers_that_die_and_a_driver_that_is_killed_cost_nothing(
    data: Path, tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    run_inline(label_job(data, tmp_path / "whole"))
    lake, log = tmp_path / "lake", tmp_path / "log"
    path = write(label_job(data, lake), tmp_path / "job.yaml")
    rest = data / "orders" / "rest@0.2"
    rest.touch()
    run = start(path, log, command="pseudo_labels")
    wait_for(lambda: commits(lake) > 0, run)
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    rest.unlink()
    assert commits(lake) < UNITS, "the run was over before the signal"
    (data / "orders" / "kill@2").touch()
    done = camlake("pseudo-labels", path)
    assert done.exit_code == 0, done.output
    assert "(resumed:" in done.output and "12 labels" in done.output and "refine " in done.output
    assert not list((data / "orders").iterdir())
    assert_equal_lakes(str(tmp_path / "whole"), str(lake))
    assert verify(LakeStore(str(lake))).ok
    again = camlake("pseudo-labels", path)
    assert again.exit_code == 0 and "6 of 6 units are done" in again.output
    status = camlake("status", lake)
    assert "finished" in status.output and "12 labels" in status.output and "refine" in status.output


def stored_worker(driver: int) -> int:
    """Process of the worker that a driver's own Ray runs."""
    [found] = [
        each.pid
        for each in psutil.Process(driver).children(recursive=True)
        if "StoredMapsWorker" in " ".join(each.cmdline())
    ]
    return int(found)


@pytest.mark.slow
def test_a_worker_and_a_driver_killed_over_stored_maps_cost_nothing(
    data: Path, tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    maps, lake, log = tmp_path / "maps", tmp_path / "lake", tmp_path / "log"
    run_inline(job(data, maps) | {"methods": ["grad_cam"], "targets": {"label": True}})
    # So many neighbours that a unit takes a while.
    settings = [
        f"pseudo_labels.refine={json.dumps({'method': 'pamr', 'iterations': 60, 'dilations': list(range(1, 33))})}",
        "pseudo_labels.files.confidence=true",
    ]
    label_stored(open_lake(str(maps)), tmp_path / "whole", settings)
    path = write({"output": {"uri": str(lake)}, "workers": {"max": 1}}, tmp_path / "job.yaml")
    arguments = ["--from", str(maps), *(word for each in settings for word in ("--set", each))]
    run = start(path, log, *arguments, command="pseudo_labels")
    wait_for(lambda: commits(lake) > 0, run)
    os.kill(stored_worker(run.pid), signal.SIGKILL)
    wait_for(lambda: "ActorDiedError" in log.read_text(), run)
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    assert 0 < commits(lake) < UNITS, "the run was over before the signals"
    done = camlake("pseudo-labels", path, *arguments)
    assert done.exit_code == 0, done.output
    assert "(resumed:" in done.output
    assert_equal_lakes(str(tmp_path / "whole"), str(lake))
    assert verify(LakeStore(str(lake))).ok


@pytest.mark.slow
def test_an_image_that_ends_its_worker_costs_itself_and_no_neighbours_label(
    data: Path, tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, shard in enumerate(sorted((data / "shards").glob("*.tar"))[:2]):
        write_tar(shard, shards / shard.name, {} if number else {"bad-kill.png": picture("kill")})
    source = {"uri": str(shards / "*.tar"), "format": "webdataset"}
    among = label_job(data, tmp_path / "among") | {"source": source, "targets": "predicted"}
    done = camlake("pseudo-labels", write(among, tmp_path / "job.yaml"))
    assert done.exit_code == 1, done.output
    rows = open_lake(str(tmp_path / "among")).images.to_table().to_pylist()
    [bad] = [row for row in rows if row["status"] != "ok"]
    assert len(rows) == 5 and bad["status"] == "decode_crash" and "SIGKILL" in bad["error"]
    for shard in sorted((data / "shards").glob("*.tar"))[:2]:
        (shards / shard.name).write_bytes(shard.read_bytes())
    run_inline(among | {"output": {"uri": str(tmp_path / "alone")}})
    assert files_of(tmp_path / "among") == files_of(tmp_path / "alone")
    assert verify(LakeStore(str(tmp_path / "among"))).ok


def files_of(lake: Path) -> dict[str, bytes]:
    """Masks and confidences by path."""
    found = {
        str(path.relative_to(lake)): path.read_bytes()
        for folder in ("masks", "confidence")
        for path in (lake / folder).rglob("*.png")
    }
    assert found
    return found


def test_labels_in_a_bucket_of_shards_and_of_maps_in_it(
    data: Path, tmp_path: Path, s3_store: S3Store, camlake: Callable[..., Result]
) -> None:
    options = s3_store.storage_options
    shards = sorted((data / "shards").glob("*.tar"))[:2]
    for shard in shards:
        s3_store.put(f"shards/{shard.name}", shard.read_bytes())
    s3_store.put("net.safetensors", (data / "net.safetensors").read_bytes())

    def here(document: dict[str, Any], name: str) -> dict[str, Any]:
        local = document["source"] | {"uri": [str(shard) for shard in shards]}
        return document | {"source": local, "output": {"uri": str(tmp_path / name)}}

    def there(document: dict[str, Any], name: str) -> dict[str, Any]:
        remote = document["source"] | {"uri": s3_store.url("shards/*.tar"), "storage_options": options}
        model = document["model"] | {"weights": s3_store.url("net.safetensors"), "storage_options": options}
        output = {"uri": s3_store.url(name), "storage_options": options}
        return document | {"source": remote, "model": model, "output": output}

    def in_bucket(name: str) -> dict[str, bytes]:
        store = LakeStore(s3_store.url(name), options)
        assert verify(store).ok
        return {path: store.get(path) for folder in ("masks", "confidence") for path in paths(store, folder)}

    def paths(store: LakeStore, folder: str) -> list[str]:
        return [entry.path for entry in store.list(folder)]

    labels = label_job(data, tmp_path)
    path = write(there(labels, "labels"), tmp_path / "job.yaml")
    done = camlake("pseudo-labels", path)
    assert done.exit_code == 0, done.output
    run_inline(here(labels, "labels"))
    assert in_bucket("labels") == files_of(tmp_path / "labels")
    again = camlake("pseudo-labels", path)
    assert again.exit_code == 0 and "2 of 2 units are done" in again.output

    maps = job(data, tmp_path) | {"methods": ["grad_cam"], "targets": {"label": True}}
    run_inline(here(maps, "maps"))
    run_inline(there(maps, "maps"))
    settings = ["pseudo_labels.files.confidence=true"]
    label_stored(open_lake(str(tmp_path / "maps")), tmp_path / "stored", settings)
    storage = [f"--storage={key}={json.dumps(value)}" for key, value in flat(options)]
    of_pictures = [option.replace("--storage", "--source-storage") for option in storage]
    output = {"uri": s3_store.url("stored"), "storage_options": options}
    path = write({"output": output, "pseudo_labels": {"files": {"confidence": True}}}, tmp_path / "from.yaml")
    arguments = ["pseudo-labels", path, "--from", s3_store.url("maps"), *storage, *of_pictures]
    done = camlake(*arguments)
    assert done.exit_code == 0, done.output
    assert in_bucket("stored") == files_of(tmp_path / "stored")
    manifest = LakeStore(s3_store.url("stored"), options).get("camlake.json").decode()
    assert not any(str(options[key]) in manifest for key in ("key", "secret"))
    again = camlake(*arguments)
    assert again.exit_code == 0 and "2 of 2 units are done" in again.output
    truth = tmp_path / "labels" / "masks"
    measured = camlake("evaluate-labels", s3_store.url("labels"), "--truth", truth, *storage)
    assert measured.exit_code == 0 and "1.000" in measured.output, measured.output


@pytest.mark.parametrize("spare", ["a cpu", "no cpu", "too late"])
def test_the_dense_crf_gives_the_same_on_the_cluster_and_in_the_worker(
    spare: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed (it compiles C++)")
    document = label_job(data, tmp_path / "here", refine={"method": "crf", "iterations": 3})
    document["source"]["uri"] = str(next((data / "shards").glob("*.tar")))
    here: list[int] = []
    monkeypatch.setattr(crf, "dense_crf", lambda *given, inner=crf.dense_crf: here.append(1) or inner(*given))
    with monkeypatch.context() as patch:
        patch.setattr(crf.CrfRunner, "_spare", lambda self: False)
        run_inline(document)
    assert len(here) == 2
    if spare == "no cpu":
        monkeypatch.setattr(crf.CrfRunner, "_spare", lambda self: False)
    if spare == "too late":
        monkeypatch.setattr(ray, "wait", lambda references, timeout: ([], references))
    run_inline(document | {"output": {"uri": str(tmp_path / "there")}})
    assert len(here) == (2 if spare == "a cpu" else 4)
    assert_equal_lakes(str(tmp_path / "here"), str(tmp_path / "there"))
