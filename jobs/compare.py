"""``camlake compare``: what differs between the heatmaps of two models, or of two versions of a dataset."""

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
    settings_of,
)
from jobs.config import absolute_uri
from jobs.options import LogFormat, StorageOptions, storage_options
from jobs.run import EXIT_DONE, EXIT_FAILURES, main_of, plain_errors
from pipeline.audit.compare import REPORT, Comparison, run_compare
from pipeline.audit.compare_conditions import Condition, parse
from pipeline.audit.compare_words import verdict
from pipeline.audit.gather import Interrupted
from pipeline.engine.log import Line, tell

_SHOWN = 5


def compare(
    lake_a: Annotated[str, typer.Argument(metavar="LAKE_A", help="URI of the lake that is compared with.")],
    lake_b: Annotated[str, typer.Argument(metavar="LAKE_B", help="URI of the lake that is compared.")],
    cluster: ClusterColumn = None,
    method: Annotated[
        str | None, typer.Option(help="Method that is compared. Default: the first of A that B has, too.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Its layer. Default: the last that the method writes.")] = None,
    method_b: Annotated[
        str | None, typer.Option("--method-b", help="Method of B, where it is called otherwise there.")
    ] = None,
    layer_b: Annotated[
        str | None,
        typer.Option("--layer-b", help="Layer of B. Default: A's, and where B lacks it the last of its method."),
    ] = None,
    targets: AuditTargets = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|URI", help="Column with boxes, COCO JSON file, or folder of VOC XML files, of both lakes."
        ),
    ] = None,
    masks: Masks = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Folder of the comparison. Default: LAKE_B.against-A, beside lake B."),
    ] = None,
    workers: RayTasks = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Exit code 1 where it holds: the number of classes that drifted in anything ("drift>0"), in where '
            'they are looked at ("location>0") or in a measure ("border_enrichment>2"); may be repeated.',
        ),
    ] = None,
    seed: Seed = DEFAULTS.seed,
    bootstrap: Bootstrap = DEFAULTS.bootstrap,
    sample: Annotated[
        int, typer.Option(help="Maps of each lake that are kept to test the location priors and to pair images.")
    ] = DEFAULTS.sample,
    q: Annotated[float, typer.Option("--q", help="False discovery rate of all tests together.")] = DEFAULTS.q,
    suppressed_below: SuppressedBelow = DEFAULTS.suppressed_below,
    interval_from: IntervalFrom = DEFAULTS.interval_from,
    flagged_from: FlaggedFrom = DEFAULTS.flagged_from,
    effect_d: EffectD = DEFAULTS.effect_d,
    effect_energy: EffectEnergy = DEFAULTS.effect_energy,
    effect_ratio: EffectRatio = DEFAULTS.effect_ratio,
    storage: StorageOptions = None,
    address: RayAddress = None,
    log_format: LogFormat = "text",
) -> None:
    """Compare the heatmaps of lake B with those of lake A; the same command again does what is left.

    Storage options are of A's file system, and of B's and the output's where they are of the same kind.
    Exit codes: 0 done; 1 done, and a --fail-on condition holds; 2 wrong input; 3 could not finish;
    130 or 143 interrupted.
    """
    with plain_errors(log_format):
        conditions = [parse(text) for text in fail_on or []]
        options, uri = storage_options(storage), absolute_uri(lake_a)
        settings = settings_of(
            cluster=cluster,
            method=method,
            layer=layer,
            targets=targets,
            boxes=absolute_boxes(boxes, uri, options),
            masks=None if masks is None else absolute_uri(masks),
            seed=seed,
            bootstrap=bootstrap,
            sample=sample,
            q=q,
            suppressed_below=suppressed_below,
            interval_from=interval_from,
            flagged_from=flagged_from,
            effect_d=effect_d,
            effect_energy=effect_energy,
            effect_ratio=effect_ratio,
        )
        try:
            result = run_compare(
                uri,
                absolute_uri(lake_b),
                settings,
                None if output is None else absolute_uri(output),
                say=tell,
                method_b=method_b,
                layer_b=layer_b,
                storage_options=options,
                workers=workers,
                connect=lambda: connect(address),
            )
        except Interrupted as error:
            text = "interrupted; finished parts are kept, and the same command does the rest"
            tell(Line(text, "interrupted", logging.WARNING, signal=error.signal))
            raise typer.Exit(128 + error.signal) from None
        print_summary(result)
        raise typer.Exit(EXIT_FAILURES if print_failures(result, conditions) else EXIT_DONE)


def print_summary(result: Comparison) -> None:
    """Print what was compared, the largest drifts, and where everything lies."""
    manifest, drifts = result.manifest, result.manifest.drifts
    shared = manifest.shared
    tell(
        Line(
            f"\ncompared  {manifest.classes} classes by {manifest.matched_by}; {manifest.tests} tests",
            "compare_summary",
            classes=manifest.classes,
            tests=manifest.tests,
            drifts=len(drifts),
            images={"a": shared.images_a, "b": shared.images_b, "both": shared.images},
            correlation=shared.correlation,
        )
    )
    maps = (
        "" if shared.correlation is None else f"; the two maps of one image correlate with r = {shared.correlation:.2f}"
    )
    tell(f"in both   {shared.images} images (of {shared.images_a} in A, {shared.images_b} in B){maps}")
    tell(f"drift     {verdict(manifest)}")
    for place, drift in enumerate(drifts[:_SHOWN], start=1):
        tell(
            Line(
                f"{place:>9} {drift.sentence}", "drift", place=place, name=drift.name, severity=round(drift.severity, 1)
            )
        )
    if len(drifts) > _SHOWN:
        tell(f"          and {len(drifts) - _SHOWN} more")
    tell(Line(f"report    {result.output}/{REPORT}", "report", uri=f"{result.output}/{REPORT}"))
    text = f"tables    {result.output}: comparison.parquet, priors.parquet, comparison.json"
    tell(Line(text, "tables", uri=result.output))


def print_failures(result: Comparison, conditions: Sequence[Condition]) -> bool:
    """Print which conditions hold; says whether any does."""
    drifts = result.manifest.drifts
    for condition in conditions:
        if condition.holds(drifts):
            text = f"fails     {condition.text}: there are {condition.count(drifts)}"
            tell(Line(text, "condition_holds", logging.ERROR, condition=condition.text, count=condition.count(drifts)))
    return any(condition.holds(drifts) for condition in conditions)


if __name__ == "__main__":
    main_of(compare)
