"""``camlake schema``: the JSON Schema of the job files, for editors."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from jobs.run import main_of, plain_errors
from schemas.errors import InputError, did_you_mean
from schemas.job import Job
from schemas.label_job import LabelJob

#: Job files by the command that runs them.
JOBS: dict[str, type[Job]] = {"attribute": Job, "pseudo-labels": LabelJob}


def schema(
    command: Annotated[
        str, typer.Argument(metavar="[COMMAND]", help=f"Whose job file: {' or '.join(JOBS)}.")
    ] = "attribute",
) -> None:
    """Print the JSON Schema of a job file (an editor completes and checks job files with it)."""
    with plain_errors():
        if command not in JOBS:
            raise InputError(f"no job file of '{command}'{did_you_mean(command, JOBS)}; use one of: {', '.join(JOBS)}")
        print(json.dumps(JOBS[command].model_json_schema(), indent=2, sort_keys=True))


if __name__ == "__main__":
    main_of(schema)
