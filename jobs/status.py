"""``camlake status``: how far a lake is, from any machine."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.config import absolute_uri
from jobs.options import StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.engine.clock import in_words
from pipeline.engine.progress import clock_time, megabytes
from pipeline.lake import LakeStore
from pipeline.lake import status as lake_status


def status(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")], storage: StorageOptions = None
) -> None:
    """Show the progress of a running, interrupted or finished lake; needs nothing but the lake."""
    with plain_errors():
        state = lake_status(LakeStore(absolute_uri(lake), storage_options(storage)))
        print(f"lake     {state.uri} (run {state.run_id}): {state.state}")
        print(
            f"units    {state.committed} committed + {state.quarantined} quarantined + {state.remaining} to do "
            f"= {state.planned}"
        )
        counts = ", ".join(f"{count} {name}" for name, count in state.images.items()) or "none yet"
        print(f"images   {counts}; {state.maps} {state.holds}, {megabytes(state.bytes)}")
        if state.images_per_second is not None:
            rate = f"speed    {state.images_per_second:.1f} images/s over the last commits"
            eta = state.eta_seconds
            print(rate + (f", ETA {clock_time(eta)}" if eta and state.state == "running" else ""))
        if state.last_commit is not None:
            print(f"last     commit at {state.last_commit.isoformat(timespec='seconds')}")
        if state.seconds:
            print(f"seconds  {in_words(state.seconds)}")


if __name__ == "__main__":
    main_of(status)
