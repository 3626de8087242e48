"""``camlake attribute``: run an attribution job on Ray, or go on where it stopped."""

from __future__ import annotations

import logging
import os
from typing import Annotated

import typer

from jobs.config import absolute, load_job
from jobs.options import LogFormat
from jobs.run import EXIT_DONE, EXIT_FAILURES, main_of, plain_errors
from pipeline.engine.clock import in_words
from pipeline.engine.log import Line, about, tell
from pipeline.engine.progress import ProgressMonitor, clock_time, megabytes
from pipeline.engine.run import RunResult
from pipeline.engine.run import attribute as run_attribution
from schemas.documents import Success
from schemas.errors import InputError
from schemas.job import Job


def attribute(
    job_file: Annotated[str, typer.Argument(metavar="JOB.yaml", help="The job file; any fsspec URI.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field: --set targets.top_k=3")
    ] = None,
    max_failed: Annotated[
        float | None,
        typer.Option(help="Images that may fail before the exit code is 1: a share below 1, a count from 1 on."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
    log_format: LogFormat = "text",
) -> None:
    """Explain every image of a source and write the lake; the same command again does what is left.

    Exit codes: 0 done; 1 done, with more failures than --max-failed; 2 wrong input; 3 could not finish;
    130 or 143 interrupted.
    """
    with plain_errors(log_format):
        given = overrides or []
        if max_failed is not None:
            given = [*given, f"max_failed={max_failed}"]
        job = absolute(load_job(job_file, given))
        raise typer.Exit(run(job, address))


def run(job: Job, address: str | None = None) -> int:
    """Run a job of any kind on Ray, print its summary and return the exit code."""
    return finish(run_attribution(job, lambda: connect(job, address), say=tell), job)


def finish(result: RunResult, job: Job) -> int:
    """Print how a run ended and return the exit code."""
    with about(run_id=result.manifest.run_id):
        print_summary(result)
        if result.signal is not None:
            done, units = result.resumed_units + result.monitor.done.units, result.monitor.units
            text = f"interrupted with {done} of {units} units done; the same command does the rest"
            tell(Line(text, "interrupted", logging.WARNING, signal=result.signal, units=units, units_done=done))
            return 128 + result.signal
    return exit_code(result, job.max_failed)


def connect(job: Job, address: str | None) -> None:
    """Join a Ray cluster, or start a Ray of this machine's size.

    Raises:
        InputError: the Ray that is started here can never hold the workers that must be able to start.
    """
    import ray

    if ray.is_initialized():
        return
    joins = address or os.environ.get("RAY_ADDRESS")
    if joins:
        try:
            ray.init(address=joins, log_to_driver=True)
        except ConnectionError as error:
            raise InputError(f"no Ray cluster answers at '{joins}' ({error}); check --address or RAY_ADDRESS") from None
        return
    # Without "local" Ray would join whatever 'ray start' left running on this machine.
    ray.init("local", include_dashboard=False, log_to_driver=True, logging_level="ERROR")
    have, workers = ray.cluster_resources(), job.workers
    for name, each in {"CPU": workers.cpus, "GPU": workers.gpus, **workers.resources}.items():
        if each * workers.min > have.get(name, 0.0):
            field = {"CPU": "workers.cpus", "GPU": "workers.gpus"}.get(name, f"workers.resources.{name}")
            raise InputError(
                f"{field}: {workers.min} worker(s) of {each:g} {name} do not fit on this machine, which has "
                f"{have.get(name, 0.0):g}; lower it or workers.min, or join a cluster with --address"
            )


def exit_code(result: RunResult, max_failed: float) -> int:
    """0 where the failures are within bounds, else 1; a unit that was given up is always a failure."""
    if result.success is None:
        return EXIT_FAILURES
    total = sum(result.success.images.values())
    failed = total - result.success.images.get("ok", 0)
    allowed = max_failed * total if max_failed < 1 else max_failed
    return EXIT_DONE if failed <= allowed and not result.success.quarantined else EXIT_FAILURES


def print_summary(result: RunResult) -> None:
    """Print what the run did, and where its workers' time went."""
    monitor, done = result.monitor, result.monitor.done
    elapsed = monitor.elapsed()
    what = "labels" if result.manifest.kind == "labels" else "maps"
    if done.units or monitor.quarantined:
        rate = done.total_images / max(elapsed, 1e-9)
        tell(
            Line(
                f"\nthis run   {done.units} units, {done.total_images} images, {done.maps} {what}, "
                f"{megabytes(done.bytes)} in {clock_time(elapsed)} ({rate:.1f} images/s with start-up)",
                "run_summary",
                units=done.units,
                images=dict(done.images),
                maps=done.maps,
                bytes=done.bytes,
                seconds=round(elapsed, 3),
                images_per_second=round(rate, 3),
            )
        )
    else:
        tell(Line("\nthis run   nothing was left to do", "run_summary", units=0))
    _print_workers(monitor)
    if monitor.slowest:
        names = ", ".join(f"{unit} ({taken:.1f} s)" for taken, unit in monitor.slowest)
        slowest = [{"unit_id": unit, "seconds": round(taken, 3)} for taken, unit in monitor.slowest]
        tell(Line(f"           slowest units: {names}", "slowest_units", slowest=slowest))
    if monitor.retried or monitor.lost:
        text = f"           {monitor.retried} attempts failed and were repeated, {len(monitor.lost)} workers died"
        tell(Line(text, "retries", retries=monitor.retried, worker_deaths=len(monitor.lost)))
    if result.success is not None:
        _print_lake(result.success, what)
        for unit, reason in monitor.quarantined:
            text = f"           quarantined {unit}: {reason}"
            tell(Line(text, "quarantined", logging.ERROR, unit_id=unit, reason=reason))


def _print_workers(monitor: ProgressMonitor) -> None:
    for worker, spent in monitor.times().items():
        seconds = monitor.seconds[worker]
        # Stages overlap: the next unit is read and the last one is written while one computes.
        tell(
            Line(
                f"           {worker}: {spent.sentence()}\n"
                f"           {' ' * len(worker)}  seconds by stage, overlapping: {in_words(seconds)}",
                "worker_summary",
                worker_id=worker,
                active_seconds=round(spent.active, 3),
                computing_seconds=round(spent.computing, 3),
                waiting_seconds=round(spent.waiting, 3),
                stage_seconds={stage: round(value, 3) for stage, value in seconds.items()},
            )
        )


def _print_lake(success: Success, what: str) -> None:
    statuses = ", ".join(f"{count} {status}" for status, count in success.images.items()) or "none"
    tell(
        Line(
            f"lake       {success.committed} + {success.quarantined} quarantined = {success.units} units; "
            f"images: {statuses} = {sum(success.images.values())}; {success.maps} {what}, "
            f"{megabytes(success.bytes)} in {success.objects} objects",
            "lake_summary",
            units=success.units,
            units_committed=success.committed,
            units_quarantined=success.quarantined,
            images=success.images,
            maps=success.maps,
            bytes=success.bytes,
            objects=success.objects,
        )
    )
    flagged = {flag: count for flag, count in success.flags.items() if count}
    if flagged:
        names = ", ".join(f"{count} {flag}" for flag, count in flagged.items())
        tell(Line(f"           maps flagged: {names}", "flags", flags=flagged))


if __name__ == "__main__":
    main_of(attribute)
