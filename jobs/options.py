"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from pipeline.engine.log import Format
from schemas.errors import InputError

StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage", metavar="KEY=VALUE", help="fsspec option of the lake's file system; may be repeated."),
]

SourceStorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--source-storage",
        metavar="KEY=VALUE",
        help="fsspec option of the images' file system, where it is not the lake's; may be repeated.",
    ),
]

LogFormat = Annotated[
    Format,
    typer.Option(
        "--log-format",
        envvar="CAMLAKE_LOG_FORMAT",
        help="How what happens is written: text for people, or json, one object per line on the same streams.",
    ),
]


def storage_options(given: list[str] | None) -> dict[str, Any]:
    """Parse ``key=value`` options; values are YAML, and dots in keys enter mappings.

    Raises:
        InputError: an option is not of that form.
    """
    options: dict[str, Any] = {}
    for option in given or []:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise InputError(
                "--storage: an option lacks its key or its '='; write it as key=value: --storage anon=true"
            )
        *parents, last = key.split(".")
        node = options
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--storage {key}=...: the value is not valid YAML; quote it") from None
    return options
