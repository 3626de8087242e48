"""A Ray head with its dashboard, as a process of its own: what jobs are submitted to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Head:
    """A head that runs: the dashboard's address, and the variables that its clients need (a token, perhaps)."""

    address: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def ray_head(*, cpus: int = 2, token: str | None = None, seconds: float = 90.0) -> Iterator[Head]:
    """``ray start --head`` on free ports; with ``token`` it asks for that one. Ends all that it started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    auth = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    ports = free_ports(5)
    # Short, because sockets lie in it and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        # As in an activated environment: jobs are started as `python ...`.
        programs = Path(sys.executable).parent
        environment = kept | auth | quiet | {"PATH": f"{programs}{os.pathsep}{kept.get('PATH', '')}"}
        names = (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "metrics-export-port",
            "ray-client-server-port",
        )
        options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        options += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        log = Path(folder) / "head.log"
        with log.open("wb") as out:
            head = subprocess.Popen(
                [programs / "ray", "start", "--head", "--block", f"--num-cpus={cpus}", *options],
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            _wait(head, address, log, seconds)
            yield Head(address, auth)
        finally:
            _end(head)


def _wait(head: subprocess.Popen[bytes], address: str, log: Path, seconds: float) -> None:
    """Wait until the job server answers, if only that a token is wanting."""
    deadline = time.monotonic() + seconds
    while True:
        assert head.poll() is None, f"the head ended with exit code {head.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the head did not answer in {seconds:.0f} s:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=5):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return
        except OSError:
            pass
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and every process of its session."""
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(20)
