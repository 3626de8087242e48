"""Overlays and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.lake.overlay import colourise, diverging, overlay, sequential
from pipeline.lake.sheet import SheetRow, _enlarged, contact_sheet, lake_sheet
from pipeline.lake.store import LakeStore
from schemas.errors import InputError, LakeError
from schemas.view import View
from tests.pipeline.lake.helpers import HEIGHT, WIDTH, unit_id
from tests.pipeline.lake.test_reader import lake_with_shard, shard_bytes


def lightness(colours: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB uint8 (N, 3)."""
    rgb = colours / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126729, 0.7151522, 0.0721750]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def dichromat(colours: np.ndarray, kind: str) -> np.ndarray:
    """sRGB colours as a dichromat sees them (Machado et al. 2009, severity 1), uint8 (N, 3)."""
    matrices = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    rgb = colours / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(matrices[kind]).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_lightness_rises_evenly() -> None:
    found = lightness(sequential())
    assert sequential().shape == (256, 3)
    np.testing.assert_allclose(found, np.linspace(8, 94, 256), atol=1.0)


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_order_is_seen_without_red_green_vision(kind: str) -> None:
    found = lightness(dichromat(sequential(), kind))[::8]
    assert (np.diff(found) > 0).all()


def test_diverging_is_lightest_at_zero_and_its_sides_differ() -> None:
    found = lightness(diverging())
    assert found.argmax() == 127
    np.testing.assert_allclose(found, found[::-1], atol=1.5)
    assert diverging()[0][2] > diverging()[0][0]
    assert diverging()[-1][0] > diverging()[-1][2]


def test_colourise() -> None:
    colours = colourise(np.array([[0.0, 1.0, 2.0, -1.0, np.nan]]))
    np.testing.assert_array_equal(colours[0, [0, 3]], sequential()[[0, 0]])
    np.testing.assert_array_equal(colours[0, [1, 2]], sequential()[[255, 255]])
    assert colours[0, 4].tolist() == [128, 128, 128]
    signed = colourise(np.array([[-1.0, 0.0, 1.0]]), signed=True)
    np.testing.assert_array_equal(signed[0], diverging()[[0, 127, 254]])


def test_overlay_blends_inside_the_view_only() -> None:
    picture = Image.new("RGB", (8, 4), (100, 100, 100))
    heatmap = np.array([[0.0, 1.0]], np.float32)
    laid = np.asarray(overlay(picture, heatmap, View(2, 0, 6, 4), alpha=0.5, outline=False)).astype(int)
    assert (laid[:, :2] == 100).all()
    assert (laid[:, 6:] == 100).all()
    np.testing.assert_allclose(laid[0, 2], 50 + sequential()[0] / 2, atol=1)
    np.testing.assert_allclose(laid[0, 5], 50 + sequential()[255] / 2, atol=1)
    none = np.asarray(overlay(picture, heatmap, View(2, 0, 6, 4), alpha=0.0, outline=False))
    assert (none == 100).all()
    with pytest.raises(ValueError, match="alpha is 2"):
        overlay(picture, heatmap, View(2, 0, 6, 4), alpha=2)


def test_the_view_is_outlined_unless_it_is_the_whole() -> None:
    picture = Image.new("RGB", (40, 40), (100, 100, 100))
    heatmap = np.zeros((2, 2), np.float32)
    inner = np.asarray(overlay(picture, heatmap, View(10, 5, 30, 35), alpha=0.0))
    assert (inner[5, 10:30] == 255).all()
    assert (inner[6, 11:29] == 0).all()
    assert (inner[5:35, 29] == 255).all()
    assert (inner[:5] == 100).all()
    whole = np.asarray(overlay(picture, heatmap, View(-3, 0, 40, 44), alpha=0.0))
    assert (whole == 100).all()


def test_overlay_converts_grey_pictures() -> None:
    assert overlay(Image.new("L", (5, 5), 9), np.ones((2, 2), np.float32), View(0, 0, 5, 5)).mode == "RGB"


def test_contact_sheet_layout() -> None:
    red, blue = Image.new("RGB", (100, 50), (255, 0, 0)), Image.new("RGB", (50, 100), (0, 0, 255))
    rows = [SheetRow("first", [("a", red), ("b", blue)]), SheetRow("second", [("c", red), None])]
    sheet = contact_sheet(["image", "method"], rows, cell=100)
    pixels = np.asarray(sheet).astype(int)
    reds = (pixels == (255, 0, 0)).all(axis=2)
    blues = (pixels == (0, 0, 255)).all(axis=2)
    assert reds.sum() == 2 * 100 * 50
    assert blues.sum() == 50 * 100
    columns = np.flatnonzero(reds.any(axis=0))
    assert (columns.min(), columns.max()) == (8, 107)
    assert np.flatnonzero(blues.any(axis=0)).min() > 107
    # Captions are dark on white.
    assert (pixels.sum(axis=2) < 200).sum() > 100
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet(["image"], [])
    with pytest.raises(ValueError, match="has 1 cells, not 2"):
        contact_sheet(["image", "x"], [SheetRow("r", [None])])


def test_long_captions_are_cut() -> None:
    row = SheetRow("x" * 500, [("y" * 500, Image.new("RGB", (50, 50)))])
    assert contact_sheet(["z" * 500], [row], cell=100).width == 116


def test_small_pictures_are_enlarged_before_the_map_is_laid_over() -> None:
    picture, view = _enlarged(Image.new("RGB", (40, 30)), View(10, 6, 42, 30), 100)
    assert picture.size == (100, 75)
    assert view == View(25, 15, 105, 75)
    large = Image.new("RGB", (400, 30))
    assert _enlarged(large, view, 100) == (large, view)


def test_sheet_of_a_lake(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(shard_bytes())
    lake = lake_with_shard(LakeStore(str(tmp_path / "lake")), str(shard))
    ids = [f"{unit_id(0)}/0002", f"{unit_id(0)}/0004"]
    sheet = lake_sheet(lake, ids, cell=100)
    assert sheet.width == 8 + 4 * 108
    one = lake_sheet(lake, ids, methods=["xgrad_cam"], cell=100)
    assert one.width == 8 + 2 * 108
    classes = {row["target_class"] for row, _ in lake.heatmaps() if row["image_id"] == ids[0]}
    lake_sheet(lake, ids[:1], target_class=min(classes), cell=60)
    with pytest.raises(InputError, match="has no map of class 77; it has maps of"):
        lake_sheet(lake, ids, target_class=77)
    with pytest.raises(InputError, match="holds no method 'smooth'"):
        lake_sheet(lake, ids, methods=["smooth"])
    with pytest.raises(LakeError, match="has no view"):
        lake_sheet(lake, [f"{unit_id(0)}/0001"])
    assert (lake.image(ids[0])["width"], lake.image(ids[0])["height"]) == (WIDTH, HEIGHT)
