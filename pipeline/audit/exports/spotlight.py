"""A table for Renumics Spotlight: a Parquet file with pictures in it, and the types of its columns as JSON."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.audit.exports.base import About, Export, Item, fitted, scaled
from pipeline.lake.overlay import overlay
from schemas.audit import GRID
from schemas.tables import ATTRIBUTE_TYPES

TABLE, DTYPES = "table.parquet", "dtype.json"
#: Pixels of an overlay's longer side, and the opacity of its colours.
SIDE = 320
ALPHA = 0.5

_ROWS = 64
_NAMES = ("label", "prediction", "target", "outcome", "tags")
#: Categories: any other text Spotlight takes for a literal of Python where it can, the class "1" for a number.
_NAME = pa.dictionary(pa.int32(), pa.string())


class Spotlight(Export):
    """Writes ``table.parquet`` and ``dtype.json``."""

    reserved = frozenset(
        (
            *("image", "overlay", "image_id", *_NAMES, "confidence", "label_probability"),
            *("findings", "embedding"),
        )
    )

    def write(self, items: Iterable[Item], about: About, folder: Path) -> None:
        """Write the table some rows at a time.

        Its columns: ``image`` and ``overlay`` (encoded pictures), ``embedding`` (the loadings on the audit's parts,
        without an audit the map itself on the canonical grid; null where a map has no mass), names, probabilities,
        measures, attributes, and ``findings``.
        """
        schema, dtypes = _columns(about)
        with pq.ParquetWriter(folder / TABLE, schema, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for item in items:
                rows.append(_row(item, about))
                if len(rows) == _ROWS:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
        (folder / DTYPES).write_text(json.dumps(dtypes, indent=1), encoding="utf-8")

    def how_to_open(self, folder: Path) -> str:
        """Return a command."""
        table, dtypes = (json.dumps(str(folder.absolute() / name)) for name in (TABLE, DTYPES))
        show = f"spotlight.show(pandas.read_parquet({table}), dtype=json.load(open({dtypes})))"
        return shlex.join(["python", "-c", f"import json, pandas; from renumics import spotlight; {show}"])


def _columns(about: About) -> tuple[pa.Schema, dict[str, str]]:
    """Return the schema, and the types of the columns that Spotlight would take for something else."""
    kinds = {name: about.manifest.attributes[attribute] for attribute, name in about.columns.items()}
    schema = pa.schema(
        [
            ("image", pa.binary()),
            ("overlay", pa.binary()),
            ("image_id", pa.string()),
            *((name, _NAME) for name in _NAMES),
            ("confidence", pa.float64()),
            ("label_probability", pa.float64()),
            ("findings", pa.string()),
            ("embedding", pa.list_(pa.float32(), _length(about))),
            *((name, pa.float64()) for name in about.measures),
            *((name, _NAME if kind == "string" else ATTRIBUTE_TYPES[kind]) for name, kind in kinds.items()),
        ]
    )
    return schema, {
        "image": "Image",
        "overlay": "Image",
        "image_id": "str",
        "findings": "str",
        "embedding": "Embedding",
    }


def _length(about: About) -> int:
    return GRID**2 if about.parts is None else len(about.parts.maps)


def _row(item: Item, about: About) -> dict[str, Any]:
    image = item.image
    embedding = item.density.ravel() if about.parts is None else item.loadings
    sound = bool(np.isfinite(item.density).all())
    return {
        "image": item.data,
        "overlay": overlay_png(item, about),
        "image_id": image["image_id"],
        "label": item.name("label"),
        "prediction": item.name("predicted"),
        "target": item.name("target"),
        "outcome": item.outcome,
        "confidence": image["predicted_probability"],
        "label_probability": image["label_probability"],
        "tags": ", ".join(item.tags) or None,
        "findings": "\n".join(finding.sentence for finding in item.findings),
        "embedding": embedding.tolist() if sound else None,
        **{name: item.measures[name] for name in about.measures},
        **{name: image[attribute] for attribute, name in about.columns.items()},
    }


def overlay_png(item: Item, about: About) -> bytes:
    """Return the map laid over the picture, at most SIDE pixels, as PNG."""
    size = fitted(item.picture.size, SIDE)
    small = item.picture.resize(size, Image.Resampling.LANCZOS)
    laid = overlay(small, item.heat, scaled(item.view, item.picture.size, size), alpha=ALPHA, signed=about.signed)
    buffer = io.BytesIO()
    laid.save(buffer, "PNG")
    return buffer.getvalue()


EXPORT = Spotlight
