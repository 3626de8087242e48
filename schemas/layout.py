"""Where things lie in a lake. Paths are relative to the lake's root, with '/' between the parts."""

from __future__ import annotations

import re
from typing import Final

FORMAT_VERSION: Final = 1

MANIFEST = "camlake.json"
PLAN_UNITS = "plan/units.parquet"
SUCCESS = "_SUCCESS.json"
COMMITS = "commits"
QUARANTINE = "quarantine"
HEATMAPS = "heatmaps"
IMAGES = "images"
MAPS = "maps"

_UNSAFE = re.compile(r"[^A-Za-z0-9_.+-]+")


def safe(name: str) -> str:
    """Return ``name`` with everything that a path or a URL cannot bear as '-'."""
    return _UNSAFE.sub("-", name).strip("-.") or "x"


def unit_id(index: int, name: str) -> str:
    """Return the id of the unit at ``index`` of the plan, e.g. ``000003-train-000003``."""
    return f"{index:06d}-{safe(name)[-48:].strip('-.') or 'x'}"


def heatmaps(method: str, layer: str, unit: str, attempt: str) -> str:
    """Path of the zarr array of one method and layer of one attempt at a unit."""
    return f"{HEATMAPS}/{safe(method)}/{safe(layer)}/{unit}-{attempt}.zarr"


def images(unit: str, attempt: str) -> str:
    """Path of the images table of one attempt at a unit."""
    return f"{IMAGES}/{unit}-{attempt}.parquet"


def maps(unit: str, attempt: str) -> str:
    """Path of the maps table of one attempt at a unit."""
    return f"{MAPS}/{unit}-{attempt}.parquet"


def commit(unit: str) -> str:
    """Path of a unit's commit."""
    return f"{COMMITS}/{unit}.json"


def quarantine(unit: str) -> str:
    """Path of the record of a unit that was given up."""
    return f"{QUARANTINE}/{unit}.json"
