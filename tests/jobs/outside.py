"""Running commands where home, temporary folder and working folder are empty, to see what they leave there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def written(document: dict[str, Any], folder: Path, name: str = "job.yaml") -> Path:
    """Write a job file and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


def bare_environment(folder: Path) -> dict[str, str]:
    """An environment whose home, temporary folder and caches are empty folders in ``folder``; there is ``cwd`` too."""
    names = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
    for name in (*names.values(), "cwd"):
        (folder / name).mkdir(parents=True)
    folders = {name: str(folder / each) for name, each in names.items()}
    python = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "RAY"))}
    return {**kept, **folders, **python}


def left_behind(folder: Path) -> list[str]:
    """Files in the folders of :func:`bare_environment`."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
