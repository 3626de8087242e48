"""Which maps of a lake labels are made of, the job that says so, and what such labels lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.cam.selection import KINDS
from pipeline.lake import Lake
from pipeline.models.class_names import ClassIndex
from schemas.documents import Manifest, MethodInfo, ModelInfo
from schemas.errors import InputError, did_you_mean
from schemas.job import Targets

#: Members of the job that come from the lake.
FROM_LAKE = ("source", "model", "stored", "compute")


def choose_maps(manifest: Manifest, method: str | None, layer: str | None) -> MethodInfo:
    """Return the method whose maps are taken, with the one layer that they are of.

    Args:
        manifest: of the lake of heatmaps.
        method: its key. Default: the lake's only one.
        layer: as the maps table has it. Default: the method's only one.

    Raises:
        InputError: there is no such method or layer, or several and none is named.
    """
    keys = [info.key for info in manifest.methods]
    if method is None and len(keys) > 1:
        raise InputError(f"methods: the lake has maps of {', '.join(keys)}; name one: --set 'methods=[{keys[0]}]'")
    if method is not None and method not in keys:
        raise InputError(
            f"methods: the lake has no maps of '{method}'{did_you_mean(method, keys)}; it has those of "
            f"{', '.join(keys)}"
        )
    info = next(info for info in manifest.methods if method in (None, info.key))
    if layer is None and len(info.layers) > 1:
        raise InputError(f"--layer: the lake has maps of {info.key} at {', '.join(info.layers)}; name one")
    if layer is not None and layer not in info.layers:
        raise InputError(
            f"--layer: the lake has no maps of {info.key} at '{layer}'{did_you_mean(layer, info.layers)}; it has those "
            f"at {', '.join(info.layers)}"
        )
    return info.model_copy(update={"layers": [layer or info.layers[0]]})


def job_document(lake: Lake, given: Mapping[str, Any], layer: str | None) -> dict[str, Any]:
    """Return the document of the job that makes labels of a lake's maps.

    Args:
        lake: finished.
        given: a job file without what comes from the lake: ``output``, ``pseudo_labels``, and where wanted ``methods``
            (one, by its key), ``targets``, ``workers``, ``max_failed``.
        layer: of the maps; None: the only one.

    Raises:
        InputError: something is given that the lake says, is not stored, or has no meaning for stored maps.
    """
    if lake.manifest.kind != "heatmaps":
        raise InputError(f"--from: {lake.store.uri} is a lake of {lake.manifest.kind}, not of heatmaps; name another")
    if not lake.finished:
        raise InputError(f"--from: the run of {lake.store.uri} is not finished; run 'camlake attribute' again first")
    for name in FROM_LAKE:
        if name in given:
            raise InputError(f"{name}: with --from this is the lake's own; take it out of the job file")
    settings = dict(given.get("pseudo_labels") or {})
    for name, only in (("scales", [1.0]), ("flip", False)):
        if name in settings and settings[name] not in (only, tuple(only) if isinstance(only, list) else only):
            raise InputError(
                f"pseudo_labels.{name}: stored maps are of one scale and not mirrored; take it out, or run without "
                "--from"
            )
    info = choose_maps(lake.manifest, _method(given.get("methods")), layer)
    job = lake.manifest.job
    entry = next(entry for entry in job["methods"] if (entry.get("label") or entry["name"]) == info.key)
    if entry.get("fuse", "none") == "none":
        entry = {**entry, "layers": list(info.layers)}
    targets = given.get("targets", job["targets"])
    return {
        **{name: value for name, value in given.items() if name not in ("methods", "targets")},
        "source": job["source"],
        "model": job["model"],
        "targets": targets,
        "methods": [entry],
        "pseudo_labels": {**settings, "scales": [1.0], "flip": False},
        "stored": {
            "uri": lake.store.uri,
            "run_id": lake.manifest.run_id,
            "layer": info.layers[0],
            "dtype": job["output"]["dtype"],
            "storage_options": lake.store.storage_options,
        },
    }


def _method(given: Any) -> str | None:
    if given is None:
        return None
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        return given[0]
    raise InputError("methods: with --from this is a list of one name, whose maps are taken: methods: [grad_cam]")


def require_stored(asked: Targets, manifest: Manifest) -> None:
    """Check that every class that is asked for was explained: what is not stored would be taken for background.

    Raises:
        InputError: a class may be missing; the message says what the lake has.
    """
    stored = Targets.model_validate(manifest.job["targets"])
    lacks = None
    if asked.label and not stored.label:
        lacks = "the images' labels"
    elif asked.predicted and not (stored.predicted or stored.top_k):
        lacks = "the predicted class"
    elif asked.top_k and (stored.top_k or int(stored.predicted)) < asked.top_k:
        lacks = f"the {asked.top_k} best classes"
    elif asked.threshold and not (stored.threshold and stored.threshold <= asked.threshold):
        lacks = f"every class from a probability of {asked.threshold:g} on"
    elif asked.classes and not set(_indices(asked, manifest)) <= set(_indices(stored, manifest)):
        lacks = f"all of {', '.join(str(each) for each in asked.classes)}"
    if lacks is not None:
        has = ", ".join(f"{name} {value}" for name, value in stored.model_dump(exclude_none=True).items() if value)
        raise InputError(
            f"targets: the lake need not have maps of {lacks} (its own targets are {has}); ask for those, or run "
            "without --from"
        )


def _indices(targets: Targets, manifest: Manifest) -> list[int]:
    find = ClassIndex(manifest.model.num_classes, manifest.model.class_names)
    return [find(each) for each in targets.classes or ()]


def selected(rows: pa.Table, targets: Targets, manifest: Manifest) -> tuple[pa.Table, list[str]]:
    """Return the rows of the maps table that a job's targets ask for, and why, the first reason that holds.

    Args:
        rows: of one method and layer.
        targets: of the job of labels.
        manifest: of the lake.
    """
    fixed = set(_indices(targets, manifest))
    names = ("target_kind", "is_predicted", "target_rank", "probability", "target_class")
    columns = [rows[name].to_pylist() for name in names]
    places, kinds = [], []
    for place, (kind, predicted, rank, probability, target) in enumerate(zip(*columns, strict=True)):
        reasons = {
            # The first reason of all, so that it stands wherever it holds.
            "label": targets.label and kind == "label",
            "predicted": targets.predicted and predicted,
            "top_k": targets.top_k is not None and rank < targets.top_k,
            "threshold": targets.threshold is not None and probability >= targets.threshold,
            "class": target in fixed,
        }
        reason = next((kind for kind in KINDS if reasons[kind]), None)
        if reason is not None:
            places.append(place)
            kinds.append(reason)
    return rows.take(pa.array(places, pa.int64())), kinds


def losses(model: ModelInfo, method: MethodInfo, dtype: str) -> list[str]:
    """Say what labels made of stored maps lack, a sentence each.

    Args:
        model: of the lake of heatmaps.
        method: whose maps, with the one layer that they are of.
        dtype: as which they are stored.
    """
    layers = method.layers[0].split("+")
    grids = [(each.height, each.width) for each in model.layers if each.name in layers]
    (height, width), (rows, columns) = max(grids, default=model.input_size), model.input_size
    step = "1/255" if dtype == "uint8" else "1/2048"
    found = [
        f"scales: the maps are of one forward at {rows}x{columns} pixels, of {height}x{width} cells, and not mirrored",
        f"precision: the maps are stored as {dtype}, exact to {step} of their largest value",
        "surroundings: what the model was not shown (outside its crop) has no map and is labelled ignore",
    ]
    if method.signed:
        found.append("sign: only the positive part of the maps counts")
    return found
