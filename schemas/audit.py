"""The audit's contracts: its settings, its measures, and the tables and documents that it writes."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

AUDIT_VERSION: Final = 1

#: Side of the canonical grid of cells, over the view, to which every map is brought.
GRID = 14

#: A uniform map has this share of its mass in the border and in the corners (see ``schemas.tables.MAPS``).
UNIFORM_BORDER = 0.36
UNIFORM_CORNER = 0.16

Outcome = Literal["unknown", "right", "wrong"]
OUTCOMES: tuple[Outcome, ...] = ("unknown", "right", "wrong")


class Measure(NamedTuple):
    """A number that each map has: its name, the range of its histogram, and what it says.

    ``regional`` measures need the object's place; they are NaN for maps whose image has none.
    """

    name: str
    low: float
    high: float
    regional: bool
    doc: str


MEASURES: tuple[Measure, ...] = (
    Measure("probability", 0, 1, False, "probability of the explained class"),
    Measure("effective_area", 0, 1, False, "exp(entropy) / cells: share of the view over which the mass is spread"),
    Measure("gini", 0, 1, False, "Gini coefficient of the cells: 0 uniform, near 1 all mass in one cell"),
    Measure("spread", 0, 0.75, False, "root mean square distance from the centre of mass, view = unit square"),
    Measure("centre_y", 0, 1, False, "centre of mass from the top, share of the view's height"),
    Measure("centre_x", 0, 1, False, "centre of mass from the left, share of the view's width"),
    Measure("border_enrichment", 0, 1 / UNIFORM_BORDER, False, "mass within 1/10 of an edge, uniform map = 1"),
    Measure("corner_enrichment", 0, 1 / UNIFORM_CORNER, False, "mass in the corner squares of 1/5, uniform map = 1"),
    Measure("energy", 0, 1, True, "share of the mass inside the object (EBPG, relevance mass accuracy)"),
    Measure("area", 0, 1, True, "share of the view that the object covers: the energy of a uniform map"),
    Measure("enrichment", 0, 20, True, "energy / area: 1 is a uniform map"),
    Measure("pointing", 0, 1, True, "1 where the peak lies inside the object (pointing game)"),
    Measure("rank_accuracy", 0, 1, True, "share of the K strongest pixels inside the object of K pixels"),
    Measure("skill", -1, 1, True, "(energy - prior) / (1 - prior), the prior a centred Gaussian's energy"),
)
MEASURE_INDEX = {measure.name: index for index, measure in enumerate(MEASURES)}

#: Measures of an image, whatever the maps say; natural logarithms.
PROPERTIES: tuple[Measure, ...] = (
    Measure("log_width", 0, 12, False, "ln of the width in pixels"),
    Measure("log_height", 0, 12, False, "ln of the height in pixels"),
    Measure("log_aspect", -4, 4, False, "ln(width / height)"),
    Measure("log_bytes_per_pixel", -8, 4, False, "ln of the encoded bytes per pixel: how much is on it"),
)

#: Bins of every histogram, of equal width over the measure's range; the outer ones also hold what lies beyond.
BINS = 32


class Settings(BaseModel):
    """What an audit looks at, and when it speaks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: tuple[str, ...] = Field((), description="Columns of the images table whose values are compared.")
    cluster: str | None = Field(
        None, description="Column of the images table that names what rows depend on (patient, video); null: the image."
    )
    method: str | None = Field(None, description="Method of the findings; null: the lake's first.")
    layer: str | None = Field(None, description="Its layer; null: the last that the method writes.")
    targets: Literal["predicted", "label", "all"] | None = Field(
        None,
        description="Maps that count: of the predicted class, of the label, or all. Null: of the predicted class, or "
        "all where a class is present or not by itself (activation: sigmoid).",
    )
    boxes: str | None = Field(None, description="Column with boxes, COCO JSON file, or folder of VOC XML files.")
    masks: str | None = Field(None, description="Folder of PNG masks, one per image.")
    seed: int = Field(0, description="Of the sample and of the bootstrap.")
    bootstrap: int = Field(200, ge=50, le=5000, description="Resamples behind each interval.")
    sample: int = Field(100_000, ge=100, description="Maps that are kept for parts, exemplars and images of findings.")
    parts: int = Field(16, ge=2, le=64, description="Parts into which the maps are decomposed.")
    q: float = Field(0.05, gt=0, lt=1, description="False discovery rate of each family of tests.")
    suppressed_below: int = Field(10, ge=1, description="Groups of fewer maps are not shown.")
    interval_from: int = Field(30, ge=2, description="Groups of fewer maps show their number only.")
    flagged_from: int = Field(100, ge=2, description="Groups of fewer maps are never flagged.")
    effect_d: float = Field(0.2, ge=0, description="Least standardised difference that is flagged.")
    effect_energy: float = Field(0.05, ge=0, description="Least difference of a share that is flagged.")
    effect_ratio: float = Field(1.5, ge=1, description="Least ratio that is flagged.")
    confident: float = Field(0.9, gt=0, le=1, description="Probability from which a prediction is confident.")


class ImageRef(BaseModel):
    """An image behind a finding, and the heatmap that shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    unit_id: str
    target_class: int | None = None
    store_path: str | None = None
    store_row: int | None = None
    note: str = Field("", description="What to see, in a few words.")


class CausalCheck(BaseModel):
    """What became of the class's probability when the finding's area was painted over.

    ``change`` is the mean of (after - before) with the area in-painted, ``control`` with other areas of the same form;
    ``low`` and ``high`` bound the mean of the paired difference ``change - control``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    change: float
    control: float
    low: float
    high: float
    used: bool = Field(description="The probability falls, surely and far enough: the model uses what is there.")


class Finding(BaseModel):
    """One statement about dataset and model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    finding_id: str = Field(description="Stable over runs of the same audit: kind and what it is about.")
    kind: str = Field(description="Registered name, as in schemas.registries.FINDINGS.")
    title: str = Field(description="A few words.")
    sentence: str = Field(description="One sentence that a non-specialist understands.")
    remedy: str = Field("", description="What one can do about it.")
    severity: float = Field(description="By which findings are ranked; comparable between kinds, larger is worse.")
    target_class: int | None = None
    target_name: str | None = None
    attribute: str | None = None
    value: str | None = None
    measure: str | None = None
    effect: float | None = Field(None, description="In the unit that effect_name says.")
    effect_name: str | None = Field(None, description="'ratio', 'difference', 'd', 'share', 'count', 'correlation'.")
    low: float | None = Field(None, description="Lower end of the 95% interval of the effect.")
    high: float | None = None
    p: float | None = None
    q: float | None = Field(None, description="Rate of false discoveries over the kind's tests, adjusted p.")
    n: int = Field(description="Maps or images behind it.")
    reference_n: int | None = Field(None, description="Maps or images that it is compared with.")
    images: tuple[ImageRef, ...] = ()
    causal: CausalCheck | None = None
    details: dict[str, Any] = Field(default_factory=dict, description="More numbers of its kind.")


class AuditManifest(BaseModel):
    """``audit.json``: what was audited, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit_version: Literal[1] = AUDIT_VERSION
    created: str
    lake: str
    lake_run_id: str
    lake_finished: bool
    commits_digest: str = Field(description="SHA-256 over unit and attempt of all commits that were read.")
    settings: Settings
    method: str
    layer: str
    units: int
    images: int
    maps: int
    counted: int = Field(description="Maps that the settings choose.")
    classes: int
    findings: int
    regions: str | None = Field(None, description="Where the objects' places came from.")
    localisation: int = Field(0, description="Maps that were compared with objects as detectors are; 0: none known.")
    faithfulness: int = Field(0, description="Images on which methods were measured with the model; 0: not asked for.")
    versions: dict[str, str]


_NAME = pa.dictionary(pa.int32(), pa.string())

#: One row per series, class, group, outcome and measure.
GROUPS = pa.schema(
    [
        pa.field("method", _NAME, False),
        pa.field("layer", _NAME, False),
        pa.field("target_class", pa.int32()),
        pa.field("target_name", _NAME),
        pa.field("attribute", _NAME),
        pa.field("value", pa.string()),
        pa.field("outcome", _NAME, False),
        pa.field("measure", _NAME, False),
        pa.field("n", pa.int64(), False),
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("q05", pa.float64()),
        pa.field("median", pa.float64()),
        pa.field("q95", pa.float64()),
        pa.field("all_zero", pa.int64()),
        pa.field("constant", pa.int64()),
        pa.field("not_finite", pa.int64()),
    ]
)

_IMAGE = pa.struct(
    [
        pa.field("image_id", pa.string()),
        pa.field("unit_id", pa.string()),
        pa.field("target_class", pa.int32()),
        pa.field("store_path", pa.string()),
        pa.field("store_row", pa.int32()),
        pa.field("note", pa.string()),
    ]
)

#: One row per finding, the worst first.
FINDINGS = pa.schema(
    [
        pa.field("position", pa.int32(), False),
        pa.field("finding_id", pa.string(), False),
        pa.field("kind", pa.string(), False),
        pa.field("title", pa.string(), False),
        pa.field("sentence", pa.string(), False),
        pa.field("remedy", pa.string(), False),
        pa.field("severity", pa.float64(), False),
        pa.field("target_class", pa.int32()),
        pa.field("target_name", pa.string()),
        pa.field("attribute", pa.string()),
        pa.field("value", pa.string()),
        pa.field("measure", pa.string()),
        pa.field("effect", pa.float64()),
        pa.field("effect_name", pa.string()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("p", pa.float64()),
        pa.field("q", pa.float64()),
        pa.field("n", pa.int64(), False),
        pa.field("reference_n", pa.int64()),
        pa.field("images", pa.list_(_IMAGE), False),
        pa.field("causal", pa.string()),
        pa.field("details", pa.string(), False),
    ]
)

#: One row per method, layer and measure of faithfulness, and of maps that know nothing (``baseline``), see
#: :mod:`pipeline.audit.faithful`. ``best`` is the method that is compared with, of the measure; ``to_best`` and
#: ``to_random`` are means of paired differences, own minus other, over images that have both.
FAITHFULNESS = pa.schema(
    [
        pa.field("method", pa.string(), False),
        pa.field("layer", pa.string()),
        pa.field("baseline", pa.bool_(), False),
        pa.field("measure", pa.string(), False),
        pa.field("better", pa.string()),
        pa.field("n", pa.int64(), False),
        pa.field("mean", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("best", pa.bool_(), False),
        pa.field("to_best", pa.float64()),
        pa.field("to_best_low", pa.float64()),
        pa.field("to_best_high", pa.float64()),
        pa.field("to_random", pa.float64()),
        pa.field("to_random_low", pa.float64()),
        pa.field("to_random_high", pa.float64()),
    ]
)

#: One row per method and layer, and one of a centred Gaussian in place of each map (``centre_gaussian``), see
#: :mod:`pipeline.audit.localisation_table`. ``maps`` are those whose objects are known, of a sample of images;
#: ``pointing`` is the mean over ``classes``, all else over maps. Shares are in [0, 1].
LOCALISATION = pa.schema(
    [
        pa.field("method", pa.string(), False),
        pa.field("layer", pa.string(), False),
        pa.field("maps", pa.int64(), False),
        pa.field("classes", pa.int64(), False),
        pa.field("pointing", pa.float64()),
        pa.field("energy", pa.float64()),
        pa.field("area", pa.float64()),
        pa.field("enrichment", pa.float64()),
        pa.field("rank_accuracy", pa.float64()),
        pa.field("skill", pa.float64()),
        pa.field("max_box_acc", pa.float64()),
        pa.field("max_box_acc_v2", pa.float64()),
        pa.field("max_box_acc_v2_30", pa.float64()),
        pa.field("max_box_acc_v2_50", pa.float64()),
        pa.field("max_box_acc_v2_70", pa.float64()),
        pa.field("px_ap", pa.float64()),
    ]
)
