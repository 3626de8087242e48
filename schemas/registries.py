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

# The kinds of lakes, by what they hold. What explains the images of a unit: the module defines EXPLAINER, a subclass of
# pipeline.engine.explainer.Explainer.
EXPLAINERS: dict[str, str] = {
    "heatmaps": "pipeline.engine.explain",
    "labels": "pipeline.pseudolabels.explain",
}

# Where the results of a unit go: the module defines SINK, a subclass of pipeline.lake.sink.Sink.
SINKS: dict[str, str] = {
    "heatmaps": "pipeline.lake.writer",
    "labels": "pipeline.pseudolabels.sink",
}

# Which objects such a lake has, and what is true of them: the module defines CONTENTS, a subclass of
# pipeline.lake.contents.Contents.
CONTENTS: dict[str, str] = {
    "heatmaps": "pipeline.lake.heatmap_contents",
    "labels": "pipeline.pseudolabels.contents",
}

# Where the objects of images are: the module defines SOURCE, a subclass of pipeline.audit.regions.base.RegionSource.
REGIONS: dict[str, str] = {
    "column": "pipeline.audit.regions.column",
    "coco": "pipeline.audit.regions.coco",
    "voc": "pipeline.audit.regions.voc",
    "masks": "pipeline.audit.regions.masks",
}

# A kind of finding: the module defines KIND, a subclass of pipeline.audit.findings.base.FindingKind.
FINDINGS: dict[str, str] = {
    "shortcut": "pipeline.audit.findings.shortcut",
    "group_difference": "pipeline.audit.findings.group_difference",
    "off_object": "pipeline.audit.findings.off_object",
    "border": "pipeline.audit.findings.border",
    "wrong_reason": "pipeline.audit.findings.wrong_reason",
    "label_suspect": "pipeline.audit.findings.label_suspect",
    "novelty": "pipeline.audit.findings.novelty",
    "image_property": "pipeline.audit.findings.image_property",
    "disagreement": "pipeline.audit.findings.disagreement",
    "degenerate": "pipeline.audit.findings.degenerate",
    "duplicates": "pipeline.audit.findings.duplicates",
}

# Files of another tool: the module defines EXPORT, a subclass of pipeline.audit.exports.base.Export.
EXPORTS: dict[str, str] = {
    "fiftyone": "pipeline.audit.exports.fiftyone",
    "spotlight": "pipeline.audit.exports.spotlight",
    "virelay": "pipeline.audit.exports.virelay",
}


def implementation(registry: dict[str, str], kind: str, name: str) -> ModuleType:
    """Import and return the module registered under ``name``.

    Raises:
        InputError: no such name; the message lists the near ones.
    """
    if name not in registry:
        raise InputError(f"{kind} '{name}' is unknown{did_you_mean(name, registry)}; use one of: {', '.join(registry)}")
    return importlib.import_module(registry[name])
