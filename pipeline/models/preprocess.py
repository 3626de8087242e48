"""Evaluation preprocessing: resize, centre crop, normalise; and which part of the original the model then sees."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.sources.decode import MAX_PIXELS, DecodeError
from schemas.view import View

ResizeMode = Literal["shorter", "exact", "cover", "contain"]


@dataclass(frozen=True)
class Settings:
    """Fully resolved preprocessing.

    ``resize`` (height, width) is read by ``resize_mode``: 'shorter' makes the shorter side that long (torchvision;
    both numbers are equal), 'exact' squashes to it, 'cover' and 'contain' keep the aspect and make it the smallest
    rectangle that covers, or the largest that fits into it (timm's crop modes 'center' for rectangles, and 'border').
    ``fill`` is the value (0..255 per channel) of what a crop larger than the image adds. ``sources`` says for each
    field where it came from.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    resize_mode: ResizeMode = "shorter"
    fill: tuple[int, int, int] = (0, 0, 0)
    exif: Literal["ignore", "apply"] = "ignore"
    sources: dict[str, str] = field(default_factory=dict)


class Preprocessor:
    """Turns decoded images into model inputs.

    Agrees with torchvision's ``ImageClassification`` preset and timm's evaluation transform: bilinear and bicubic
    resizing are antialiased and done on uint8, within one grey level of Pillow's; the centre crop and its padding are
    exactly torchvision's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._mean = torch.tensor(settings.mean, dtype=torch.float32).view(3, 1, 1)
        self._std = torch.tensor(settings.std, dtype=torch.float32).view(3, 1, 1)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the tensor that the model sees."""
        return self.settings.crop

    def describe(self) -> dict[str, Any]:
        """Return the resolved settings as JSON, with the source of each."""
        s = self.settings
        return {
            "resize": s.resize[0] if s.resize_mode == "shorter" else list(s.resize),
            "resize_mode": s.resize_mode,
            "crop": list(s.crop),
            "interpolation": s.interpolation,
            "antialias": s.interpolation != "nearest",
            "mean": list(s.mean),
            "std": list(s.std),
            "fill": list(s.fill),
            "exif": s.exif,
            "sources": dict(s.sources),
        }

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of an image after the resize, before the crop."""
        s = self.settings
        if s.resize_mode == "exact":
            return s.resize
        if s.resize_mode == "shorter":  # torchvision truncates the longer side
            short = s.resize[0]
            return (int(short * height / width), short) if width <= height else (short, int(short * width / height))
        ratios = height / s.resize[0], width / s.resize[1]
        ratio = min(ratios) if s.resize_mode == "cover" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))  # timm rounds

    def __call__(self, pixels: Tensor) -> tuple[Tensor, View]:
        """Return the model input (3, h, w) float32 and the view: the rectangle of the original that it shows.

        Args:
            pixels: (3, H, W) uint8 RGB.

        Raises:
            DecodeError: the image is so narrow that resizing its shorter side makes more pixels than the limit.
            ValueError: not a (3, H, W) uint8 tensor.
        """
        if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; give uint8 (3, H, W), as decode() does")
        height, width = pixels.shape[1:]
        new_height, new_width = self.resized_size(height, width)
        if new_height * new_width > MAX_PIXELS:
            raise DecodeError(
                f"an image of {width} x {height} pixels would have {new_width} x {new_height} after the resize, more "
                f"than the limit of {MAX_PIXELS}; give model.preprocess.resize as [height, width]"
            )
        crop_height, crop_width = self.settings.crop
        resized = _resize(pixels, (new_height, new_width), self.settings.interpolation)
        top, left = _offset(new_height, crop_height), _offset(new_width, crop_width)
        cropped = _crop(resized, top, left, self.settings.crop, self.settings.fill)
        image = cropped.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255)
        image = image.sub_(self._mean.to(image.device)).div_(self._std.to(image.device))
        across, down = width / new_width, height / new_height
        view = View(left * across, top * down, (left + crop_width) * across, (top + crop_height) * down)
        return image, view


def _offset(size: int, crop: int) -> int:
    """Where the crop begins along one side, as torchvision places it; negative where it begins in the padding."""
    return -((crop - size) // 2) if size < crop else round((size - crop) / 2.0)


def _resize(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    if pixels.shape[1:] == size:
        return pixels
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    # torchvision's plain "nearest" is shifted by up to half a cell; the exact one is Pillow's.
    mode = InterpolationMode.NEAREST_EXACT if interpolation == "nearest" else InterpolationMode(interpolation)
    resized: Tensor = functional.resize(pixels, list(size), interpolation=mode, antialias=interpolation != "nearest")
    return resized


def _crop(pixels: Tensor, top: int, left: int, crop: tuple[int, int], fill: tuple[int, int, int]) -> Tensor:
    height, width = pixels.shape[1:]
    if top >= 0 and left >= 0 and top + crop[0] <= height and left + crop[1] <= width:
        return pixels[:, top : top + crop[0], left : left + crop[1]]
    canvas = torch.tensor(fill, dtype=torch.uint8, device=pixels.device).view(3, 1, 1).repeat(1, *crop)
    y0, x0 = max(0, -top), max(0, -left)
    part = pixels[:, max(0, top) : top + crop[0], max(0, left) : left + crop[1]]
    canvas[:, y0 : y0 + part.shape[1], x0 : x0 + part.shape[2]] = part
    return canvas


def scaled_for_crop(crop: int, crop_pct: float) -> int:
    """Return the length before the crop, as timm computes it from its crop share."""
    return math.floor(crop / crop_pct)
