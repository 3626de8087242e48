"""Ray's job server as the commands use it: connecting, the next attempt's id, following to the end."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.run import EXIT_DONE, EXIT_UNFINISHED
from schemas.errors import CamlakeError, InputError
from schemas.job import Job

#: Ray's states of a job that has ended.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
#: Exit code for a job that was stopped: that of its driver, which SIGTERM ended.
EXIT_STOPPED = 143
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"

_POLL_SECONDS = 1.0
#: Ray's loggers that tell of each upload, with paths of temporary folders.
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def connect(address: str) -> Any:
    """Return a client of the cluster's job server.

    Raises:
        InputError: nothing answers at ``address``, it wants another token, or the client is not installed.
    """
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address}: jobs are submitted to the dashboard; give http://HOST:8265")
    with _ray_errors(address):
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        # The client lets these variables overrule what it is given.
        kept = os.environ.get(ADDRESS_VARIABLE)
        os.environ[ADDRESS_VARIABLE] = address
        try:
            return JobSubmissionClient(address)
        finally:
            if kept is None:
                del os.environ[ADDRESS_VARIABLE]
            else:
                os.environ[ADDRESS_VARIABLE] = kept


@contextmanager
def _ray_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one sentence."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise InputError(
            f"the cluster at {address} asks for a token and {_why(error)}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
            "or RAY_AUTH_TOKEN_PATH to a file with it, to the cluster's token"
        ) from None
    except ConnectionError:
        raise InputError(
            f"no Ray cluster answers at {address}; give its dashboard's address with --address, or forward its port: "
            "kubectl port-forward service/HEAD 8265, ray dashboard CLUSTER.yaml"
        ) from None
    except (RuntimeError, OSError) as error:
        if "ray[default]" in str(error):
            raise InputError(
                "camlake submit needs Ray's job client, which is not installed; pip install 'camlake[cluster]'"
            ) from None
        raise CamlakeError(
            f"the cluster at {address} refused: {_first_line(error)}; see its dashboard for more"
        ) from error


def _why(error: Exception) -> str:
    return "this one is not its" if "nvalid" in str(error) else "none was sent"


def _first_line(error: Exception) -> str:
    # Ray sends tracebacks of its server along; the last line says what is wrong.
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip()]
    return " ".join(lines[-1:])[:400].rstrip(". ") or type(error).__name__


def base_id(job: Job) -> str:
    """Return what the submission ids of all attempts at a job begin with; its lake's place is part of it."""
    return f"camlake-{hashlib.sha256(f'{job.digest()} {job.output.uri}'.encode()).hexdigest()[:12]}"


def send(client: Any, job: Job, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Submit the next attempt at a job and return its submission id, which cannot have been used before.

    Raises:
        InputError: an attempt at this job is under way.
        CamlakeError: the cluster refused it.
    """
    address, base = client.get_address(), base_id(job)
    with _ray_errors(address):
        attempts = {each.submission_id: str(each.status) for each in client.list_jobs() if each.submission_id}
        attempts = {name: status for name, status in attempts.items() if re.fullmatch(rf"{base}-\d+", name)}
        for name, status in attempts.items():
            if status not in ENDED:
                raise InputError(
                    f"{name}, an attempt at this job, is {status.lower()}; follow it with: ray job logs --follow "
                    f"--address {address} {name}, or stop it first with: ray job stop --address {address} {name}"
                )
        number = 1 + max((int(name.rpartition("-")[2]) for name in attempts), default=0)
        submission: str = client.submit_job(
            entrypoint=entrypoint,
            submission_id=f"{base}-{number}",
            runtime_env=runtime_env,
            metadata={"camlake_job": job.digest(), "camlake_output": job.output.uri},
        )
    return submission


def follow(client: Any, submission: str) -> int:
    """Print a job's log until it ends, and return its exit code.

    Raises:
        CamlakeError: the cluster does not answer any more.
    """
    address = client.get_address()
    try:
        try:
            asyncio.run(_tail(client, submission))
        except (RuntimeError, OSError) as error:
            # Forwarded ports and proxies cut connections that live long; the job goes on.
            print(f"the log broke off ({_first_line(error)}); waiting for the end without it", file=sys.stderr)
        with _ray_errors(address):
            # The log ends a moment before the job's state says so.
            while (details := client.get_job_info(submission)).status not in ENDED:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; stop it with: ray job stop --address {address} {submission}", file=sys.stderr)
        return 130
    status, code = str(details.status), details.driver_exit_code
    if status == "SUCCEEDED":
        return EXIT_DONE
    if status == "STOPPED":
        print(f"{submission} was stopped; the same camlake submit goes on where it was", file=sys.stderr)
        return EXIT_STOPPED
    if code is None:
        print(f"{submission} failed: {_first_line(RuntimeError(details.message))}", file=sys.stderr)
        return EXIT_UNFINISHED
    print(f"{submission} failed with exit code {code}", file=sys.stderr)
    return int(code)


async def _tail(client: Any, submission: str) -> None:
    async for lines in client.tail_job_logs(submission):
        print(lines, end="", flush=True)
