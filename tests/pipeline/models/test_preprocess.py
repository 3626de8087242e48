"""Preprocessing: the pixels of torchvision, timm and Pillow, and a view that is right to less than a pixel."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms._presets import ImageClassification

import pipeline.models.preprocess as module
from pipeline.models.factory import build, parse_name
from pipeline.models.preprocess import Preprocessor, Settings
from pipeline.models.presets import resolve_preprocessor
from pipeline.sources.decode import DecodeError
from schemas.errors import InputError
from schemas.job import Model, Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: One grey level after normalisation.
LEVEL = 1 / 255 / min(STD) + 1e-6


def noise(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def pillow(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def make(resize: int | tuple[int, int], crop: int | tuple[int, int], **fields: Any) -> Preprocessor:
    exact = isinstance(resize, tuple)
    return Preprocessor(
        Settings(
            resize if isinstance(resize, tuple) else (resize, resize),
            crop if isinstance(crop, tuple) else (crop, crop),
            MEAN,
            STD,
            **{"resize_mode": "exact" if exact else "shorter", **fields},
        )
    )


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(2, 40),
    st.integers(2, 50),
    st.sampled_from(["bilinear", "bicubic"]),
)
@example(33, 33, 33, 33, "bilinear")
@example(17, 90, 20, 31, "bicubic")  # padded above and below, cropped left and right
@settings(max_examples=150, deadline=None)
def test_equals_torchvisions_preset(height: int, width: int, resize: int, crop: int, interpolation: str) -> None:
    pixels = noise(height, width)
    image, _ = make(resize, crop, interpolation=interpolation)(pixels)
    preset = ImageClassification(crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation))
    expected = preset(pillow(pixels))
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image.shape == expected.shape == (3, crop, crop)
    if interpolation == "bilinear":
        assert (image - expected).abs().max() <= LEVEL
        assert (image - preset(pixels)).abs().max() <= LEVEL
    else:  # overshoots in noise, and single cells differ by how that is clipped between the passes
        assert (image - expected).abs().mean() <= LEVEL


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_crop_is_torchvisions_bit_for_bit(height: int, width: int, crop_height: int, crop_width: int) -> None:
    pixels = noise(height, width)
    image, _ = make((height, width), (crop_height, crop_width))(pixels)
    expected = functional.center_crop(pixels, [crop_height, crop_width])
    expected = functional.normalize(functional.convert_image_dtype(expected, torch.float), MEAN, STD)
    assert torch.equal(image, expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(101, 77), (61, 200), (40, 40)])
def test_resize_is_pillows_to_one_level(size: tuple[int, int], interpolation: str) -> None:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([(x * y) % 251, x % 256, (y * 5) % 256]).to(torch.uint8)
    preprocessor = make(64, 64, interpolation=interpolation)
    image, _ = preprocessor(pixels)
    new_height, new_width = preprocessor.resized_size(*size)
    resampling = Image.Resampling[interpolation.upper()]
    resized = torch.from_numpy(np.array(pillow(pixels).resize((new_width, new_height), resampling))).permute(2, 0, 1)
    levels = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    difference = (levels * 255 - functional.center_crop(resized, [64, 64])).abs()
    if interpolation == "nearest":  # of two cells equally near either may be taken
        assert (difference > 0.01).float().mean() < 0.02
    else:
        assert difference.max() <= 1.01


def test_memory_layout_does_not_change_the_result() -> None:
    pixels = noise(75, 101)
    interleaved = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(make(40, 32)(pixels)[0], make(40, 32)(interleaved)[0])


def test_input_is_left_as_it_is() -> None:
    pixels = noise(32, 32)
    before = pixels.clone()
    make(32, 32)(pixels)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    ("size", "resize", "crop", "mode"),
    [
        ((300, 401), 128, 96, "shorter"),
        ((401, 300), 128, 96, "shorter"),
        ((97, 203), (64, 64), (64, 64), "exact"),
        ((97, 203), (80, 64), (48, 60), "exact"),
        ((120, 400), 60, 100, "shorter"),  # padded above and below
        ((120, 400), 60, (100, 300), "shorter"),  # padded on all sides
        ((120, 400), (64, 96), (64, 96), "cover"),
        ((120, 400), (64, 64), (64, 64), "contain"),
    ],
)
def test_view_of_a_ramp(size: tuple[int, int], resize: Any, crop: Any, mode: Any) -> None:
    """Each pixel holds its own coordinate, so the tensor says which original pixel each cell shows."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x / width * 255, y / height * 255, torch.full_like(x, 255)]).round().to(torch.uint8)
    preprocessor = make(resize, crop, resize_mode=mode)
    image, view = preprocessor(pixels)
    levels = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    h, w = image.shape[1:]
    shown = levels[2] > 0.99  # not padding
    cell_x = view.x0 + (torch.arange(w) + 0.5) * (view.x1 - view.x0) / w
    cell_y = view.y0 + (torch.arange(h) + 0.5) * (view.y1 - view.y0) / h
    scale = (view.y1 - view.y0) / h, (view.x1 - view.x0) / w
    # Cells at the very edge of the original are averaged over less than their support.
    inside_x = (cell_x > 2 * scale[1]) & (cell_x < width - 2 * scale[1])
    inside_y = (cell_y > 2 * scale[0]) & (cell_y < height - 2 * scale[0])
    inside = inside_y[:, None] & inside_x[None, :]
    assert inside.any()
    assert shown[inside].all()
    outside = ((cell_y < 0) | (cell_y > height))[:, None] | ((cell_x < 0) | (cell_x > width))[None, :]
    assert not shown[outside].any()
    # A level of the ramp is width/255 pixels; the rounding of ramp and resize is one level.
    error_x = (levels[0] * width - cell_x[None, :])[inside].abs()
    error_y = (levels[1] * height - cell_y[:, None])[inside].abs()
    assert error_x.max() < max(1.0, 1.05 * width / 255)
    assert error_y.max() < max(1.0, 1.05 * height / 255)
    # The mean has no rounding left: systematic shifts show here.
    assert abs((levels[0] * width - cell_x[None, :])[inside].mean()) < 0.2
    assert abs((levels[1] * height - cell_y[:, None])[inside].mean()) < 0.2


def test_view_of_the_whole_image_is_the_image() -> None:
    _, view = make((64, 64), (64, 64))(noise(97, 203))
    assert (view.x0, view.y0, view.x1, view.y1) == pytest.approx((0, 0, 203, 97))
    _, view = make(64, 128)(noise(64, 64))
    assert (view.x0, view.y0, view.x1, view.y1) == pytest.approx((-32, -32, 96, 96))


def test_thin_images_are_refused_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match="3 x 1 pixels would have 30000000 x 10000000 after the resize"):
        make(10_000_000, 224)(noise(1, 3))
    monkeypatch.setattr(module, "MAX_PIXELS", 64 * 64 * 10)
    make(64, 64)(noise(1, 10))
    with pytest.raises(DecodeError):
        make(64, 64)(noise(1, 11))


@pytest.mark.parametrize("pixels", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_wrong_tensors(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"give uint8 .3, H, W."):
        make(8, 8)(pixels)


def resolve(name: str, weights: str | None, model: nn.Module | None = None, **fields: Any) -> Preprocessor:
    metadata = fields.pop("metadata", None)
    config = Model(name=name, weights=weights, **fields)
    return resolve_preprocessor(config, parse_name(name), model or nn.Identity(), metadata)


def test_torchvision_presets() -> None:
    first = resolve("torchvision:resnet50", "s3://b/w.pt")
    assert first.describe()["resize"] == 256
    assert first.describe()["sources"]["crop"] == "torchvision's preset of ResNet50_Weights.IMAGENET1K_V1"
    named = resolve("torchvision:resnet50", "IMAGENET1K_V2")
    assert named.describe()["resize"] == 232
    assert named.describe()["sources"]["resize"] == "torchvision's preset of ResNet50_Weights.IMAGENET1K_V2"
    best = resolve("torchvision:efficientnet_b0", "DEFAULT")
    assert best.describe()["interpolation"] == "bicubic"
    weights = torchvision.models.EfficientNet_B0_Weights.DEFAULT
    pixels = noise(300, 333)
    assert (best(pixels)[0] - weights.transforms()(pillow(pixels))).abs().mean() <= 0.1 * LEVEL
    assert json.loads(json.dumps(named.describe())) == named.describe()


def test_smaller_transformer_of_torchvision() -> None:
    smaller = resolve("torchvision:vit_b_16", "w.pt", options={"image_size": 112})
    assert smaller.input_size == (112, 112)
    assert smaller.describe()["resize"] == 128


@pytest.mark.parametrize(
    ("name", "options", "change"),
    [
        ("resnet18", {}, {}),
        ("vit_tiny_patch16_224", {"img_size": 96}, {}),
        ("vit_tiny_patch16_224", {"img_size": (64, 96)}, {}),
        ("resnet18", {}, {"crop_mode": "squash", "crop_pct": 0.9}),
        ("resnet18", {}, {"crop_mode": "border", "crop_pct": 0.9}),
    ],
)
@pytest.mark.parametrize("size", [(101, 77), (70, 240)])
def test_timm_transforms(name: str, options: dict, change: dict, size: tuple[int, int]) -> None:
    model = build(parse_name(f"timm:{name}"), {**options, "num_classes": 2})
    model.pretrained_cfg = {**model.pretrained_cfg, **change, "mean": (0.2, 0.4, 0.6)}
    preprocessor = resolve(f"timm:{name}", "random", model, options=options)
    size_option = options.get("img_size", 224)
    pair = (size_option, size_option) if isinstance(size_option, int) else size_option
    data = timm.data.resolve_data_config({"input_size": (3, *pair)}, model=model)
    transform = timm.data.create_transform(**data, is_training=False)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    pixels = torch.stack([x % 256, y, (x + y) % 256]).clamp(max=255).to(torch.uint8)
    image, _ = preprocessor(pixels)
    expected = transform(pillow(pixels))
    assert image.shape == expected.shape
    assert (image - expected).abs().max() <= 1 / 255 / min(model.pretrained_cfg["std"]) + 1e-5


def test_timm_modes_that_are_not_supported() -> None:
    model = build(parse_name("timm:resnet18"), {"num_classes": 2})
    original = dict(model.pretrained_cfg)
    model.pretrained_cfg = {**original, "crop_mode": "spiral"}
    with pytest.raises(InputError, match="crop mode 'spiral'"):
        resolve("timm:resnet18", "random", model)
    model.pretrained_cfg = {**original, "interpolation": "lanczos"}
    with pytest.raises(InputError, match=r"interpolation 'lanczos'.*model.preprocess.interpolation"):
        resolve("timm:resnet18", "random", model)
    chosen = resolve("timm:resnet18", "random", model, preprocess=Preprocess(interpolation="bicubic"))
    assert chosen.describe()["interpolation"] == "bicubic"


def test_order_of_sources() -> None:
    job = Preprocess(mean=[0.1, 0.2, 0.3], exif="apply")
    metadata = {"preprocess": {"mean": [0.9, 0.9, 0.9], "std": [0.5, 0.5, 0.5], "crop": 200}}
    described = resolve("torchvision:resnet18", "w.st", preprocess=job, metadata=metadata).describe()
    assert described["mean"] == [0.1, 0.2, 0.3]
    assert described["std"] == [0.5, 0.5, 0.5]
    assert described["crop"] == [200, 200]
    assert described["resize"] == 256
    assert described["exif"] == "apply"
    sources = described["sources"]
    assert sources["mean"] == sources["exif"] == "the job file"
    assert sources["std"] == sources["crop"] == "the metadata of 'w.st'"
    assert sources["resize"].startswith("torchvision's preset")


def test_exact_resize_is_its_own_crop() -> None:
    squashed = resolve("torchvision:resnet18", "w", preprocess=Preprocess(resize=(96, 128)))
    assert squashed.input_size == (96, 128)
    assert squashed.describe()["resize"] == [96, 128]
    cropped = resolve("torchvision:resnet18", "w", preprocess=Preprocess(resize=(96, 128), crop=64))
    assert cropped.input_size == (64, 64)


def test_factory_attribute() -> None:
    model = nn.Identity()
    with pytest.raises(InputError, match=r"set model\.preprocess\.resize, .*crop, .*mean, model\.preprocess\.std in"):
        resolve("m:f", None, model)
    model.preprocess = {"resize": 20, "crop": 16, "mean": [0.5] * 3, "std": [0.5] * 3}  # type: ignore[assignment]
    described = resolve("m:f", None, model).describe()
    assert (described["resize"], described["crop"], described["interpolation"]) == (20, [16, 16], "bilinear")
    assert described["sources"]["resize"] == "the 'preprocess' attribute of m:f"
    model.preprocess = {"resise": 20}  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"the 'preprocess' attribute of m:f cannot be used .*'resise'"):
        resolve("m:f", None, model)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"mean": [0.5]}, r"mean has 1 numbers .the job file.; give 3"),
        ({"std": [0.5, 0.5, 0.0]}, r"std holds a number that is not above 0"),
        ({"crop": 1}, r"crop is 1 .* at least 2 pixels"),
        ({"resize": 64}, r"resize 64 .the job file. is below crop \[224, 224\] .*set both"),
    ],
)
def test_wrong_values(preprocess: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("torchvision:resnet18", "w", preprocess=Preprocess(**preprocess))
