"""The pipeline: sources, models, class activation maps, the engine and the lake.

In a notebook: ``from pipeline import Attributor, open_lake``. Both are imported when they are first used, so that
``import pipeline`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.attributor import Attributor as Attributor
    from pipeline.lake import open_lake as open_lake

__all__ = ["Attributor", "open_lake"]

_HOMES = {"Attributor": "pipeline.attributor", "open_lake": "pipeline.lake"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
