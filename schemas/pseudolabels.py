"""Pseudo-labels: what a job file says about them under ``pseudo_labels:``, and the table that they leave.

The protocol is that of weakly supervised segmentation (Ahn and Kwak, "Learning Pixel-level Semantic Affinity", CVPR
2018; Ahn et al., IRNet, CVPR 2019): maps of several scales and flips are summed at the image's resolution, divided by
their maximum per class, compared with a background score, and refined.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import pyarrow as pa
from pydantic import Discriminator, Field, Tag, model_validator

from schemas.methods import Strict

#: Pixels that no class is claimed for, in index images of 8 and of 16 bits.
IGNORE_8: Final = 255
IGNORE_16: Final = 65535
BACKGROUND_ID: Final = 0
#: Added to a map's maximum before it is divided by it (IRNet's constant).
EPSILON: Final = 1e-5


class ConstantBackground(Strict):
    """Background where no class's normalised score exceeds a constant (IRNet .15, PSA .2)."""

    rule: Literal["constant"] = "constant"
    threshold: float = Field(0.15, ge=0, le=1, description="Score of the background.")


class PowerBackground(Strict):
    """Background score ``(1 - max_c M_c) ** power`` (PSA: 4 and 32; CLIP-ES: 1 to 10)."""

    rule: Literal["power"] = "power"
    power: float = Field(4.0, gt=0, description="The exponent.")


class BandBackground(Strict):
    """Two thresholds: pixels on which the labels at both agree keep them, all others are ignored (IRNet .30, .05)."""

    rule: Literal["band"] = "band"
    foreground: float = Field(0.30, ge=0, le=1, description="A class from here on is certain.")
    background: float = Field(0.05, ge=0, le=1, description="Background below here is certain.")

    @model_validator(mode="after")
    def _order(self) -> BandBackground:
        if self.background > self.foreground:
            raise ValueError(f"background ({self.background:g}) is above foreground ({self.foreground:g}); swap them")
        return self


def _rule(value: object) -> str:
    rule = value.get("rule", "constant") if isinstance(value, dict) else getattr(value, "rule", "constant")
    return rule if rule in ("power", "band") else "constant"


Background = Annotated[
    Annotated[ConstantBackground, Tag("constant")]
    | Annotated[PowerBackground, Tag("power")]
    | Annotated[BandBackground, Tag("band")],
    Discriminator(_rule),
]


class NoRefinement(Strict):
    """The seeds as they are."""

    method: Literal["none"] = "none"


class PamrRefinement(Strict):
    """Pixel-adaptive mask refinement (Araslanov and Roth, "Single-Stage Semantic Segmentation", CVPR 2020)."""

    method: Literal["pamr"] = "pamr"
    iterations: int = Field(10, ge=1, le=100, description="Steps.")
    dilations: tuple[int, ...] = Field(
        (1, 2, 4, 8, 12, 24), min_length=1, description="Distances, in pixels, of the eight neighbours."
    )


class CrfRefinement(Strict):
    """Dense CRF (Krähenbühl and Koltun, NIPS 2011) on the CPU; needs ``camlake[crf]``. Defaults: PSA's."""

    method: Literal["crf"] = "crf"
    iterations: int = Field(10, ge=1, le=100, description="Mean-field steps.")
    gaussian_sxy: float = Field(3.0, gt=0, description="Smoothness kernel: standard deviation in pixels.")
    gaussian_compat: float = Field(3.0, ge=0, description="Its weight.")
    bilateral_sxy: float = Field(80.0, gt=0, description="Appearance kernel: standard deviation in pixels.")
    bilateral_srgb: float = Field(
        13.0, gt=0, description="Appearance kernel: standard deviation of the colours (0..255)."
    )
    bilateral_compat: float = Field(10.0, ge=0, description="Its weight.")


def _refinement(value: object) -> str:
    method = value.get("method", "pamr") if isinstance(value, dict) else getattr(value, "method", "pamr")
    return method if method in ("none", "crf") else "pamr"


Refinement = Annotated[
    Annotated[NoRefinement, Tag("none")]
    | Annotated[PamrRefinement, Tag("pamr")]
    | Annotated[CrfRefinement, Tag("crf")],
    Discriminator(_refinement),
]


class LabelClass(Strict):
    """A class of the labels, made of one or more classes of the model (the largest of their maps counts)."""

    id: int = Field(ge=1, lt=IGNORE_16, description="Value of its pixels; 0 is the background.")
    name: str = Field(min_length=1)
    classes: list[int | str] = Field(min_length=1, description="Indices or names of the model's classes.")


class LabelFiles(Strict):
    """Which files are written beside the index images."""

    palette: Literal["none", "voc"] = Field(
        "none", description="'none': PNG of mode L; 'voc': mode P with VOC's colours."
    )
    rle: Literal["none", "class", "component"] = Field(
        "class", description="COCO run-length codes with scores: one per class, or per connected component of it."
    )
    confidence: bool = Field(False, description="A PNG of the winning score in 1/255 steps.")
    soft: bool = Field(False, description="The scores of all classes as float16, for losses that take them.")


class PseudoLabels(Strict):
    """How labels are made from maps."""

    scales: tuple[float, ...] = Field(
        (1.0, 0.5, 1.5, 2.0), min_length=1, description="Factors of the image's size; their maps are summed."
    )
    flip: bool = Field(True, description="Also explain each scale's mirror image.")
    max_pixels: int = Field(
        1_000_000,
        ge=1024,
        description="Images of more pixels are brought down to so many at scale 1. Labels have the image's own size.",
    )
    background: Background = Field(default_factory=ConstantBackground)
    refine: Refinement = Field(default_factory=PamrRefinement)
    classes: list[LabelClass] | None = Field(
        None, min_length=1, description="The labels' classes. Default: each of the model's, index + 1."
    )
    files: LabelFiles = Field(default_factory=LabelFiles)

    @model_validator(mode="after")
    def _sound(self) -> PseudoLabels:
        if any(scale <= 0 for scale in self.scales) or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales are {list(self.scales)}; give different numbers above 0")
        for what in ("id", "name"):
            found = [getattr(each, what) for each in self.classes or []]
            twice = next((value for value in found if found.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"classes: {what} {twice!r} appears twice; give each class one of its own")
        return self


#: One row per label of an image: a class, or a connected component of it. ``rle_counts`` are COCO's compressed counts.
LABELS = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("unit_id", pa.string(), False),
        pa.field("mask_path", pa.string(), False),
        pa.field("label_id", pa.int32(), False),
        pa.field("label_name", pa.string(), False),
        pa.field("component", pa.int32(), False),
        pa.field("target_kind", pa.string(), False),
        pa.field("probability", pa.float32()),
        pa.field("score", pa.float32(), False),
        pa.field("area", pa.int64(), False),
        pa.field("x0", pa.int32(), False),
        pa.field("y0", pa.int32(), False),
        pa.field("x1", pa.int32(), False),
        pa.field("y1", pa.int32(), False),
        pa.field("rle_counts", pa.string()),
    ]
)
