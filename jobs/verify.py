"""``camlake verify``: is everything there, does it decode, and does it add up?"""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from jobs.config import absolute_uri
from jobs.options import StorageOptions, storage_options
from jobs.run import EXIT_DONE, EXIT_FAILURES, main_of, plain_errors
from pipeline.engine.log import Line, tell
from pipeline.engine.progress import megabytes
from pipeline.lake import LakeStore, Verification
from pipeline.lake import verify as verify_lake

_SHOWN = 50


def verify(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")], storage: StorageOptions = None
) -> None:
    """Check a lake: every planned unit, every object's digest, every row and array. Exit code 1 names problems."""
    with plain_errors():
        found = verify_lake(LakeStore(absolute_uri(lake), storage_options(storage)))
        print_verification(found)
        raise typer.Exit(EXIT_DONE if found.ok else EXIT_FAILURES)


def print_verification(found: Verification) -> None:
    """Print what was verified and what is not right."""
    what = "label" if found.kind == "labels" else "map"
    tell(
        f"verified {found.committed} committed + {found.quarantined} quarantined of {found.planned} units, "
        f"{sum(found.images.values())} image rows, {found.maps} {what} rows, {found.arrays} arrays, "
        f"{found.objects} objects ({megabytes(found.bytes)})"
    )
    for problem in found.problems[:_SHOWN]:
        tell(Line(f"problem: {problem.message}", "problem", logging.ERROR))
    if len(found.problems) > _SHOWN:
        tell(f"and {len(found.problems) - _SHOWN} more problems")
    tell("the lake is whole" if found.ok else f"{len(found.problems)} problem(s)")


if __name__ == "__main__":
    main_of(verify)
