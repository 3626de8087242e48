"""``camlake pseudo-labels``: run a pseudo-label job on Ray, or go on where it stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.attribute import run
from jobs.config import absolute, load_label_job
from jobs.run import main_of, plain_errors
from pipeline.pseudolabels.names import check_plan
from pipeline.sources import open_source


def pseudo_labels(
    job_file: Annotated[
        str, typer.Argument(metavar="JOB.yaml", help="The job file, with a section pseudo_labels; any fsspec URI.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a field: --set pseudo_labels.flip=false"),
    ] = None,
    max_failed: Annotated[
        float | None,
        typer.Option(help="Images that may fail before the exit code is 1: a share below 1, a count from 1 on."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
) -> None:
    """Make labels for segmentation of every image of a source; the same command again does what is left.

    Exit codes: 0 done; 1 done, with more failures than --max-failed; 2 wrong input; 3 could not finish;
    130 or 143 interrupted.
    """
    with plain_errors():
        given = overrides or []
        if max_failed is not None:
            given = [*given, f"max_failed={max_failed}"]
        job = absolute(load_label_job(job_file, given))
        check_plan(lambda: open_source(job.source).plan(), job.source)
        raise typer.Exit(run(job, address))


if __name__ == "__main__":
    main_of(pseudo_labels)
