"""Where workers land: shares of GPUs, unlike nodes, and nodes that come late. The GPUs are declared and not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.jobs.faults import ROOT, commits, job, make_data, wait_for, write

pytestmark = pytest.mark.slow
UNITS = 160
_READY = re.compile(r"^(worker-\d+) is ready on (\w+) \(\['(\d+)'\]\)$", re.MULTILINE)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without GPU, where the driver is."""
    # Ray gives its workers the lowest priority, and whatever else runs here would starve them.
    settings = {"worker_niceness": 0}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, "_system_config": settings})
    yield made
    made.shutdown()


def test_workers_land_where_their_share_of_a_gpu_is_and_late_nodes_are_used(cluster: Cluster, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 1, 1)
    shards = sorted((data / "shards").iterdir())
    for number in range(1, UNITS):
        (data / "shards" / f"more-{number:03d}.tar").hardlink_to(shards[0])
    resting = data / "orders" / "rest"
    resting.touch()
    lake, log = tmp_path / "lake", tmp_path / "log"
    wants = {"max": 6, "gpus": 0.5, "cpus": 0.1, "resources": {"pool": 1}}
    path = write(job(data, lake, **wants), tmp_path / "job.yaml")
    first = cluster.add_node(num_cpus=1, num_gpus=1, resources={"pool": 8})
    other = cluster.add_node(num_cpus=1, num_gpus=4)  # not of the pool: nobody may land here
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tests.jobs.pools", str(path), cluster.address]
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def landed() -> list[tuple[str, str]]:
        return [(node, gpu) for _, node, gpu in _READY.findall(log.read_text())]

    try:
        # Two share the only GPU; four wait, which is said, and the run goes on meanwhile.
        wait_for(lambda: "4 of 6 workers have no place yet" in log.read_text(), run)
        assert "a node comes that has 0.5 GPU, 0.1 CPU, 1 pool to spare" in log.read_text()
        wait_for(lambda: landed() == [(first.node_id, "0")] * 2, run)
        before = commits(lake)
        wait_for(lambda: commits(lake) > before, run)
        # Another kind of machine: two GPUs, and room for three of the pool.
        late = cluster.add_node(num_cpus=2, num_gpus=2, resources={"pool": 3, "fast": 1})
        wait_for(lambda: len(landed()) == 5, run)
        resting.unlink()
        assert run.wait(120) == 0, log.read_text()
    finally:
        run.kill()
    assert re.search(rf"the driver is on {cluster.head_node.node_id} \[\]", log.read_text())
    assert other.node_id not in log.read_text()
    nodes = Counter(node for node, _ in landed())
    assert nodes == {first.node_id: 2, late.node_id: 3}
    # A share is a share of one GPU: two on one, the third on the other.
    assert sorted(Counter(gpu for node, gpu in landed() if node == late.node_id).values()) == [1, 2]
    assert commits(lake) == UNITS
