"""Nodes of a cluster that join, are drained and die, and Ray's memory monitor: no unit is blamed for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from pipeline.lake import LakeStore, verify
from pipeline.lake.documents import read_commits
from tests.jobs.faults import commits, job, make_data, start, undisturbed_lake, wait_for, write
from tests.lakes import assert_equal_lakes

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]
UNITS = 24
#: Ray notices a dead node in two seconds instead of ten.
CONFIG: dict[str, Any] = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two scenes."""
    return make_data(tmp_path_factory.mktemp("faults"), 2 * UNITS, UNITS)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lake of a run in which nothing happens."""
    return undisturbed_lake(data, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose head has no room for workers; with a memory monitor that is soon alarmed where asked for."""
    settings = dict(CONFIG)
    if getattr(request, "param", None) == "little memory":
        settings |= {"memory_usage_threshold": threshold(), "memory_monitor_refresh_ms": 100}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings})
    yield made
    made.shutdown()


def workers_of(lake: Path) -> set[str]:
    return {commit.worker for commit in read_commits(LakeStore(str(lake)))}


def test_nodes_join_are_drained_and_die(data: Path, undisturbed: str, cluster: Cluster, tmp_path: Path) -> None:
    lake, log = tmp_path / "lake", tmp_path / "log"
    # One attempt: a unit that were blamed for its node's death would be given up.
    path = write(job(data, lake, max=2, attempts=1), tmp_path / "job.yaml")
    resting = data / "orders" / "rest@0.2"
    resting.touch()
    first = cluster.add_node(num_cpus=1)
    run = start(path, log, "--address", cluster.address)
    try:
        wait_for(lambda: commits(lake) >= 2, run)
        assert len(workers_of(lake)) == 1
        second = cluster.add_node(num_cpus=1)
        wait_for(lambda: len(workers_of(lake)) >= 2, run)
        cluster.remove_node(first, allow_graceful=False)
        before = commits(lake)
        wait_for(lambda: commits(lake) > before, run)
        third = cluster.add_node(num_cpus=1)
        known = workers_of(lake)
        wait_for(lambda: bool(workers_of(lake) - known), run)
        drain(cluster, second.node_id)
        cluster.remove_node(second, allow_graceful=False)
        assert third.node_id
        resting.unlink()
        assert run.wait(120) == 0, log.read_text()
    finally:
        resting.unlink(missing_ok=True)
        run.kill()
    assert_equal_lakes(undisturbed, str(lake))
    assert verify(LakeStore(str(lake))).ok


def drain(cluster: Cluster, node: str) -> None:
    """Announce a preemption, as a cloud does."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
    command += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", "2"], check=True, capture_output=True, timeout=60)


def threshold() -> float:
    """Room for a cluster, a driver and two workers above what is used now, as a share of the memory."""
    memory = psutil.virtual_memory()
    return min(0.95, (memory.total - memory.available + 4.5e9) / memory.total)


@pytest.mark.parametrize("cluster", ["little memory"], indirect=True)
def test_the_memory_monitor_ends_a_worker_and_no_unit_is_blamed(
    data: Path, undisturbed: str, cluster: Cluster, tmp_path: Path
) -> None:
    lake, log = tmp_path / "lake", tmp_path / "log"
    path = write(job(data, lake, max=2, attempts=1), tmp_path / "job.yaml")
    cluster.add_node(num_cpus=2)
    (data / "orders" / "allocate@5").touch()
    run = start(path, log, "--address", cluster.address)
    try:
        assert run.wait(150) == 0, log.read_text()
    finally:
        run.kill()
    assert not list((data / "orders").iterdir()), "nobody ran out of memory"
    assert "OutOfMemoryError" in log.read_text()
    assert_equal_lakes(undisturbed, str(lake))
