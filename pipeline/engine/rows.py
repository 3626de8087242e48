"""Rows of the images table: what a sample, its decoding and the model's output say of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.engine.reading import Prepared
from pipeline.models.replica import Replica
from schemas.errors import InputError
from schemas.job import Job

#: Bits of an image's digest that make its noise.
_SEED_BITS = 63


def image_row(item: Prepared, job: Job, replica: Replica) -> dict[str, Any]:
    """Return the columns of the images table that are known before the model has seen the image."""
    sample = item.sample
    row: dict[str, Any] = {
        "image_id": sample.image_id,
        "uri": sample.uri,
        "byte_offset": sample.byte_offset,
        "byte_size": sample.byte_size,
        "sha256": item.sha256,
        "width": item.width,
        "height": item.height,
        "decoder": item.decoder,
        "exif_orientation": item.exif_orientation,
        "status": item.status,
        "error": item.error,
        **sample.attributes,
    }
    if item.view is not None:
        row |= {f"view_{edge}": getattr(item.view, edge) for edge in ("x0", "y0", "x1", "y1")}
    wanted = job.targets.label and row["status"] == "ok"
    try:
        if isinstance(sample.label, tuple):
            row["labels"] = list(dict.fromkeys(replica.class_index(each) for each in sample.label))
        elif sample.label is not None:
            row["label"] = replica.class_index(sample.label)
            row["label_name"] = class_name(replica, row["label"])
        elif wanted:
            row |= {"status": "label_error", "error": f"the image has no label in field '{job.source.label}'"}
    except InputError as error:
        # Without its label the image can still be explained, unless the label is what is asked for.
        row["error"] = row["error"] or str(error)
        if wanted:
            row["status"] = "label_error"
    return row


def labels_of(row: dict[str, Any]) -> Sequence[int]:
    """Return the classes that an image is labelled with."""
    if row.get("labels") is not None:
        return list(row["labels"])
    return [] if row.get("label") is None else [row["label"]]


def class_name(replica: Replica, index: int) -> str | None:
    """Return the name of a class, where the model has names."""
    return replica.class_names[index] if replica.class_names else None


def image_seed(item: Prepared) -> int:
    """Return the number that makes an image's noise: of its bytes, so that it is the same in any company."""
    seed: int = int.from_bytes(item.sha256 or b"", "little") & (2**_SEED_BITS - 1)
    return seed


def verdict(replica: Replica, label: int | None, logits: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Return the columns of the images table that the model's output (K,) of an image fills."""
    if not np.isfinite(probability).all():
        wrong = int((~np.isfinite(logits)).sum())
        return {
            "status": "model_error",
            "error": f"the model gave NaN or infinity for {wrong} of {len(logits)} classes; check its weights and "
            "model.precision",
        }
    # Of the logits: probabilities can saturate at 1 and tie.
    best = int(logits.argmax())
    columns = {
        "predicted_class": best,
        "predicted_name": class_name(replica, best),
        "predicted_probability": float(probability[best]),
    }
    return columns if label is None else columns | {"label_probability": float(probability[label])}
