"""``camlake submit`` without a cluster: what is refused, ids, and what the job server is asked for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import Result

from jobs import ray_jobs, submit
from jobs.config import parse_job
from jobs.ray_jobs import base_id

Run = Callable[..., Result]


@dataclass
class Server:
    """Ray's client as far as it is used here, with a table of jobs in memory."""

    table: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    staged: list[str] = field(default_factory=list)
    exit_code: int | None = 0
    status: str = "SUCCEEDED"
    message: str = ""
    breaks: bool = False

    def get_address(self) -> str:
        return "http://head:8265"

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.table.items()]

    def submit_job(self, **request: Any) -> str:
        folder = Path(request["runtime_env"]["working_dir"])
        self.staged = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        self.requests.append(request)
        name: str = request["submission_id"]
        assert name not in self.table
        self.table[name] = "RUNNING"
        return name

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield "units 1/2\n"
        self.table[name] = self.status
        if self.breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, name: str) -> Any:
        return SimpleNamespace(status=self.table[name], driver_exit_code=self.exit_code, message=self.message)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(submit, "connect", lambda address: server)
    return server


@pytest.fixture
def job_file(document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "project" / "job.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(document))
    (path.parent / "my_net.py").write_text("")
    return path


def test_what_is_submitted_and_said(
    camlake: Run, server: Server, job_file: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_ENDPOINT", "hunter2")
    result = camlake("submit", job_file, "--set", "targets.top_k=2", "--max-failed", "0.1", "--env", "MY_ENDPOINT")
    assert result.exit_code == 0, result.output
    (request,) = server.requests
    assert request["entrypoint"] == "python -m jobs.attribute job.yaml --set=targets.top_k=2 --set=max_failed=0.1"
    assert request["runtime_env"]["env_vars"] == {"MY_ENDPOINT": "hunter2"} and "hunter2" not in result.output
    assert {"job.yaml", "my_net.py", "jobs/attribute.py", "schemas/job.py"} <= set(server.staged)
    assert not Path(request["runtime_env"]["working_dir"]).exists()
    changed = document | {"targets": document["targets"] | {"top_k": 2}, "max_failed": 0.1}
    name = f"{base_id(parse_job(changed))}-1"
    assert request["submission_id"] == name
    for command in ("ray job logs --follow", "ray job status", "ray job stop"):
        assert f"{command} --address http://head:8265 {name}" in result.output
    assert f"camlake status {document['output']['uri']}" in result.output


def test_the_job_logs_as_it_is_asked_to_and_this_command_for_people(
    camlake: Run, server: Server, job_file: Path
) -> None:
    result = camlake("submit", job_file, "--log-format", "json")
    assert result.exit_code == 0 and result.output.startswith("submitted ")
    assert server.requests[0]["entrypoint"] == "python -m jobs.attribute job.yaml --log-format=json"


def test_each_attempt_has_an_id_of_its_own_and_each_lake_has_its_own(
    camlake: Run, server: Server, job_file: Path, document: dict[str, Any]
) -> None:
    base = base_id(parse_job(document))
    server.table = {f"{base}-1": "STOPPED", f"{base}-10": "FAILED", "raysubmit_x": "RUNNING", f"{base}-x": "RUNNING"}
    assert camlake("submit", job_file).exit_code == 0
    assert f"{base}-11" in server.table
    running = camlake("submit", job_file)
    assert running.exit_code == 2 and len(server.requests) == 1
    assert re.search(rf"error: {base}-11, an attempt at this job, is running; .*ray job stop", running.output)
    assert camlake("submit", job_file, "--set", "output.uri=/elsewhere/lake").exit_code == 0
    assert server.requests[1]["submission_id"] not in (f"{base}-1", f"{base}-12")


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "expected", "said"),
    [
        ("SUCCEEDED", 0, "", 0, "units 1/2"),
        ("FAILED", 1, "", 1, "failed with exit code 1"),
        ("STOPPED", None, "", 143, "goes on where it was"),
        ("FAILED", None, "The head\nran out of memory", 3, "ran out of memory"),
    ],
)
def test_wait_ends_with_the_code_of_the_job(
    camlake: Run,
    server: Server,
    job_file: Path,
    status: str,
    exit_code: int | None,
    message: str,
    expected: int,
    said: str,
) -> None:
    server.status, server.exit_code, server.message = status, exit_code, message
    result = camlake("submit", job_file, "--wait")
    assert result.exit_code == expected and said in result.output and "units 1/2" in result.output


def test_a_log_that_breaks_off_ends_no_job(camlake: Run, server: Server, job_file: Path) -> None:
    server.breaks, server.status, server.exit_code = True, "FAILED", 1
    result = camlake("submit", job_file, "--wait")
    assert result.exit_code == 1 and "the log broke off (WebSocket connection closed" in result.output


def test_a_cluster_with_camlake_gets_the_job_alone(camlake: Run, server: Server, job_file: Path) -> None:
    assert camlake("submit", job_file, "--installed").exit_code == 0
    assert server.staged == ["job.yaml", "my_net.py"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "output.uri=lakes/run-1"], "output.uri: 'lakes/run-1' is relative to a folder of this machine"),
        (["--set", "model.weights=net.safetensors"], "model.weights: 'net.safetensors' is relative"),
        (
            ["--set", "output.storage_options.secret=hunter2"],
            "--set output.storage_options.secret=...: storage",
        ),
        (["--env", "TOKEN=hunter2"], "--env TOKEN: give the name of a variable of this shell, and not its value"),
        (["--env", "NOT_SET_HERE"], "--env NOT_SET_HERE: this shell has no such variable; export it first"),
        (["--exclude", "job.*"], "project/job.yaml' would stay here: it is hidden, in a folder that is left out"),
        (["--working-dir", "/nowhere"], "--working-dir /nowhere is no folder"),
        (["--working-dir", "/usr/lib"], "is not in --working-dir /usr/lib"),
    ],
)
def test_wrong_input_is_one_sentence(
    camlake: Run, server: Server, job_file: Path, arguments: list[str], said: str
) -> None:
    result = camlake("submit", job_file, *arguments)
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert said in result.output and "hunter2" not in result.output and not server.requests


def test_no_cluster_is_one_sentence(camlake: Run, job_file: Path) -> None:
    result = camlake("submit", job_file, "--address", "127.0.0.1:9")
    assert result.exit_code == 2 and "no Ray cluster answers at http://127.0.0.1:9; give" in result.output
    result = camlake("submit", job_file, "--address", "ray://head:10001")
    assert result.exit_code == 2 and "give http://HOST:8265" in result.output


def test_the_address_given_overrules_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.job_submission

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:1")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:2")
    from ray.dashboard.utils import get_address_for_submission_client as chosen

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", chosen)
    assert ray_jobs.connect("head:8265") == "http://head:8265"
