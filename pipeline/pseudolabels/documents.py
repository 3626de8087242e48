"""What finalize adds to a lake of labels for those who train on it: class table, list of images, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.pseudolabels.classes import manifest_classes
from pipeline.pseudolabels.stored import losses
from schemas import layout
from schemas.documents import Manifest
from schemas.pseudolabels import BACKGROUND_ID

_BACKGROUND = "background"


def label_documents(manifest: Manifest, names: Iterable[str]) -> dict[str, bytes]:
    """Return the documents by path.

    Args:
        manifest: of the lake.
        names: of the images that have a mask, each once.
    """
    classes = manifest_classes(manifest)
    table = {str(BACKGROUND_ID): _BACKGROUND} | {
        str(each.label_id): each.name for each in sorted(classes.classes, key=lambda each: each.label_id)
    }
    settings = manifest.job["pseudo_labels"]
    provenance = {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "classes_from": _origin(manifest.job["targets"]),
        "method": manifest.methods[0].model_dump(mode="json"),
        "scales": settings["scales"],
        "flip": settings["flip"],
        "max_pixels": settings["max_pixels"],
        "background": settings["background"],
        "refine": settings["refine"],
        "files": settings["files"],
        "ignore": classes.ignore,
        "classes": [
            {"id": each.label_id, "name": each.name, "model_classes": list(each.model_classes)}
            for each in classes.classes
        ],
        "model": {
            "name": manifest.model.name,
            "weights": manifest.model.weights,
            "digest": manifest.model.digest,
            "precision": manifest.model.precision,
        },
        "source": {name: manifest.job["source"][name] for name in ("uri", "format", "label")},
        "inputs_digest": manifest.inputs_digest,
        "job_digest": manifest.job_digest,
        "versions": manifest.versions,
    }
    stored = manifest.job.get("stored")
    if stored is not None:
        lost = losses(manifest.model, manifest.methods[0], stored["dtype"])
        provenance["stored_maps"] = {name: stored[name] for name in ("uri", "run_id", "layer", "dtype")} | {
            "lost": lost
        }
    return {
        layout.CLASSES: _json(table),
        layout.SPLIT_ALL: "".join(f"{name}\n" for name in sorted(names)).encode(),
        layout.PROVENANCE: _json(provenance),
    }


def _origin(targets: dict[str, Any]) -> list[str]:
    """Say where an image's classes came from, each reason as the labels table has it in ``target_kind``."""
    found = []
    if targets.get("label"):
        found.append("label: the image's labels")
    if targets.get("predicted"):
        found.append("predicted: the class of the largest logit")
    if targets.get("top_k"):
        found.append(f"top_k: the {targets['top_k']} classes of the largest logits")
    if targets.get("threshold"):
        found.append(f"threshold: every class predicted with a probability of at least {targets['threshold']:g}")
    if targets.get("classes"):
        found.append("class: a fixed list, whatever the image shows")
    return found


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
