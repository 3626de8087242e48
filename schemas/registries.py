"""The registries: each extension of the project is one new file plus one line here.

A registry maps the name that job files use to the module that implements it. The names are part of the job
file's contract, so they stand on the ground floor; modules are named as strings and imported by the rooms above.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from schemas.errors import InputError, did_you_mean

# A CAM method: the module defines METHOD, a subclass of pipeline.cam.base.Method.
METHODS: dict[str, str] = {
    "cam": "pipeline.cam.cam",
    "grad_cam": "pipeline.cam.grad_cam",
    "grad_cam_pp": "pipeline.cam.grad_cam_pp",
    "smooth_grad_cam_pp": "pipeline.cam.smooth_grad_cam_pp",
    "score_cam": "pipeline.cam.score_cam",
    "layer_cam": "pipeline.cam.layer_cam",
    "hires_cam": "pipeline.cam.hires_cam",
    "xgrad_cam": "pipeline.cam.xgrad_cam",
    "eigen_cam": "pipeline.cam.eigen_cam",
}

# A source of images: the module defines SOURCE, a subclass of pipeline.sources.base.Source.
SOURCES: dict[str, str] = {
    "webdataset": "pipeline.sources.webdataset",
    "parquet": "pipeline.sources.parquet",
    "folder": "pipeline.sources.folder",
    "list": "pipeline.sources.uri_list",
}

# Where the results of a unit go: the module defines SINK, a subclass of pipeline.lake.sink.Sink.
SINKS: dict[str, str] = {
    "lake": "pipeline.lake.writer",
}


def implementation(registry: dict[str, str], kind: str, name: str) -> ModuleType:
    """Import and return the module registered under ``name``.

    Raises:
        InputError: no such name; the message lists the near ones.
    """
    if name not in registry:
        raise InputError(f"{kind} '{name}' is unknown{did_you_mean(name, registry)}; use one of: {', '.join(registry)}")
    return importlib.import_module(registry[name])
