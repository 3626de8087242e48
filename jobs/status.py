"""``camlake status``: how far a lake is, from any machine; once, or again and again."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs.config import absolute_uri
from jobs.options import StorageOptions, storage_options
from jobs.run import main_of, plain_errors
from pipeline.engine.clock import in_words
from pipeline.engine.progress import clock_time, megabytes
from pipeline.lake import LakeStore
from pipeline.lake import status as lake_status
from pipeline.lake.status import LakeStatus
from pipeline.lake.watch import Watch


def status(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again and again until the lake is finished; Ctrl-C ends it.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="With --watch: pause between looks.")] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; with --watch one per look, a line each.")
    ] = False,
    storage: StorageOptions = None,
) -> None:
    """Show the progress of a running, interrupted or finished lake; needs nothing but the lake.

    Exit codes: 0; 2 there is no lake; 3 it cannot be read; 130 after Ctrl-C.
    """
    with plain_errors():
        store = LakeStore(absolute_uri(lake), storage_options(storage))
        if watch:
            try:
                _watch(Watch(store), every, as_json)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
        else:
            state = lake_status(store)
            print(_object(state) if as_json else "\n".join(_lines(state)))


def _watch(watch: Watch, every: float, as_json: bool) -> None:
    """Show each look: drawn over the last one on a terminal, else a line."""
    console = Console()
    if as_json or not console.is_terminal:
        while True:
            state = watch.look()
            print(_object(state) if as_json else _line(state, datetime.now(UTC)), flush=True)
            if state.state == "finished":
                return
            time.sleep(every)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = watch.look()
            live.update(Text("\n".join(_lines(state, datetime.now(UTC)))), refresh=True)
            if state.state == "finished":
                return
            time.sleep(every)


def _object(state: LakeStatus) -> str:
    fields = asdict(state) | {"remaining": state.remaining}
    return json.dumps({name: _plain(value) for name, value in fields.items()})


def _plain(value: object) -> object:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def _failed(state: LakeStatus) -> int:
    return sum(state.images.values()) - state.images.get("ok", 0)


def _partly(state: LakeStatus) -> str:
    """Says so where the images are those of some units only."""
    some = state.read is not None and state.read < state.committed
    return f" (in {state.read} of {state.committed} units)" if some else ""


def _line(state: LakeStatus, now: datetime) -> str:
    """The state in one line, for logs."""
    parts = [
        now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        f"{state.state}: units {state.committed}/{state.planned}, {state.remaining} to do, "
        f"{state.quarantined} quarantined; {sum(state.images.values())} images, {_failed(state)} failed"
        + _partly(state),
    ]
    if state.state == "running" and state.images_per_second is not None:
        parts.append(f"{state.images_per_second:.1f} images/s")
        if state.eta_seconds:
            parts[-1] += f", ETA {clock_time(state.eta_seconds)}"
    if state.state != "finished":
        parts.append(_age(state, now))
    return " ".join(parts[:1]) + " " + "; ".join(parts[1:])


def _age(state: LakeStatus, now: datetime) -> str:
    if state.last_commit is None:
        return f"no commit yet, {clock_time((now - state.created).total_seconds())} after the start"
    return f"last commit {clock_time(max((now - state.last_commit).total_seconds(), 0.0))} ago"


def _lines(state: LakeStatus, now: datetime | None = None) -> list[str]:
    """The state as people see it; with ``now`` also how long the last commit is past."""
    counts = ", ".join(f"{count} {name}" for name, count in state.images.items()) or "none yet"
    lines = [
        f"lake     {state.uri} (run {state.run_id}): {state.state}",
        f"units    {state.committed} committed + {state.quarantined} quarantined + {state.remaining} to do "
        f"= {state.planned}",
        f"images   {counts}; {state.maps} {state.holds}, {megabytes(state.bytes)}{_partly(state)}",
    ]
    if state.images_per_second is not None:
        rate = f"speed    {state.images_per_second:.1f} images/s over the last commits"
        eta = state.eta_seconds
        lines.append(rate + (f", ETA {clock_time(eta)}" if eta and state.state == "running" else ""))
    if now is not None and state.state != "finished":
        lines.append(f"last     {_age(state, now)}")
    elif state.last_commit is not None:
        lines.append(f"last     commit at {state.last_commit.isoformat(timespec='seconds')}")
    if state.seconds:
        lines.append(f"seconds  {in_words(state.seconds)}")
    return lines


if __name__ == "__main__":
    main_of(status)
