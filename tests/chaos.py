"""Chaos: one run, and whatever can die in it dies at random; its lake ends complete and equal to an undisturbed one.

    python -m tests.chaos [--seed N] [--units 200] [--faults 40]

The cluster is real (a head and two nodes on this machine), and so is the object store that holds shards and lake, over
HTTP and through a proxy that breaks every so many requests. Workers are killed and stopped, nodes are killed and
replaced, the driver is killed, interrupted and started again with the same command.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from pipeline.lake import LakeStore, verify
from pipeline.lake.run import committed
from tests.fault_proxy import FaultProxy
from tests.jobs.faults import job, make_data, start, write
from tests.lakes import assert_equal_lakes
from tests.s3_server import S3Server, S3Store

#: A worker in which nothing goes on for so long is ended; storage faults that take time are shorter.
STALL = 15.0
_CONFIG = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
_LIMITS = {"connect_timeout": 2, "read_timeout": 2}
_MOST_SECONDS = 1200.0


class Chaos:
    """Makes faults in a run.

    Args:
        seed: of every choice.
        units: of the run; two images each.
        faults: of processes and nodes; after so many the run is left alone to end.
        pause: least and most seconds between two of them.
    """

    def __init__(self, seed: int, units: int, faults: int, pause: tuple[float, float] = (0.5, 3.0)) -> None:
        self.random = random.Random(seed)
        self.units = units
        self.left = faults
        self.pause = pause
        self.made: Counter[str] = Counter()
        # How often each is in the deck that is dealt from: shuffled, and again when it is empty, so that a run of a
        # dozen faults has seen every kind.
        self._actions: dict[str, tuple[int, Callable[[], bool]]] = {
            "worker killed": (6, lambda: self._signal_worker(signal.SIGKILL)),
            "worker stopped": (1, lambda: self._signal_worker(signal.SIGSTOP)),
            "node killed": (2, self._kill_node),
            "driver killed": (1, lambda: self._signal_driver(signal.SIGKILL)),
            "driver terminated": (1, lambda: self._signal_driver(signal.SIGTERM)),
            "driver interrupted": (1, lambda: self._signal_driver(signal.SIGINT)),
        }
        self._deck: list[str] = []

    def run(self, folder: Path, server: S3Server) -> None:
        """Run undisturbed, then disturbed, and compare.

        Raises:
            AssertionError: the lakes differ, the disturbed one is not whole, or the run does not end.
        """
        data = make_data(folder / "data", 2 * self.units, self.units)
        self.store = server.store()
        for shard in sorted((data / "shards").glob("*.tar")):
            self.store.put(f"shards/{shard.name}", shard.read_bytes())
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": _CONFIG})
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]
        self.log = folder / "log"
        try:
            calm = write(self._job(data, "calm", self.store.storage_options), folder / "calm.yaml")
            self.driver = self._start(calm)
            assert self.driver.wait(_MOST_SECONDS) == 0, self._tail()
            with FaultProxy(server.endpoint) as proxy:
                proxy.storm(every=40, faults=self.left * 4)
                options = proxy.storage_options(self.store, **_LIMITS)
                self._disturb(write(self._job(data, "stormy", options), folder / "stormy.yaml"))
                self.made.update({f"storage: {kind}": count for kind, count in proxy.made.items()})
        finally:
            self.driver.kill()
            self.cluster.shutdown()
        self._check(self.store)

    def _job(self, data: Path, lake: str, options: dict[str, Any]) -> dict[str, Any]:
        # Attempts without end, nearly: a unit that chance hits again and again must not be given up.
        document = job(data, data, max=2, attempts=100, stall_seconds=STALL)
        document["source"] |= {"uri": self.store.url("shards/*.tar"), "storage_options": options}
        document["output"] = {"uri": self.store.url(lake), "storage_options": options}
        return document

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        return start(path, self.log, "--address", self.cluster.address)

    def _disturb(self, path: Path) -> None:
        self.driver = self._start(path)
        deadline = time.monotonic() + _MOST_SECONDS
        following = time.monotonic() + 8.0
        while True:
            time.sleep(0.1)
            assert time.monotonic() < deadline, f"the run does not end\n{self._tail()}"
            code = self.driver.poll()
            if code == 0:
                return
            if code is not None:
                # Before the workers are asked for, SIGTERM ends it as it ends any program; a shell says 143 to both.
                assert code in (-signal.SIGKILL, -signal.SIGTERM, 130, 143), f"exit code {code}\n{self._tail()}"
                self.driver = self._start(path)
            if self.left and time.monotonic() > following and self._fault():
                self.left -= 1
                following = time.monotonic() + self.random.uniform(*self.pause)

    def _fault(self) -> bool:
        if not self._deck:
            self._deck = [name for name, (times, _) in self._actions.items() for _ in range(times)]
            self.random.shuffle(self._deck)
        # One that finds nothing to hit stays on top.
        if not self._actions[self._deck[-1]][1]():
            return False
        self.made[self._deck.pop()] += 1
        return True

    def _signal_worker(self, number: int) -> bool:
        # The cluster's, not another's on this machine: they are grandchildren of this process.
        workers = [
            process for process in psutil.Process().children(recursive=True) if _title(process) == "AttributionWorker"
        ]
        if not workers:
            return False
        chosen = self.random.choice(sorted(workers, key=lambda process: process.pid))
        try:
            chosen.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return True

    def _kill_node(self) -> bool:
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return True

    def _signal_driver(self, number: int) -> bool:
        if len(committed(LakeStore(self.store.url("stormy"), self.store.storage_options))) == self.units:
            return False
        self.driver.send_signal(number)
        try:
            self.driver.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver does not end on signal {number}\n{self._tail()}") from None
        return True

    def _check(self, store: S3Store) -> None:
        calm, stormy = store.url("calm"), store.url("stormy")
        assert_equal_lakes(calm, stormy, storage_options=store.storage_options)
        found = verify(LakeStore(stormy, store.storage_options))
        assert found.ok, found.problems

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


def _title(process: psutil.Process) -> str:
    """Name of the actor's class in the title that Ray gives a worker, such as ``ray::AttributionWorker.process``."""
    try:
        title = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    return title.removeprefix("ray::").partition(".")[0].strip() if title.startswith("ray::") else ""


def main(arguments: list[str] | None = None) -> int:
    """Run chaos and say what was survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="of every choice (default: another each time; it is printed)")
    parser.add_argument("--units", type=int, default=200, help="units of the run (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=40, help="of processes and nodes (default: %(default)s)")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}, {options.units} units, {options.faults} faults of processes and nodes", flush=True)
    chaos, server, began = Chaos(seed, options.units, options.faults), S3Server(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            chaos.run(Path(folder), server)
    finally:
        server.stop()
    for name, count in sorted(chaos.made.items()):
        print(f"  survived {count:4d}  {name}")
    print(
        f"  the lake is whole, verifies and equals the undisturbed one ({time.monotonic() - began:.0f} s, seed {seed})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
