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


# A lake of labels. Masks have the names that trainers look for, so no attempt's: they are created once and kept.
MASKS = "masks"
CONFIDENCE = "confidence"
SOFT = "soft"
LABELS = "labels"
CLASSES = "classes.json"
SPLIT_ALL = "splits/all.txt"
PROVENANCE = "provenance.json"


def mask(name: str) -> str:
    """Path of the index image of an image."""
    return f"{MASKS}/{name}.png"


def confidence(name: str) -> str:
    """Path of the confidence image of an image."""
    return f"{CONFIDENCE}/{name}.png"


def soft(name: str) -> str:
    """Path of the scores of an image."""
    return f"{SOFT}/{name}.npz"


def labels(unit: str, attempt: str) -> str:
    """Path of the labels table of one attempt at a unit."""
    return f"{LABELS}/{unit}-{attempt}.parquet"
