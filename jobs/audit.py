"""``camlake audit``: what the heatmaps of a lake say about dataset and model."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from jobs.config import absolute_uri
from jobs.options import LogFormat, SourceStorageOptions, StorageOptions, storage_options
from jobs.run import EXIT_DONE, EXIT_FAILURES, main_of, plain_errors
from pipeline.audit.expressions import Expression, parse
from pipeline.audit.faithful_table import faithfulness_lines
from pipeline.audit.gather import Interrupted
from pipeline.audit.localisation_table import localisation_lines
from pipeline.audit.outputs import FAITHFULNESS_TABLE, LOCALISATION_TABLE, REPORT
from pipeline.audit.run import AuditResult, run_audit
from pipeline.engine.log import Line, about, tell
from pipeline.lake import LakeStore
from pipeline.lake.documents import read_manifest
from schemas.audit import Settings
from schemas.errors import InputError

_SHOWN = 5
_FAILING = 5


def _doc(field: str) -> str:
    return str(Settings.model_fields[field].description)


def _default(field: str) -> Any:
    return Settings.model_fields[field].default


def audit(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")],
    groups: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME]...", help="Columns whose values are compared, e.g. site,camera."),
    ] = None,
    cluster: Annotated[str | None, typer.Option(metavar="COLUMN", help=_doc("cluster"))] = None,
    method: Annotated[str | None, typer.Option(help=_doc("method"))] = None,
    layer: Annotated[str | None, typer.Option(help=_doc("layer"))] = None,
    targets: Annotated[Literal["predicted", "label", "all"] | None, typer.Option(help=_doc("targets"))] = None,
    boxes: Annotated[str | None, typer.Option(metavar="COLUMN|URI", help=_doc("boxes"))] = None,
    masks: Annotated[str | None, typer.Option(metavar="URI", help=_doc("masks"))] = None,
    output: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder of the audit. Default: LAKE.audit, beside the lake.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Ray tasks at a time; 0: in this process, without Ray. Default: one per CPU."),
    ] = None,
    causal: Annotated[
        int,
        typer.Option(min=0, help="Images per finding whose area is painted over and shown to the model; 0: none."),
    ] = 32,
    faithfulness: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images on which all methods are measured with the model (average drop, deletion, insertion, ROAD, "
            "ADCC), beside random maps; 0: none. Each costs 41 forwards and 10 sparse systems per method and layer: "
            "about six seconds of a CPU core with ResNet-18. From 30 images there are intervals.",
        ),
    ] = 0,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Exit code 1 where it holds: MEASURE[.STATISTIC] of any class ("border_enrichment>1.5"), or a number '
            'of findings ("findings>0", "shortcut>0"); may be repeated.',
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help=_doc("seed"))] = _default("seed"),
    bootstrap: Annotated[int, typer.Option(help=_doc("bootstrap"))] = _default("bootstrap"),
    sample: Annotated[int, typer.Option(help=_doc("sample"))] = _default("sample"),
    parts: Annotated[int, typer.Option(help=_doc("parts"))] = _default("parts"),
    q: Annotated[float, typer.Option("--q", help=_doc("q"))] = _default("q"),
    suppressed_below: Annotated[int, typer.Option(help=_doc("suppressed_below"))] = _default("suppressed_below"),
    interval_from: Annotated[int, typer.Option(help=_doc("interval_from"))] = _default("interval_from"),
    flagged_from: Annotated[int, typer.Option(help=_doc("flagged_from"))] = _default("flagged_from"),
    effect_d: Annotated[float, typer.Option(help=_doc("effect_d"))] = _default("effect_d"),
    effect_energy: Annotated[float, typer.Option(help=_doc("effect_energy"))] = _default("effect_energy"),
    effect_ratio: Annotated[float, typer.Option(help=_doc("effect_ratio"))] = _default("effect_ratio"),
    confident: Annotated[float, typer.Option(help=_doc("confident"))] = _default("confident"),
    storage: StorageOptions = None,
    source_storage: SourceStorageOptions = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
    ] = None,
    log_format: LogFormat = "text",
) -> None:
    """Find what the heatmaps of a lake tell of dataset and model; the same command again does what is left.

    Exit codes: 0 done; 1 done, and a --fail-on condition holds; 2 wrong input; 3 could not finish;
    130 or 143 interrupted.
    """
    with plain_errors(log_format):
        conditions = [parse(text) for text in fail_on or []]
        options = storage_options(storage)
        uri = absolute_uri(lake)
        settings = _settings(
            groups=_names(groups or []),
            cluster=cluster,
            method=method,
            layer=layer,
            targets=targets,
            boxes=_boxes(boxes, uri, options),
            masks=None if masks is None else absolute_uri(masks),
            seed=seed,
            bootstrap=bootstrap,
            sample=sample,
            parts=parts,
            q=q,
            suppressed_below=suppressed_below,
            interval_from=interval_from,
            flagged_from=flagged_from,
            effect_d=effect_d,
            effect_energy=effect_energy,
            effect_ratio=effect_ratio,
            confident=confident,
        )
        try:
            result = run_audit(
                uri,
                settings,
                None if output is None else absolute_uri(output),
                say=tell,
                storage_options=options,
                source_options=storage_options(source_storage),
                workers=workers,
                connect=lambda: connect(address),
                causal=causal,
                faithfulness=faithfulness,
                fail_on=conditions,
            )
        except Interrupted as error:
            text = "interrupted; finished parts are kept, and the same command does the rest"
            tell(Line(text, "interrupted", logging.WARNING, signal=error.signal))
            raise typer.Exit(128 + error.signal) from None
        with about(run_id=result.manifest.lake_run_id):
            print_summary(result)
            fails = print_failures(result, conditions)
        raise typer.Exit(EXIT_FAILURES if fails else EXIT_DONE)


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """Split lists at their commas; each name once."""
    names = (name.strip() for each in given for name in each.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def _settings(**values: Any) -> Settings:
    """Return the settings.

    Raises:
        InputError: a value is out of range; the message names its option.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        message = str(first["msg"])
        raise InputError(f"--{option}: {message[0].lower()}{message[1:]} (it is {first['input']!r})") from None


def _boxes(given: str | None, lake: str, options: dict[str, Any]) -> str | None:
    """Return a path as an absolute one, since workers may run in other folders, and a column's name as it is."""
    if given is None or given in read_manifest(LakeStore(lake, options)).attributes or not Path(given).exists():
        return given
    return absolute_uri(given)


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start a Ray of this machine's size.

    Raises:
        InputError: no cluster answers.
    """
    import ray

    if ray.is_initialized():
        return
    joins = address or os.environ.get("RAY_ADDRESS")
    if not joins:
        # Without "local" Ray would join whatever 'ray start' left running on this machine.
        ray.init("local", include_dashboard=False, log_to_driver=True, logging_level="ERROR")
        return
    try:
        ray.init(address=joins, log_to_driver=True)
    except ConnectionError as error:
        raise InputError(f"no Ray cluster answers at '{joins}' ({error}); check --address or RAY_ADDRESS") from None


def print_summary(result: AuditResult) -> None:
    """Print what was seen, the worst findings, and where everything lies."""
    manifest, findings = result.manifest, result.findings
    tell(
        Line(
            f"\naudited   {manifest.units} units, {manifest.images} images, {manifest.maps} maps, of which "
            f"{manifest.counted} count; {manifest.classes} classes",
            "audit_summary",
            units=manifest.units,
            images=manifest.images,
            maps=manifest.maps,
            counted=manifest.counted,
            classes=manifest.classes,
            findings=len(findings),
            seconds={stage: round(spent.wall, 3) for stage, spent in result.seconds.items()},
        )
    )
    tell(
        Line(f"findings  {len(findings)}" + ("; the worst first:" if findings else ""), "findings", count=len(findings))
    )
    for place, finding in enumerate(findings[:_SHOWN], start=1):
        tell(Line(f"{place:>9} {finding.sentence}", "finding", place=place, kind=finding.kind))
    if len(findings) > _SHOWN:
        tell(f"          and {len(findings) - _SHOWN} more")
    tables = result.tables
    for line in [] if tables.localisation is None else localisation_lines(tables.localisation):
        tell(Line(f"located   {line}", "localisation"))
    for line in [] if tables.faithfulness is None else faithfulness_lines(tables.faithfulness):
        tell(Line(f"faithful  {line}", "faithfulness"))
    tell(Line(f"report    {result.output}/{REPORT}", "report", uri=f"{result.output}/{REPORT}"))
    more = "" if tables.localisation is None else f", {LOCALISATION_TABLE}"
    more += "" if tables.faithfulness is None else f", {FAITHFULNESS_TABLE}"
    text = f"tables    {result.output}: groups.parquet, findings.parquet, findings.json, maps.zarr{more}"
    tell(Line(text, "tables", uri=result.output))


def print_failures(result: AuditResult, conditions: Sequence[Expression]) -> bool:
    """Print which conditions hold and for what; says whether any does."""
    fails = False
    for condition in conditions:
        found = condition.failures(result.groups, result.findings, result.manifest)
        fails |= bool(found)
        if found:
            more = f" and {len(found) - _FAILING} more" if len(found) > _FAILING else ""
            text = f"fails     {condition.text}: {', '.join(found[:_FAILING])}{more}"
            tell(Line(text, "condition_holds", logging.ERROR, condition=condition.text, count=len(found)))
        elif condition.statistic is not None and not condition.judged(result.groups, result.manifest):
            least = result.manifest.settings.flagged_from
            text = f"note      {condition.text}: no class has {least} such maps, so nothing was judged"
            tell(Line(text, "condition_not_judged", logging.WARNING, condition=condition.text))
    return fails


if __name__ == "__main__":
    main_of(audit)
