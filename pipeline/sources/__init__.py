"""Sources of images: discovery of units and streaming of samples over fsspec; one file per format."""

from __future__ import annotations

import schemas.job
from pipeline.sources.base import Sample, Source, UnitError
from schemas.registries import SOURCES, implementation

__all__ = ["Sample", "Source", "UnitError", "open_source"]


def open_source(config: schemas.job.Source) -> Source:
    """Return the source of the job file's ``source`` part; nothing is read before :meth:`Source.plan`.

    Raises:
        InputError: the format is not registered.
    """
    source: Source = implementation(SOURCES, "source.format", config.format).SOURCE(config)
    return source
