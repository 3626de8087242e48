"""The Slurm script, run against stand-ins of Slurm's and Ray's commands that write down how they are called."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import load_job
from jobs.submit import require_reachable
from tests.deploy.versions import ROOT

SCRIPT = ROOT / "deploy" / "slurm" / "camlake.sbatch"

#: `srun OPTIONS COMMAND...` runs the command here. `ray` listens, as a head does, until it is ended. `camlake` waits
#: for a file `end` with its exit code, and ends with 143 when it is terminated, after a moment.
COMMANDS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "srun": """
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "hostname": "echo 127.0.0.1 10.0.0.1",
    "ray": """
echo "ray $* mode=$RAY_AUTH_MODE token=$(cat "$RAY_AUTH_TOKEN_PATH")" >> "$CALLS"
trap 'echo "ended ${*: -1}" >> "$CALLS"; exit 0' TERM
if [[ $* == *--head* ]]; then exec python3 -c "
import signal, socket, sys
port = int([a for a in sys.argv if a.startswith('--port=')][0][7:])
server = socket.create_server(('127.0.0.1', port))
signal.pause()" "$@"; fi
sleep 1000 & wait
""",
    "camlake": """
echo "camlake $*" >> "$CALLS"
trap 'sleep 0.3; echo "camlake finishes" >> "$CALLS"; exit 143' TERM
while [[ ! -e $FOLDER/end ]]; do sleep 0.1 & wait $!; done
exit "$(cat "$FOLDER/end")"
""",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment with stand-ins of the commands, in an allocation of three nodes."""
    programs = tmp_path / "environment" / "bin"
    programs.mkdir(parents=True)
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body.strip()}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n[[ -e {programs}/python ]] || true\n")
    (programs / "python").write_text('#!/usr/bin/env bash\nexec python3 "$@"\n')
    (programs / "python").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    return kept | {
        "CALLS": str(tmp_path / "calls"),
        "FOLDER": str(tmp_path),
        "CAMLAKE_ENVIRONMENT": str(tmp_path / "environment"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


@pytest.fixture
def run(slurm: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The script, started; whatever is left of it at the end is killed."""
    with (Path(slurm["FOLDER"]) / "log").open("wb") as log:
        started = subprocess.Popen(
            ["bash", SCRIPT, "job.yaml", "--set", "workers.max=8"],
            env=slurm,
            cwd=slurm["FOLDER"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def calls(slurm: dict[str, str], until: str, seconds: float = 20) -> list[str]:
    """Wait until a call begins with ``until``, and return all."""
    path, deadline = Path(slurm["CALLS"]), time.monotonic() + seconds
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if any(line.startswith(until) for line in lines):
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_its_syntax_is_right() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


def test_head_and_workers_share_a_token_and_the_driver_s_code_is_the_job_s(
    slurm: dict[str, str], run: subprocess.Popen[bytes]
) -> None:
    calls(slurm, "camlake attribute job.yaml")
    lines = calls(slurm, "ray start --block")
    port = 20000 + os.getpid() % 20000
    started = [line for line in lines if line.startswith("ray start")]
    assert len(started) == 2, "the stand-in of srun starts one task for all of its nodes"
    tokens = {line.rpartition("token=")[2] for line in started}
    assert len(tokens) == 1 and len(tokens.pop()) == 64 and all("mode=token" in line for line in started)
    steps = "\n".join(line for line in lines if line.startswith("srun --overlap"))
    assert "--nodes=1 --ntasks=1 --nodelist=node1 ray start --head --block" in steps
    assert f"--node-ip-address=127.0.0.1 --port={port}" in steps and "--num-cpus=16 --num-gpus=4" in steps
    assert f"--nodes=2 --ntasks=2 --exclude=node1 ray start --block --address=127.0.0.1:{port}" in steps
    assert f"camlake attribute job.yaml --address 127.0.0.1:{port} --set workers.max=8" in steps
    scratch = Path(slurm["FOLDER"]) / f".camlake-{slurm['SLURM_JOB_ID']}"
    assert (scratch / "token").stat().st_mode & 0o077 == 0

    (Path(slurm["FOLDER"]) / "end").write_text("1")
    assert run.wait(20) == 1
    assert not scratch.exists(), "the token is left behind"
    assert f"srun --overlap --nodes=3 --ntasks=3 rm -rf /tmp/ray-{os.getpid()}" in calls(slurm, "ended")


def test_a_warning_reaches_the_driver_first(slurm: dict[str, str], run: subprocess.Popen[bytes]) -> None:
    calls(slurm, "camlake attribute job.yaml")
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(20) == 143
    lines = calls(slurm, "ended")
    assert lines.index("camlake finishes") < min(index for index, line in enumerate(lines) if line.startswith("ended"))


def test_its_job_file_is_valid() -> None:
    job = load_job(str(ROOT / "deploy" / "slurm" / "job.yaml"))
    require_reachable(job)
    text = SCRIPT.read_text()
    assert f"--gpus-per-node={int(job.workers.max / 4)}" in text, "one worker per GPU of four nodes"
    assert f"--cpus-per-task={int(4 * job.workers.cpus)}" in text
