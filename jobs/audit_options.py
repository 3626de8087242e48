"""Options and inputs that audits and comparisons share: the settings of the audit, and the Ray that they run on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from jobs.config import absolute_uri
from pipeline.lake import LakeStore
from pipeline.lake.documents import read_manifest
from schemas.audit import Settings
from schemas.errors import InputError

#: What is not said on the command line.
DEFAULTS = Settings()


def doc(field: str) -> str:
    """Return what the schema says of a setting, for an option's help."""
    return str(Settings.model_fields[field].description)


ClusterColumn = Annotated[str | None, typer.Option(metavar="COLUMN", help=doc("cluster"))]
AuditTargets = Annotated[Literal["predicted", "label", "all"] | None, typer.Option(help=doc("targets"))]
Masks = Annotated[str | None, typer.Option(metavar="URI", help=doc("masks"))]
Seed = Annotated[int, typer.Option(help=doc("seed"))]
Bootstrap = Annotated[int, typer.Option(help=doc("bootstrap"))]
SuppressedBelow = Annotated[int, typer.Option(help=doc("suppressed_below"))]
IntervalFrom = Annotated[int, typer.Option(help=doc("interval_from"))]
FlaggedFrom = Annotated[int, typer.Option(help=doc("flagged_from"))]
EffectD = Annotated[float, typer.Option(help=doc("effect_d"))]
EffectEnergy = Annotated[float, typer.Option(help=doc("effect_energy"))]
EffectRatio = Annotated[float, typer.Option(help=doc("effect_ratio"))]
RayTasks = Annotated[
    int | None,
    typer.Option(min=0, help="Ray tasks at a time; 0: in this process, without Ray. Default: one per CPU."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join ('auto', or an address). Default: RAY_ADDRESS, else a Ray of its own."),
]


def settings_of(**values: Any) -> Settings:
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


def absolute_boxes(given: str | None, lake: str, options: dict[str, Any]) -> str | None:
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
