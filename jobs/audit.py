"""``camlake audit``: what the heatmaps of a lake say about dataset and model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import typer

from jobs.audit_options import (
    DEFAULTS,
    AuditTargets,
    Bootstrap,
    ClusterColumn,
    EffectD,
    EffectEnergy,
    EffectRatio,
    FlaggedFrom,
    IntervalFrom,
    Masks,
    RayAddress,
    RayTasks,
    Seed,
    SuppressedBelow,
    absolute_boxes,
    connect,
    doc,
    settings_of,
)
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

_SHOWN = 5
_FAILING = 5


def audit(
    lake: Annotated[str, typer.Argument(metavar="LAKE", help="URI of the lake.")],
    groups: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME]...", help="Columns whose values are compared, e.g. site,camera."),
    ] = None,
    cluster: ClusterColumn = None,
    method: Annotated[str | None, typer.Option(help=doc("method"))] = None,
    layer: Annotated[str | None, typer.Option(help=doc("layer"))] = None,
    targets: AuditTargets = None,
    boxes: Annotated[str | None, typer.Option(metavar="COLUMN|URI", help=doc("boxes"))] = None,
    masks: Masks = None,
    output: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder of the audit. Default: LAKE.audit, beside the lake.")
    ] = None,
    workers: RayTasks = None,
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
    seed: Seed = DEFAULTS.seed,
    bootstrap: Bootstrap = DEFAULTS.bootstrap,
    sample: Annotated[int, typer.Option(help=doc("sample"))] = DEFAULTS.sample,
    parts: Annotated[int, typer.Option(help=doc("parts"))] = DEFAULTS.parts,
    q: Annotated[float, typer.Option("--q", help=doc("q"))] = DEFAULTS.q,
    suppressed_below: SuppressedBelow = DEFAULTS.suppressed_below,
    interval_from: IntervalFrom = DEFAULTS.interval_from,
    flagged_from: FlaggedFrom = DEFAULTS.flagged_from,
    effect_d: EffectD = DEFAULTS.effect_d,
    effect_energy: EffectEnergy = DEFAULTS.effect_energy,
    effect_ratio: EffectRatio = DEFAULTS.effect_ratio,
    confident: Annotated[float, typer.Option(help=doc("confident"))] = DEFAULTS.confident,
    storage: StorageOptions = None,
    source_storage: SourceStorageOptions = None,
    address: RayAddress = None,
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
        settings = settings_of(
            groups=_names(groups or []),
            cluster=cluster,
            method=method,
            layer=layer,
            targets=targets,
            boxes=absolute_boxes(boxes, uri, options),
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
