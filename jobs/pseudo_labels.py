"""``camlake pseudo-labels``: run a pseudo-label job on Ray, or go on where it stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.attribute import connect, finish, run
from jobs.config import absolute, absolute_uri, load_document, load_label_job, parse_label_job
from jobs.options import LogFormat, storage_options
from jobs.run import main_of, plain_errors
from pipeline.engine.log import Line, tell
from pipeline.engine.run import Resolved, carry_out, make_manifest
from pipeline.lake import Lake, open_lake, read_plan
from pipeline.lake.plan import FrozenPlan, plan_bytes
from pipeline.pseudolabels.names import check_plan
from pipeline.pseudolabels.stored import choose_maps, job_document, losses, require_stored
from pipeline.sources import open_source
from schemas.errors import InputError
from schemas.label_job import LabelJob


def pseudo_labels(
    job_file: Annotated[
        str | None,
        typer.Argument(
            metavar="[JOB.yaml]",
            help="The job file, with a section pseudo_labels; any fsspec URI. With --from: without source and model, "
            "and not needed where --set gives output.uri.",
        ),
    ] = None,
    stored: Annotated[
        str | None,
        typer.Option("--from", metavar="LAKE", help="Make labels of the maps of this lake, without a model."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="With --from: whose maps, where the method has several layers.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a field: --set pseudo_labels.flip=false"),
    ] = None,
    max_failed: Annotated[
        float | None,
        typer.Option(help="Images that may fail before the exit code is 1: a share below 1, a count from 1 on."),
    ] = None,
    storage: Annotated[
        list[str] | None,
        typer.Option("--storage", metavar="KEY=VALUE", help="With --from: fsspec option of LAKE's file system."),
    ] = None,
    source_storage: Annotated[
        list[str] | None,
        typer.Option("--source-storage", metavar="KEY=VALUE", help="With --from: that of the images' file system."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
    log_format: LogFormat = "text",
) -> None:
    """Make labels for segmentation of every image of a source; the same command again does what is left.

    Exit codes: 0 done; 1 done, with more failures than --max-failed; 2 wrong input; 3 could not finish;
    130 or 143 interrupted.
    """
    with plain_errors(log_format):
        given = overrides or []
        if max_failed is not None:
            given = [*given, f"max_failed={max_failed}"]
        if stored is not None:
            lake = open_lake(absolute_uri(stored), storage_options(storage))
            job = job_of_lake(lake, job_file, given, layer)
            source = job.source.model_copy(update={"storage_options": storage_options(source_storage)})
            raise typer.Exit(run_from(lake, job.model_copy(update={"source": source}), address))
        if job_file is None:
            raise InputError("no job file; name one, or a lake of heatmaps with --from")
        for option, value in (("--layer", layer), ("--storage", storage), ("--source-storage", source_storage)):
            if value:
                raise InputError(f"{option} goes with --from; without it, the job file says this")
        job = absolute(load_label_job(job_file, given))
        if job.stored is not None:
            raise InputError("stored: the lake of heatmaps is named on the command line: --from LAKE; take it out")
        check_plan(lambda: open_source(job.source).plan(), job.source)
        raise typer.Exit(run(job, address))


def job_of_lake(lake: Lake, job_file: str | None, overrides: list[str], layer: str | None) -> LabelJob:
    """Return the job that makes labels of a lake's maps.

    Raises:
        InputError: the job file cannot be read or is wrong, or asks for what is not stored.
    """
    document = job_document(lake, load_document(job_file, overrides), layer)
    job = absolute(parse_label_job(document, job_file or "--set"))
    require_stored(job.targets, lake.manifest)
    return job


def run_from(lake: Lake, job: LabelJob, address: str | None) -> int:
    """Run a job on the maps of a lake, print its summary and return the exit code."""
    from pipeline.pseudolabels.from_lake import StoredMapsWorker

    assert job.stored is not None
    plan = FrozenPlan(plan_bytes(lake.store, lake.manifest), lake.manifest.units, lake.manifest.inputs_digest)
    check_plan(lambda: read_plan(lake.store, lake.manifest), job.source)
    info = choose_maps(lake.manifest, job.methods[0].key, job.stored.layer)
    text = f"maps     {lake.store.uri}: {info.key} at {info.layers[0]}"
    tell(Line(text, "maps", uri=lake.store.uri, method=info.key, layer=info.layers[0]))
    for each in losses(lake.manifest.model, info, job.stored.dtype):
        tell(Line(f"lost     {each}", "lost"))
    manifest = make_manifest(job, Resolved(lake.manifest.model, [info], []), plan)
    result = carry_out(
        job,
        manifest,
        plan,
        lambda: connect(job, address),
        say=tell,
        worker=StoredMapsWorker,
    )
    return finish(result, job)


if __name__ == "__main__":
    main_of(pseudo_labels)
