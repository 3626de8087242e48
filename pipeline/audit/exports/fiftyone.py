"""A FiftyOne dataset folder: the format that FiftyOne's own ``FiftyOneDataset`` type reads and writes.

``metadata.json`` says which fields samples have, ``samples.json`` holds the samples, ``data/`` the images and
``fields/heatmap/`` the maps, all as MongoDB's extended JSON. A map is an 8-bit PNG, small, since FiftyOne draws large
ones slowly, and laid over the whole image, since FiftyOne knows no view.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.audit.exports.base import About, Export, Item, fitted, scaled
from pipeline.lake.enlarge import lay_over

#: Pixels of a map's longer side.
SIDE = 128
#: Of the dataset's document. FiftyOne from 0.19 takes it as it is; a newer format is for newer releases only.
VERSION = "1.0.0"

_FIELDS = "fiftyone.core.fields."
_HEATMAP = "fields/heatmap"
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_TYPES = {"string": "StringField", "int64": "IntField", "float64": "FloatField", "bool": "BooleanField"}

#: What a FiftyOne sample calls its own, and what this export adds.
_RESERVED = """
    id filepath tags metadata created_at last_modified_at media_type dataset_id rand group frames frame sample_id
    frame_number filename field_names in_dataset dataset media_reference has_frames has_media local_path STRICT
    reload save copy clear_field get_field has_field iter_fields set_field update_fields add_labels merge
    compute_metadata get_metadata from_dict from_doc from_json from_frame to_dict to_json to_mongo_dict
    ground_truth prediction heatmap image_id unit_id target outcome label_probability findings loadings
"""

Document = dict[str, Any]


def heat_pixels(item: Item) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a map laid over its whole image (h, w) uint8: 255 where it is largest, 0 outside the view.

    The negative parts of a signed map are 0.
    """
    before = item.picture.size
    width, height = fitted(before, SIDE)
    view = scaled(item.view, before, (width, height))
    laid = lay_over(item.heat, view, height, width, outside=0.0)
    return np.rint(np.clip(np.nan_to_num(laid), 0.0, 1.0) * 255).astype(np.uint8)


class FiftyOne(Export):
    """Writes the folder."""

    reserved = frozenset(_RESERVED.split())

    def write(self, items: Iterable[Item], about: About, folder: Path) -> None:
        """Write ``data``, ``fields``, ``samples.json`` and ``metadata.json``."""
        for each in ("data", _HEATMAP):
            (folder / each).mkdir(parents=True)
        with (folder / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for item in items:
                path = f"data/{item.place:06d}.{_SUFFIXES[item.kind]}"
                heat = f"{_HEATMAP}/{item.place:06d}.png"
                (folder / path).write_bytes(item.data)
                Image.fromarray(heat_pixels(item)).save(folder / heat)
                file.write("\n" if not item.place else ",\n")
                file.write(json.dumps(_sample(item, about, path, heat), allow_nan=False))
            file.write("\n]}\n")
        (folder / "metadata.json").write_text(json.dumps(_dataset(about), indent=1, allow_nan=False), encoding="utf-8")

    def how_to_open(self, folder: Path) -> str:
        """Return a command."""
        read = f"fo.Dataset.from_dir({json.dumps(str(folder.absolute()))}, dataset_type=fo.types.FiftyOneDataset)"
        return shlex.join(["python", "-c", f"import fiftyone as fo; fo.launch_app({read}).wait()"])


def _sample(item: Item, about: About, path: str, heat: str) -> Document:
    image = item.image
    key = f"{about.manifest.run_id}/{image['image_id']}"
    found: Document = {
        "_id": _id(key),
        "filepath": path,
        "tags": item.tags,
        "metadata": {
            "_cls": "ImageMetadata",
            "size_bytes": len(item.data),
            "mime_type": f"image/{item.kind.lower()}",
            "width": item.picture.width,
            "height": item.picture.height,
            "num_channels": 3,
        },
        "_media_type": "image",
        "_rand": int(_digest(f"{key}/rand")[:13], 16) / 16**13,
        "ground_truth": _classification(f"{key}/label", item.name("label")),
        "prediction": _classification(f"{key}/predicted", item.name("predicted"), image["predicted_probability"]),
        "heatmap": {
            "_id": _id(f"{key}/heatmap"),
            "_cls": "Heatmap",
            "tags": [],
            "map": None,
            "map_path": heat,
            "range": [0, 255],
        },
        "image_id": image["image_id"],
        "unit_id": image["unit_id"],
        "target": item.name("target"),
        "outcome": item.outcome,
        "label_probability": _number(image["label_probability"]),
        "findings": [finding.sentence for finding in item.findings],
        **{name: item.measures[name] for name in about.measures},
    }
    if about.parts is not None:
        found["loadings"] = [round(float(each), 6) for each in item.loadings]
    for attribute, name in about.columns.items():
        value = image[attribute]
        found[name] = _number(value) if isinstance(value, float) else value
    return found


def _classification(key: str, label: str | None, confidence: float | None = None) -> Document | None:
    if label is None:
        return None
    return {
        "_id": _id(key),
        "_cls": "Classification",
        "tags": [],
        "label": label,
        "confidence": _number(confidence),
        "logits": None,
    }


def _dataset(about: About) -> Document:
    """Return the dataset's document; what it lacks, FiftyOne adds when it reads it."""
    label = [
        _field("id", "ObjectIdField", db="_id"),
        _field("tags", "ListField", sub="StringField"),
        _field("label", "StringField"),
        _field("confidence", "FloatField"),
        _field("logits", "VectorField"),
    ]
    heatmap = [
        _field("id", "ObjectIdField", db="_id"),
        _field("tags", "ListField", sub="StringField"),
        _field("map", "ArrayField"),
        _field("map_path", "StringField"),
        _field("range", "HeatmapRangeField"),
    ]
    metadata = [
        *(_field(name, "IntField") for name in ("size_bytes", "width", "height", "num_channels")),
        _field("mime_type", "StringField"),
    ]
    fields = [
        _field("id", "ObjectIdField", db="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", sub="StringField"),
        _field("metadata", "EmbeddedDocumentField", of="fiftyone.core.metadata.ImageMetadata", fields=metadata),
        _field("_media_type", "StringField"),
        _field("_rand", "FloatField"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        *(
            _field(name, "EmbeddedDocumentField", of="fiftyone.core.labels.Classification", fields=label)
            for name in ("ground_truth", "prediction")
        ),
        _field("heatmap", "EmbeddedDocumentField", of="fiftyone.core.labels.Heatmap", fields=heatmap),
        *(_field(name, "StringField") for name in ("image_id", "unit_id", "target", "outcome")),
        _field("label_probability", "FloatField"),
        _field("findings", "ListField", sub="StringField"),
        *(_field(name, "FloatField") for name in about.measures),
        *([_field("loadings", "ListField", sub="FloatField")] if about.parts is not None else []),
        *(_field(name, _TYPES[about.manifest.attributes[key]]) for key, name in about.columns.items()),
    ]
    return {
        "name": about.name,
        "version": VERSION,
        "media_type": "image",
        "persistent": False,
        "tags": ["camlake"],
        "description": f"Heatmaps of {about.manifest.model.name} by {about.series.method} at {about.series.layer}",
        "info": {
            "camlake": {
                "lake": about.lake,
                "run_id": about.manifest.run_id,
                "method": about.series.method,
                "layer": about.series.layer,
                "audit": about.audit,
            }
        },
        "default_classes": list(about.frame.class_names or ()),
        "sample_fields": fields,
        "saved_views": [],
        "workspaces": [],
        "annotation_runs": {},
        "brain_methods": {},
        "evaluations": {},
        "runs": {},
    }


def _field(
    name: str,
    kind: str,
    *,
    sub: str | None = None,
    of: str | None = None,
    fields: Iterable[Document] = (),
    db: str | None = None,
    read_only: bool = False,
) -> Document:
    """Return the description of a field of a sample."""
    return {
        "name": name,
        "ftype": f"{_FIELDS}{kind}",
        "embedded_doc_type": of,
        "subfield": None if sub is None else f"{_FIELDS}{sub}",
        "fields": list(fields),
        "db_field": db or name,
        "description": None,
        "info": None,
        "read_only": read_only,
    }


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _id(key: str) -> Document:
    """Return an object id, the same for the same image in every export."""
    return {"$oid": _digest(key)[:24]}


EXPORT = FiftyOne
