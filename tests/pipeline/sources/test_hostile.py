"""Hostile images: each is decoded and prepared, or refused with its reason and before memory is taken."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import schemas.job
from pipeline.models.factory import parse_name
from pipeline.models.preprocess import Preprocessor, Settings
from pipeline.models.presets import resolve_preprocessor
from pipeline.sources import decode as decode_module
from pipeline.sources.decode import DecodeError, decode
from tests.hostile import Hostile, encode, images, main, oriented, picture, pixels
from tests.hostile_containers import containers

IMAGES = images()
CONTAINERS = containers()
PREPROCESS = Preprocessor(Settings((224, 224), (224, 224), (0.5,) * 3, (0.25,) * 3))  # type: ignore[arg-type]

# Pillow and its plugins warn of what they find in damaged files.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", list(IMAGES))
def test_an_image_is_decoded_or_refused_with_its_reason(name: str) -> None:
    hostile = IMAGES[name]
    if hostile.reason is not None:
        with pytest.raises(DecodeError, match=hostile.reason) as caught:
            PREPROCESS(decode(hostile.data).pixels)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
        return
    found = decode(hostile.data)
    assert found.pixels.shape == (3, hostile.size[1], hostile.size[0])
    assert torch.equal(found.pixels, expected_pixels(hostile))
    prepared, view = PREPROCESS(found.pixels)
    assert prepared.shape == (3, 224, 224) and bool(prepared.isfinite().all())
    assert 0 <= view.x0 < view.x1 <= hostile.size[0] and 0 <= view.y0 < view.y1 <= hostile.size[1]


def expected_pixels(hostile: Hostile) -> torch.Tensor:
    opened = Image.open(io.BytesIO(hostile.data))
    if opened.mode.startswith("I"):  # 16 bits, which Pillow would clip
        grey = np.array(opened).astype(np.uint16) >> 8
        return torch.from_numpy(grey.astype(np.uint8)).expand(3, -1, -1)
    return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


def test_there_are_enough_of_each() -> None:
    assert len(IMAGES) >= 45 and len(CONTAINERS) >= 40
    assert len({hostile.data for hostile in IMAGES.values()}) == len(IMAGES)
    assert sum(hostile.reason is None for hostile in IMAGES.values()) >= 40


@pytest.mark.parametrize(("name", "seed"), [("animated.webp", 21), ("animated.png", 22), ("interlaced.png", 33)])
def test_the_first_frame_is_the_one_that_was_written_first(name: str, seed: int) -> None:
    assert np.array_equal(decode(IMAGES[name].data).pixels.permute(1, 2, 0), pixels(seed))


def test_of_an_animated_gif_the_first_frame_is_taken() -> None:
    alone = encode(picture(20), "GIF")
    assert torch.equal(decode(IMAGES["animated.gif"].data).pixels, decode(alone).pixels)


def test_16_bits_keep_their_high_bytes() -> None:
    words = np.random.default_rng(3).integers(0, 1 << 16, (30, 40, 3)) >> 8
    assert np.array_equal(decode(IMAGES["colour of 16 bits.png"].data).pixels.permute(1, 2, 0), words)
    assert np.array_equal(decode(IMAGES["grey of 16 bits.png"].data).pixels[0], words[:, :, 0])
    assert np.array_equal(decode(IMAGES["grey of 16 bits.pgm"].data).pixels[2], words[:, :, 1])


@pytest.mark.parametrize("exif", [None, "ignore", "apply"])
def test_exif_is_applied_only_where_it_is_asked_for_and_recorded(exif: Literal["ignore", "apply"] | None) -> None:
    given = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    model = schemas.job.Model.model_validate(
        {"name": "a.b:c", "weights": "random", "preprocess": given | ({} if exif is None else {"exif": exif})}
    )
    preprocess = resolve_preprocessor(model, parse_name("jobs.demo.network:digit_net"), torch.nn.Identity())
    said = preprocess.describe()
    assert said["exif"] == (exif or "ignore")  # torchvision's and timm's evaluation ignore it
    assert said["sources"]["exif"] == ("default" if exif is None else "the job file")
    for value in range(1, 9):
        found = decode(oriented(40, value), exif=preprocess.settings.exif)
        opened = Image.open(io.BytesIO(oriented(40, value)))
        upright = ImageOps.exif_transpose(opened) if exif == "apply" else opened
        assert np.array_equal(found.pixels.permute(1, 2, 0), np.array(upright.convert("RGB")))
        assert found.exif_orientation == value
        turned = exif == "apply" and value >= 5
        assert found.pixels.shape[1:] == ((40, 30) if turned else (30, 40))


@pytest.mark.parametrize("name", ["orientation 0.jpg", "orientation 99.jpg", "damaged exif.jpg"])
def test_exif_that_means_nothing_turns_nothing(name: str) -> None:
    found = decode(IMAGES[name].data, exif="apply")
    assert found.exif_orientation is None and torch.equal(found.pixels, decode(IMAGES[name].data).pixels)


def test_bombs_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    bombs = [name for name in IMAGES if "bomb" in name] + ["1x20000.png", "20000x1.png"]
    for number, name in enumerate(bombs):
        (tmp_path / str(number)).write_bytes(IMAGES[name].data)
    (tmp_path / "good").write_bytes(IMAGES["plain.bmp"].data)
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipeline.models.preprocess import Preprocessor, Settings\n"
        "from pipeline.sources.decode import DecodeError, decode\n"
        "run = Preprocessor(Settings((224, 224), (224, 224), (0.5,) * 3, (0.25,) * 3))\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "folder = Path(sys.argv[1])\n"
        "run(decode((folder / 'good').read_bytes()).pixels)\n"
        "before, refused = peak(), 0\n"
        f"for number in range({len(bombs)}):\n"
        "    try: run(decode((folder / str(number)).read_bytes()).pixels)\n"
        "    except DecodeError: refused += 1\n"
        "print(refused, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)],
        check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    refused, kilobytes = map(int, done.stdout.split())
    assert refused == len(bombs) >= 7
    assert kilobytes < 40 << 10  # the smallest of them would take 50 MB at one bit a pixel


def test_memory_that_does_not_suffice_costs_the_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image, mode: str) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(DecodeError, match="memory does not suffice to decode 40 x 30 pixels"):
        decode(IMAGES["plain.bmp"].data)


def test_damage_anywhere_is_a_decode_error_or_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 1 << 20)  # a flipped bit may claim a large image, which is slow
    rng = np.random.default_rng(5)
    good = [item.data for item in IMAGES.values() if item.reason is None]
    refused = 0
    for number in range(600):
        damaged = bytearray(good[number % len(good)])
        for _ in range(int(rng.choice([1, 2, 9]))):
            damaged[int(rng.integers(min(len(damaged), int(rng.choice([64, 400, 1 << 20])))))] = int(rng.integers(256))
        try:
            assert decode(bytes(damaged), exif="apply").pixels.shape[0] == 3
        except DecodeError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 100 < refused < 600


def test_the_module_writes_its_files(tmp_path: Path) -> None:
    main(tmp_path)
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(IMAGES)
    assert (tmp_path / "containers" / "odd members.tar").read_bytes() == CONTAINERS["odd members.tar"].data
