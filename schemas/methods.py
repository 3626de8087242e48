"""Parameters of the CAM methods, as a job file writes them under ``methods:``.

A method without parameters of its own needs nothing here; :class:`MethodSpec` serves it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from schemas.errors import did_you_mean
from schemas.registries import METHODS

Fusion = Literal["none", "mean", "max", "tanh_max"]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and says which near ones it knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(
                f"unknown key '{unknown[0]}'{did_you_mean(str(unknown[0]), cls.model_fields)}; "
                f"allowed are: {', '.join(cls.model_fields)}"
            )
        return value


class MethodSpec(Strict):
    """A CAM method: its name, the layers it explains, and how the maps of several layers become one."""

    name: str = Field(description="Registered name of the method.", json_schema_extra={"enum": list(METHODS)})
    label: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the maps in the lake; needed where a method appears twice. Default: the method's name.",
    )
    layers: list[str] | None = Field(
        None, min_length=1, description="Target layers by module path. Default: the model's target layers."
    )
    fuse: Fusion = Field(
        "none",
        description=(
            "How the maps of several layers become one: 'none' stores each; 'mean' and 'max' combine the maps, each "
            "scaled by its own maximum, on the finest grid; 'tanh_max' scales all but the deepest layer by "
            "tanh(2 M / max M) and takes the maximum (LayerCAM, Jiang et al. 2021)."
        ),
    )

    @property
    def key(self) -> str:
        """Name under which the maps are stored: the label, or else the method's name."""
        return self.label or self.name


class SmoothGradCAMppSpec(MethodSpec):
    """Smooth Grad-CAM++ (Omeiza et al. 2019)."""

    name: Literal["smooth_grad_cam_pp"]
    samples: int = Field(8, ge=1, description="Noised copies of the image.")
    noise_level: float = Field(
        0.15, gt=0, le=2, description="Standard deviation of the noise over the range (max - min) of each input image."
    )
    numerator: Literal["second", "first"] = Field(
        "second",
        description="Numerator of alpha: 'second' is mean(g^2), as derived; 'first' is mean(g), as the paper has it.",
    )


Convention = Literal["authors", "grad_cam", "torchcam", "paper"]


class ScoreCAMSpec(MethodSpec):
    """Score-CAM (Wang et al. 2020) in any of the conventions in use."""

    name: Literal["score_cam"]
    convention: Convention = Field(
        "authors",
        description=(
            "Preset of the four switches below: 'authors' (their code), 'grad_cam' and 'torchcam' (the PyPI packages), "
            "'paper' (second version: softmax over channels of probability minus the baseline's)."
        ),
    )
    score: Literal["logit", "probability"] | None = Field(
        None, description="Score of a masked image. Default: the convention's."
    )
    weight: Literal["raw", "softmax"] | None = Field(
        None, description="Channel weight: the score itself or its softmax over channels. Default: the convention's."
    )
    normalise: Literal["before", "after"] | None = Field(
        None, description="Min-max scaling of a mask before or after it is enlarged. Default: the convention's."
    )
    align_corners: bool | None = Field(
        None, description="Bilinear enlargement of the masks. Default: the convention's."
    )
    budget: float | None = Field(
        None,
        gt=0,
        description=(
            "Masks to score per image before the map is looked at: a count, or below 1 a share of the distinct ones. "
            "The other scores are predicted. Default: all masks are scored, the map is exact."
        ),
    )
    expected_correlation: float = Field(
        0.98,
        ge=0,
        lt=1,
        description=(
            "With a budget: masks are scored beyond it until the map's expected correlation with the exact one is "
            "this; 0 stops at the budget."
        ),
    )


def _tag(value: Any) -> str:
    name = (
        value
        if isinstance(value, str)
        else value.get("name")
        if isinstance(value, dict)
        else getattr(value, "name", None)
    )
    return name if name in ("smooth_grad_cam_pp", "score_cam") else "plain"


class PlainMethodSpec(MethodSpec):
    """A method without parameters of its own."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        name = value.get("name") if isinstance(value, dict) else None
        if isinstance(name, str) and name not in METHODS:
            raise ValueError(
                f"method '{name}' is unknown{did_you_mean(name, METHODS)}; use one of: {', '.join(METHODS)}"
            )
        return value


AnyMethod = Annotated[
    Annotated[PlainMethodSpec, Tag("plain")]
    | Annotated[SmoothGradCAMppSpec, Tag("smooth_grad_cam_pp")]
    | Annotated[ScoreCAMSpec, Tag("score_cam")],
    Discriminator(_tag),
]

_Name = Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})]

#: A method in a job file: a mapping, or its name alone.
MethodEntry = Annotated[
    AnyMethod,
    BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) else value, json_schema_input_type=_Name | AnyMethod
    ),
]
