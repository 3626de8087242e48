"""A whole export: choose, read, write, and put the folder in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import zarr
from pydantic import ValidationError
from zarr.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from pipeline.audit.exports.base import About, Export, Item, column_names
from pipeline.audit.exports.choose import behind_findings, by_hash, class_indices
from pipeline.audit.exports.items import Reading
from pipeline.audit.frame import Frame, make_frame
from pipeline.audit.maps_zarr import FOLDER as MAPS
from pipeline.audit.objects import Objects, open_objects
from pipeline.audit.outputs import FINDINGS_LIST, MANIFEST
from pipeline.audit.parts import Parts
from pipeline.audit.parts_files import storage_of
from pipeline.audit.progress import Progression
from pipeline.lake import Lake, LakeStore, MissingObjectError
from pipeline.lake.new_folder import new_folder, require_free
from pipeline.lake.originals import Originals
from schemas.audit import GRID, MEASURES, AuditManifest, Finding, Settings
from schemas.errors import InputError, LakeError
from schemas.registries import EXPORTS, implementation

DEFAULT_IMAGES = 1000


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: of the export.
        images: in it.
        classes: explained classes among them.
        missing: images that were left out.
        reason: why, of the first of them.
        how_to_open: what to type to look at it.
    """

    folder: Path
    images: int
    classes: int
    missing: int
    reason: str
    how_to_open: str


@dataclass(frozen=True, eq=False)
class _Audit:
    manifest: AuditManifest
    findings: list[Finding]
    parts: Parts | None
    uri: str


def export(
    lake: Lake,
    to: str,
    output: Path,
    *,
    images: int = DEFAULT_IMAGES,
    classes: Sequence[str] = (),
    audit: str | None = None,
    method: str | None = None,
    layer: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> Exported:
    """Write images with their heatmaps as files of another tool.

    Args:
        lake: the lake.
        to: name of the export (``schemas.registries.EXPORTS``).
        output: folder; new, or empty. It appears when it is complete.
        images: most images. Without an audit they are spread over the classes by the hash of the audit's sample.
        classes: names or indices of explained classes; empty: all.
        audit: URI of an audit of the lake: the images are those behind its findings, the worst first.
        method: whose maps. Default: the audit's, else the lake's first.
        layer: its layer. Default: the audit's, else the last that the method writes.
        storage_options: of the file system of lake and audit.
        source_options: of the images' file system. Default: the lake's, where both are of one kind.
        stream: where progress goes (default: stderr).

    Raises:
        InputError: no such export, method, layer or class; the folder is not empty; the audit is of another lake; or
            nothing is to be exported.
        LakeError: the lake is damaged, or the pictures cannot be had.
    """
    writer: Export = implementation(EXPORTS, "--to", to).EXPORT()
    require_free(output)
    found = None if audit is None else _read_audit(lake, audit, storage_options)
    frame = _frame(lake, found, method, layer)
    wanted = class_indices(classes, frame, lake.manifest.model.num_classes)
    named: dict[str, list[Finding]] = {}
    if found is None:
        choices = by_hash(lake, frame, images, wanted)
    else:
        choices, named = behind_findings(found.findings, images, wanted)
    if not choices:
        raise InputError(_nothing(lake, frame, found, bool(wanted)))
    objects = Objects() if found is None else open_objects(frame.settings, lake)
    about = _about(lake, frame, objects, found, output, writer)
    reading = Reading(lake, about, objects, named, Originals(lake, source_options, most_read=None))
    target_classes: set[int] = set()

    def items() -> Iterator[Item]:
        with Progression(len(choices), 0, stream) as progress:
            for item in reading.items(choices):
                target_classes.add(item.row["target_class"])
                progress.done(1)
                yield item
        if not reading.count:
            raise LakeError(f"none of the {reading.missing} images can be had ({reading.reason}); restore the source")

    with new_folder(output) as folder:
        writer.write(items(), about, folder)
    return Exported(
        output, reading.count, len(target_classes), reading.missing, reading.reason, writer.how_to_open(output)
    )


def _frame(lake: Lake, found: _Audit | None, method: str | None, layer: str | None) -> Frame:
    settings = Settings() if found is None else found.manifest.settings
    if method is not None and method != settings.method:
        settings = settings.model_copy(update={"method": method, "layer": None})
    if layer is not None:
        settings = settings.model_copy(update={"layer": layer})
    return make_frame(lake, settings)


def _nothing(lake: Lake, frame: Frame, found: _Audit | None, classes: bool) -> str:
    of = " of these classes" if classes else ""
    if found is not None:
        return f"{found.uri} names no image{of} behind its findings; leave --audit out to export some of each class"
    return f"{lake.store.uri} has no map{of} that explains a {frame.settings.targets} class; look at: camlake status"


def _about(lake: Lake, frame: Frame, objects: Objects, found: _Audit | None, output: Path, writer: Export) -> About:
    measures = [measure.name for measure in MEASURES if objects.source is not None or not measure.regional]
    if found is not None:
        measures.append("severity")
    # Parts are made of the maps of one method and layer, and say nothing of others.
    same = found is not None and frame.series[frame.primary] == (found.manifest.method, found.manifest.layer)
    return About(
        name=output.absolute().name,
        lake=lake.store.uri,
        manifest=lake.manifest,
        frame=frame,
        measures=measures,
        columns=column_names(lake.manifest.attributes, writer.reserved | set(measures)),
        parts=found.parts if found is not None and same else None,
        audit=None if found is None else found.uri,
    )


def _read_audit(lake: Lake, uri: str, options: Mapping[str, Any] | None) -> _Audit:
    store = storage_of(lake.store, uri, options)
    try:
        manifest = AuditManifest.model_validate_json(store.get(MANIFEST))
        findings = [Finding.model_validate(each) for each in json.loads(store.get(FINDINGS_LIST))]
    except MissingObjectError:
        raise InputError(f"--audit: {uri} holds no finished audit; run 'camlake audit', or check the URI") from None
    except (ValidationError, ValueError) as error:
        raise LakeError(f"{uri} is no sound audit of this version ({error}); run 'camlake audit' again") from error
    if manifest.lake_run_id != lake.manifest.run_id:
        raise InputError(f"--audit: {uri} is an audit of another lake ({manifest.lake}); give one of {lake.store.uri}")
    return _Audit(manifest, findings, _parts(store), uri)


def _parts(store: LakeStore) -> Parts | None:
    """Return the parts of an audit; None where it has none."""
    folder = f"{MAPS}/parts"
    objects: Any = {
        entry.path.removeprefix(f"{folder}/"): Buffer.from_bytes(store.get(entry.path)) for entry in store.list(folder)
    }
    if not objects:
        return None
    maps = np.asarray(zarr.open_array(MemoryStore(objects), mode="r")[:], np.float64)
    return Parts(maps, np.empty((0, len(maps))), 0) if maps.shape[1:] == (GRID, GRID) and len(maps) else None
