"""Arrow schemas of the lake's tables. They only grow: new columns are appended and nullable."""

from __future__ import annotations

import pyarrow as pa

TABLES_VERSION = 1
_NAME = pa.dictionary(pa.int32(), pa.string())


def _field(name: str, kind: pa.DataType, doc: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


#: The frozen inputs: one row per unit of work.
PLAN = pa.schema(
    [
        _field("unit_id", pa.string(), "stable id of the unit", False),
        _field("unit_index", pa.int64(), "position in the plan, from 0", False),
        _field("uri", pa.string(), "shard, or root of the members", False),
        _field("start", pa.int64(), "first sample, row group or row of the slice (source's own count)"),
        _field("stop", pa.int64(), "one past the last; null: to the end of the shard"),
        _field("byte_size", pa.int64(), "bytes of the shard or of the members, where the store tells"),
        _field("etag", pa.string(), "version of the shard as the store tells it (ETag, or size and mtime)"),
        _field("members", pa.list_(pa.string()), "files of the unit, relative to uri, where it is no single shard"),
        _field("images", pa.int64(), "number of images, where planning tells it without reading them"),
    ]
)

#: One row per input image, the failed ones too.
IMAGES = pa.schema(
    [
        _field("image_id", pa.string(), "unique in the lake", False),
        _field("unit_id", _NAME, "unit that holds the image", False),
        _field("uri", _NAME, "file or shard that holds the image's bytes", False),
        _field(
            "byte_offset", pa.int64(), "offset of the image's bytes in uri; null where they are no contiguous range"
        ),
        _field("byte_size", pa.int64(), "size of the encoded image in bytes"),
        _field("sha256", pa.binary(32), "digest of the encoded image"),
        _field("width", pa.int32(), "pixels of the decoded original (after EXIF where applied)"),
        _field("height", pa.int32(), "pixels of the decoded original (after EXIF where applied)"),
        _field("decoder", _NAME, "library that decoded the image"),
        _field("exif_orientation", pa.int8(), "EXIF orientation tag, 1..8; null: none"),
        _field("label", pa.int32(), "class index of the label"),
        _field("label_name", _NAME, "class name of the label"),
        _field("label_probability", pa.float32(), "probability of the label"),
        _field("predicted_class", pa.int32(), "class index of the largest logit"),
        _field("predicted_name", _NAME, "class name of the largest logit"),
        _field("predicted_probability", pa.float32(), "its probability"),
        _field("view_x0", pa.float32(), "left edge of what the model saw, pixels of the original"),
        _field("view_y0", pa.float32(), "top edge"),
        _field("view_x1", pa.float32(), "right edge"),
        _field("view_y1", pa.float32(), "bottom edge"),
        _field(
            "status",
            _NAME,
            "'ok', or why there are no maps: read_error, decode_error, decode_crash, label_error, model_error",
            False,
        ),
        _field("error", pa.string(), "the reason in words; null where status is ok"),
        _field("labels", pa.list_(pa.int32()), "class indices of all labels, where the source has lists; else null"),
    ]
)

#: Columns of the maps table that say that a map has nothing to tell; commits count them.
FLAGS = ("all_zero", "constant", "not_finite")

#: One row per heatmap.
MAPS = pa.schema(
    [
        _field("image_id", pa.string(), "image that is explained", False),
        _field("unit_id", _NAME, "unit that holds the image", False),
        _field("store_path", _NAME, "zarr array of the map, relative to the lake", False),
        _field("store_row", pa.int32(), "row of the map in that array", False),
        _field("method", _NAME, "method, or its label in the job file", False),
        _field("layer", _NAME, "target layer; several fused layers are joined by '+'", False),
        _field("target_class", pa.int32(), "class index that is explained", False),
        _field("target_name", _NAME, "class name that is explained"),
        _field("target_kind", _NAME, "why: label, predicted, top_k, threshold or class (the first that holds)", False),
        _field("target_rank", pa.int32(), "rank of the class's logit in the image, from 0", False),
        _field("is_label", pa.bool_(), "the class is the image's label; null where the image has none"),
        _field("is_predicted", pa.bool_(), "the class is the predicted one", False),
        _field("logit", pa.float32(), "logit of the class", False),
        _field("probability", pa.float32(), "probability of the class", False),
        _field("vmax", pa.float32(), "largest absolute value of the raw map: raw = stored x vmax", False),
        _field("mass", pa.float32(), "sum of the positive part of the raw map", False),
        _field(
            "entropy", pa.float32(), "-sum p ln p in nats, p = positive part / mass; null where mass is 0 or not finite"
        ),
        _field("effective_area", pa.float32(), "exp(entropy) / cells, (0, 1]"),
        _field("gini", pa.float32(), "Gini coefficient of the positive part, [0, 1)"),
        _field("peak_y", pa.float32(), "centre of the largest cell, [0, 1] of the view's height"),
        _field("peak_x", pa.float32(), "centre of the largest cell, [0, 1] of the view's width"),
        _field("centre_y", pa.float32(), "centre of mass, [0, 1] of the view's height"),
        _field("centre_x", pa.float32(), "centre of mass, [0, 1] of the view's width"),
        _field("spread", pa.float32(), "root mean square distance from the centre of mass, view = unit square"),
        _field(
            "border_mass", pa.float32(), "share of mass within 1/10 of the view from its edge; a uniform map has 0.36"
        ),
        _field(
            "corner_mass",
            pa.float32(),
            "share of mass in the four squares of 1/5 at the corners; a uniform map has 0.16",
        ),
        _field("all_zero", pa.bool_(), "every cell of the raw map is 0", False),
        _field("constant", pa.bool_(), "all cells of the raw map are equal", False),
        _field("not_finite", pa.bool_(), "the raw map holds NaN or infinity", False),
        _field("masks_scored", pa.int32(), "masked forwards behind the map; null where the method masks nothing"),
        _field(
            "expected_correlation",
            pa.float32(),
            "Score-CAM with a budget: expected correlation with the exact map; null where the map is exact",
        ),
    ]
)

#: Columns of MAPS computed from the float32 map by pipeline.cam.statistics.
STATISTICS = MAPS.names[MAPS.names.index("vmax") : MAPS.names.index("masks_scored")]

#: Columns of MAPS that say what a map took and how near it is to the exact one.
EFFORT = MAPS.names[MAPS.names.index("masks_scored") :]

#: Columns that lakes written before they were appended lack.
APPENDED = frozenset([*EFFORT, "labels"])

ATTRIBUTE_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
}


def images_schema(attributes: dict[str, str]) -> pa.Schema:
    """Return :data:`IMAGES` with one column appended per attribute (name -> type name)."""
    return pa.schema([*IMAGES, *(pa.field(name, ATTRIBUTE_TYPES[kind]) for name, kind in attributes.items())])
