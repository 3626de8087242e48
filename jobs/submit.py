"""``camlake submit``: a job onto a Ray cluster, with nothing installed there but the dependencies."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.config import load_job
from jobs.options import LogFormat
from jobs.ray_jobs import ADDRESS_VARIABLE, connect, follow, send
from jobs.run import main_of, plain_errors
from jobs.upload import stage
from pipeline.engine.progress import megabytes
from schemas.errors import InputError
from schemas.job import Job

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def submit(
    job_file: Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file; any fsspec URI.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field: --set targets.top_k=3")
    ] = None,
    max_failed: Annotated[
        float | None,
        typer.Option(help="Images that may fail before the job counts as failed: a share below 1, a count from 1 on."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help=f"The cluster's dashboard, http://HOST:8265. Default: RAY_API_SERVER_ADDRESS, else {DEFAULT_ADDRESS}."
        ),
    ] = None,
    working_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What goes up: the folder with the job file and your modules. Default: the job file's folder.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A file or folder that stays here: a name, or a path in the folder, with * and ?; may be repeated. "
            "Hidden files, environments, caches, lakes, data and weights stay here anyway.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A variable of this shell that driver and workers get too; may be repeated. Ray keeps its value in "
            "its table of jobs: instead of secrets, give the cluster's machines a role.",
        ),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="The cluster's image has camlake; do not send it along.")
    ] = False,
    log_format: LogFormat = "text",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log and end with the job's exit code.")] = False,
) -> None:
    """Submit a job to a Ray cluster; the same command again is the next attempt, which goes on in the same lake.

    Exit codes: 0 submitted; 2 wrong input; 3 the cluster refused it. With --wait those of `camlake attribute`, and 143
    where the job was stopped.
    """
    with plain_errors():
        given = overrides or []
        if max_failed is not None:
            given = [*given, f"max_failed={max_failed}"]
        job = load_job(job_file, given)
        require_reachable(job)
        _no_secrets(given)
        folder, name = _place(job_file, working_dir)
        environment = _environment(env or [])
        client = connect(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        # What is written here is for people; --log-format is the job's.
        options = [f"--set={each}" for each in given] + (["--log-format=json"] if log_format == "json" else [])
        entrypoint = shlex.join(["python", "-m", "jobs.attribute", name, *options])
        with tempfile.TemporaryDirectory(prefix="camlake-submit-") as made:
            upload = stage(folder, Path(made), exclude=exclude or [], code=not installed)
            if folder is not None and "://" not in name and not (Path(made) / name).exists():
                raise InputError(
                    f"the job file '{job_file}' would stay here: it is hidden, in a folder that is left out, or named "
                    "by --exclude; move it"
                )
            submission = send(client, job, entrypoint, {"working_dir": made, "env_vars": environment})
        print(f"submitted {submission}: {entrypoint}")
        print(f"sent      {upload.files} files, {megabytes(upload.bytes)}" + _from(folder, installed))
        if environment:
            print(f"variables {', '.join(environment)} (their values are not shown here)")
        _print_hints(client.get_address(), submission, job)
        sys.stdout.flush()
        if wait:
            raise typer.Exit(follow(client, submission))


def require_reachable(job: Job) -> None:
    """Refuse paths that only this machine knows.

    Raises:
        InputError: a path of the job is relative: on the cluster it would be one in a temporary folder of the driver.
    """
    paths = {"source.uri": job.source.uris, "output.uri": [job.output.uri]}
    if job.model.weights is not None and ("/" in job.model.weights or "." in job.model.weights):
        paths["model.weights"] = [job.model.weights]
    if isinstance(job.model.class_names, str):
        paths["model.class_names"] = [job.model.class_names]
    for field, uris in paths.items():
        for uri in uris:
            if not ("://" in uri or "::" in uri or Path(uri).is_absolute()):
                raise InputError(
                    f"{field}: '{uri}' is relative to a folder of this machine, and the workers run on others; give an "
                    "s3:// or gs:// URI, or the absolute path of a folder that all nodes share"
                )


def _no_secrets(overrides: Sequence[str]) -> None:
    for override in overrides:
        path = override.partition("=")[0]
        if "storage_options" in path:
            raise InputError(
                f"--set {path}=...: storage options may be secrets, and the command of a job is shown to everybody who "
                "sees the cluster; write them in the job file, or give the cluster's machines a role"
            )


def _place(job_file: str, working_dir: Path | None) -> tuple[Path | None, str]:
    """Return the folder that goes up and the job file's path in it, or its URI.

    Raises:
        InputError: the job file is not in the folder.
    """
    if working_dir is not None and not working_dir.is_dir():
        raise InputError(f"--working-dir {working_dir} is no folder; give the one with the job file and its modules")
    if "://" in job_file or "::" in job_file:
        return (None if working_dir is None else working_dir.absolute()), job_file
    path = Path(job_file).expanduser().absolute()
    folder = path.parent if working_dir is None else working_dir.absolute()
    try:
        return folder, path.relative_to(folder).as_posix()
    except ValueError:
        raise InputError(
            f"the job file '{job_file}' is not in --working-dir {working_dir}; give a folder that holds it"
        ) from None


def _environment(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        if not _NAME.match(name):
            shown = name.partition("=")[0]
            raise InputError(f"--env {shown}: give the name of a variable of this shell, and not its value")
        if name not in os.environ:
            raise InputError(f"--env {name}: this shell has no such variable; export it first")
        found[name] = os.environ[name]
    return found


def _from(folder: Path | None, installed: bool) -> str:
    parts = ([] if folder is None else [str(folder)]) + ([] if installed else ["camlake"])
    return f": {' and '.join(parts)}" if parts else ""


def _print_hints(address: str, submission: str, job: Job) -> None:
    print(f"follow    ray job logs --follow --address {address} {submission}")
    print(f"state     ray job status --address {address} {submission}")
    print(f"stop      ray job stop --address {address} {submission}")
    print("go on     the same camlake submit again, after a stop or a failure")
    print(f"progress  camlake status {job.output.uri}")


if __name__ == "__main__":
    main_of(submit)
