"""Where preprocessing comes from: the job file, the weights' metadata, and the presets of torchvision and timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from torch import nn

import schemas.job
from pipeline.models.factory import ModelName, torchvision_weights
from pipeline.models.preprocess import Preprocessor, Settings, scaled_for_crop
from schemas.errors import InputError

_FIELDS = ("resize", "crop", "mean", "std", "interpolation")
_TIMM_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class _Layer:
    """Some fields and where they came from; ``extra`` holds what a job file cannot say (timm's modes)."""

    source: str
    fields: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


def resolve_preprocessor(
    config: schemas.job.Model, name: ModelName, model: nn.Module, metadata: Mapping[str, Any] | None = None
) -> Preprocessor:
    """Resolve each field from the first source that has it.

    In order: the job file, the ``preprocess`` of the weights file's metadata, then the named (or the architecture's
    first) torchvision weights, timm's pretrained_cfg, or the ``preprocess`` dict of a factory's module. An exact
    resize (height, width) without a crop from the same source is its own crop.

    Raises:
        InputError: a field is missing everywhere, or a source holds what cannot be used.
    """
    layers = [_Layer("the job file", config.preprocess.model_dump(exclude={"exif"}, exclude_none=True))]
    if metadata and metadata.get("preprocess") is not None:
        layers.append(_checked(metadata["preprocess"], f"the metadata of '{config.weights}'"))
    layers.append(_architecture(config, name, model))

    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    extra: dict[str, Any] = {}
    for layer in layers:
        fields = dict(layer.fields)
        if isinstance(fields.get("resize"), tuple | list):
            fields.setdefault("crop", fields["resize"])
        if "resize" not in values and "resize" in fields:
            extra = dict(layer.extra)
        for key in _FIELDS:
            if key not in values and fields.get(key) is not None:
                values[key], sources[key] = fields[key], layer.source
    if "interpolation" not in values:
        values["interpolation"], sources["interpolation"] = "bilinear", "default"
    missing = [f"model.preprocess.{key}" for key in _FIELDS if key not in values]
    if missing:
        raise InputError(
            f"the preprocessing of model '{config.name}' is not known; set {', '.join(missing)} in the job file (or "
            f"give the factory's module a 'preprocess' dict)"
        )
    sources["exif"] = "the job file" if "exif" in config.preprocess.model_fields_set else "default"
    return Preprocessor(_settings(values, sources, extra, config))


def _settings(
    values: dict[str, Any], sources: dict[str, str], extra: dict[str, Any], config: schemas.job.Model
) -> Settings:
    resize, crop = values["resize"], _pair(values["crop"])
    mode = extra.get("resize_mode", "shorter" if isinstance(resize, int) else "exact")
    for key in ("mean", "std"):
        if len(values[key]) != 3:
            raise InputError(
                f"model.preprocess.{key} has {len(values[key])} numbers ({sources[key]}); give 3, for R, G, B"
            )
    if any(value <= 0 for value in values["std"]):
        raise InputError(f"model.preprocess.std holds a number that is not above 0 ({sources['std']}); give 3 above 0")
    for key, pair in (("resize", _pair(resize)), ("crop", crop)):
        if min(pair) < 2:  # one cell is no grid, and torch cannot resize uint8 to 1 x 1
            raise InputError(
                f"model.preprocess.{key} is {values[key]} ({sources[key]}); give lengths of at least 2 pixels"
            )
    if sources["crop"] != sources["resize"] and any(r < c for r, c in zip(_pair(resize), crop, strict=True)):
        raise InputError(
            f"model.preprocess.resize {resize} ({sources['resize']}) is below crop {list(crop)} ({sources['crop']}), "
            f"so that the image would be padded; set both in the job file"
        )
    return Settings(
        resize=_pair(resize),
        crop=crop,
        mean=tuple(float(v) for v in values["mean"]),  # type: ignore[arg-type]  # three, checked above
        std=tuple(float(v) for v in values["std"]),  # type: ignore[arg-type]
        interpolation=values["interpolation"],
        resize_mode=mode,
        fill=extra.get("fill", (0, 0, 0)),
        exif=config.preprocess.exif,
        sources=sources,
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _checked(value: Any, source: str) -> _Layer:
    try:
        parsed = schemas.job.Preprocess.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(["preprocess", *(str(part) for part in first["loc"])])
        raise InputError(
            f"{path} of {source} cannot be used ({first['msg']}); correct it, or set every field of model.preprocess "
            f"in the job file"
        ) from error
    return _Layer(source, parsed.model_dump(exclude={"exif"}, exclude_none=True))


def _architecture(config: schemas.job.Model, name: ModelName, model: nn.Module) -> _Layer:
    if name.library == "torchvision":
        return _torchvision(config, name)
    if name.library == "timm":
        return _timm(config, model)
    attribute = getattr(model, "preprocess", None)
    if isinstance(attribute, Mapping):
        return _checked(dict(attribute), f"the 'preprocess' attribute of {config.name}")
    return _Layer("nowhere", {})


def _torchvision(config: schemas.job.Model, name: ModelName) -> _Layer:
    members = torchvision_weights(name.name)
    if not members:
        return _Layer("nowhere", {})
    named = config.weights if config.weights in members else None
    # V1 where the weights are not torchvision's own: the plain recipe, which most trainings follow.
    entry = members[named] if named else members.get("IMAGENET1K_V1", next(iter(members.values())))
    preset = entry.transforms()
    resize, crop = int(preset.resize_size[0]), int(preset.crop_size[0])
    source = f"torchvision's preset of {entry}"
    size = config.options.get("image_size")
    if isinstance(size, int) and size != crop:
        resize, crop = size * resize // crop, size
        source += f", scaled to model.options.image_size {size}"
    return _Layer(
        source,
        {
            "resize": resize,
            "crop": crop,
            "mean": list(preset.mean),
            "std": list(preset.std),
            "interpolation": preset.interpolation.value,
        },
    )


def _timm(config: schemas.job.Model, model: nn.Module) -> _Layer:
    import timm.data

    args: dict[str, Any] = {}
    size = config.options.get("img_size")
    if isinstance(size, int | tuple | list):
        args["input_size"] = (3, *_pair(size))
    data = timm.data.resolve_data_config(args, model=model)
    tag = getattr(model, "pretrained_cfg", {}).get("tag")
    source = f"timm's pretrained_cfg of {config.name}" + (f" (tag {tag})" if tag else "")
    crop_mode, interpolation = data["crop_mode"], data["interpolation"]
    if interpolation not in _TIMM_INTERPOLATIONS and config.preprocess.interpolation is None:
        raise InputError(
            f"{source} asks for interpolation '{interpolation}', which camlake does not have; set "
            f"model.preprocess.interpolation to one of: {', '.join(_TIMM_INTERPOLATIONS)}"
        )
    height, width = (int(v) for v in data["input_size"][1:])
    scaled = scaled_for_crop(height, data["crop_pct"]), scaled_for_crop(width, data["crop_pct"])
    fields: dict[str, Any] = {
        "resize": scaled,
        "crop": (height, width),
        "mean": list(data["mean"]),
        "std": list(data["std"]),
        "interpolation": interpolation,
    }
    if crop_mode == "center":
        mode = "shorter" if scaled[0] == scaled[1] else "cover"
        return _Layer(source, fields, {"resize_mode": mode})
    if crop_mode == "squash":
        return _Layer(source, fields, {"resize_mode": "exact"})
    if crop_mode == "border":
        fill = tuple(round(255 * v) for v in fields["mean"])
        return _Layer(source, fields, {"resize_mode": "contain", "fill": fill})
    raise InputError(
        f"{source} asks for crop mode '{crop_mode}', which camlake does not have; set model.preprocess.resize and crop"
    )
