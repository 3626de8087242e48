"""Regional measures against loops over pixels, written from their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.audit.localisation import NAMES, PRIOR_SIGMA, enlarge, localise
from pipeline.audit.regions.base import PIXELS, Mask
from schemas.audit import MEASURES

Floats = npt.NDArray[np.float64]


def box(y0: int, x0: int, y1: int, x1: int) -> Mask:
    mask = np.zeros((PIXELS, PIXELS), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def naive(stored: Floats, mask: Mask) -> dict[str, float]:
    """The measures of one map, a pixel at a time."""
    height, width = stored.shape

    def at(row: float, column: float) -> float:
        """Bilinear, cell i centred at i + 0.5, edges held."""
        y, x = min(max(row - 0.5, 0), height - 1), min(max(column - 0.5, 0), width - 1)
        top, left = math.floor(y), math.floor(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x - left
        cells = [[max(float(stored[i, j]), 0.0) for j in (left, right)] for i in (top, bottom)]
        above = cells[0][0] * (1 - u) + cells[0][1] * u
        below = cells[1][0] * (1 - u) + cells[1][1] * u
        return above * (1 - v) + below * v

    pixels: list[tuple[float, bool]] = []
    prior = prior_inside = 0.0
    for i in range(PIXELS):
        for j in range(PIXELS):
            value = at((i + 0.5) * height / PIXELS, (j + 0.5) * width / PIXELS)
            pixels.append((value, bool(mask[i, j])))
            distance = ((i + 0.5) / PIXELS - 0.5) ** 2 + ((j + 0.5) / PIXELS - 0.5) ** 2
            weight = math.exp(-distance / (2 * PRIOR_SIGMA**2))
            prior += weight
            prior_inside += weight * mask[i, j]
    total = math.fsum(value for value, _ in pixels)
    energy = math.fsum(value for value, inside in pixels if inside) / total
    wanted = sum(inside for _, inside in pixels)
    area = wanted / PIXELS**2
    strongest = sorted(pixels, key=lambda pixel: -pixel[0])[:wanted]
    best = max((float(stored[i, j]), -i, -j) for i in range(height) for j in range(width))
    y, x = (-best[1] + 0.5) / height * PIXELS, (-best[2] + 0.5) / width * PIXELS
    share = prior_inside / prior
    return {
        "energy": energy,
        "area": area,
        "enrichment": energy / area,
        "pointing": float(mask[math.floor(y), math.floor(x)]),
        "rank_accuracy": sum(inside for _, inside in strongest) / wanted,
        "skill": (energy - share) / (1 - share),
    }


@pytest.mark.parametrize(
    ("shape", "dtype"), [((7, 7), np.float32), ((14, 9), np.float32), ((1, 5), np.float64), ((2, 2), np.float16)]
)
def test_the_measures_are_those_of_a_loop_over_pixels(shape: tuple[int, int], dtype: Any) -> None:
    rng = np.random.default_rng(7)
    maps = rng.normal(0.2, 1, (2, *shape)).astype(dtype)
    masks = [box(30, 50, 170, 131), rng.random((PIXELS, PIXELS)) < 0.1]
    found = localise(maps, masks)
    for row, mask in enumerate(masks):
        expected = naive(maps[row].astype(np.float64), mask)
        for name, value in expected.items():
            # Among equals the loop takes the first ones, the measure their mean; single precision joins a few more.
            tolerance = (
                1e-3 if name == "rank_accuracy" and min(shape) > 2 else 0.05 if name == "rank_accuracy" else 1e-12
            )
            assert found[name][row] == pytest.approx(value, abs=tolerance), name


def test_maps_are_enlarged_as_torch_does_it() -> None:
    maps = np.random.default_rng(0).random((2, 5, 8))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], (PIXELS, PIXELS), mode="bilinear", align_corners=False
    )
    assert enlarge(maps) == pytest.approx(expected[:, 0].numpy(), abs=1e-12)


def test_the_names_are_the_schema_s() -> None:
    assert set(NAMES) == {measure.name for measure in MEASURES if measure.regional}


def test_nothing_is_said_without_regions() -> None:
    assert localise(np.ones((2, 7, 7)), [None, None]) == {}


def test_no_region_in_the_view_is_no_hit_and_no_miss() -> None:
    found = localise(np.ones((3, 7, 7)), [None, np.zeros((PIXELS, PIXELS), np.bool_), box(0, 0, 5, 5)])
    assert set(found) == set(NAMES)
    for values in found.values():
        assert np.isnan(values[:2]).all()
    assert found["area"][2] == 25 / PIXELS**2


def test_a_uniform_map_is_at_chance_and_has_no_peak() -> None:
    found = localise(np.full((1, 7, 7), 3e-7, np.float32), [box(0, 0, 224, 56)])
    assert found["energy"][0] == pytest.approx(0.25, abs=1e-12)
    assert found["enrichment"][0] == pytest.approx(1, abs=1e-12)
    assert found["rank_accuracy"][0] == pytest.approx(0.25, abs=1e-12)
    assert np.isnan(found["pointing"][0])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_maps_without_mass_have_an_area_only(value: float) -> None:
    maps = np.random.default_rng(1).random((2, 7, 7))
    maps[0] = value
    found = localise(maps, [box(0, 0, 50, 50)] * 2)
    assert np.isfinite(found["area"]).all()
    for name in set(NAMES) - {"area"}:
        assert np.isnan(found[name][0]), name
        assert np.isfinite(found[name][1]), name


def test_negative_parts_do_not_count() -> None:
    maps = np.random.default_rng(2).normal(size=(1, 7, 7))
    signed, positive = (localise(each, [box(9, 9, 99, 99)]) for each in (maps, np.maximum(maps, 0)))
    for name in NAMES:
        assert signed[name][0] == positive[name][0]


@pytest.mark.parametrize("wanted", [1, 2, 9, 60, 700])
def test_small_regions_on_the_peak_are_hit(wanted: int) -> None:
    # The peak is inside, since pixels at the border are equal.
    maps = np.random.default_rng(8).random((1, 7, 7)) / 4
    maps[0, 3, 2] = 1
    strength = enlarge(maps)[0].astype(np.float32)
    order = np.argsort(-strength.ravel(), kind="stable")
    mask = np.zeros(PIXELS**2, np.bool_)
    mask[order[:wanted]] = True
    # No pixel without the region is as strong as the weakest within, so all orders are the same.
    assert strength.ravel()[order[wanted]] < strength.ravel()[order[wanted - 1]]
    assert localise(maps, [mask.reshape(PIXELS, PIXELS)])["rank_accuracy"][0] == 1


def test_a_pixel_among_equals_is_a_share_of_a_hit() -> None:
    maps = np.zeros((1, 7, 7))
    maps[0, 0, 0] = 1
    # From the corner to the cell's centre the map is held: 16 x 16 pixels are equal.
    assert localise(maps, [box(3, 5, 4, 6)])["rank_accuracy"][0] == pytest.approx(1 / 256)


def test_few_pixels_with_mass_fill_up_with_chance() -> None:
    # One cell of 32 x 32 pixels and its slopes have mass; the region is elsewhere and larger.
    maps = np.zeros((1, 7, 7))
    maps[0, 0, 0] = 1
    mask = box(112, 0, 224, 224)
    strong = int((enlarge(maps) > 0).sum())
    share = (mask.sum() - strong) / (PIXELS**2 - strong)
    assert localise(maps, [mask])["rank_accuracy"][0] == pytest.approx(share, abs=1e-12)


def test_the_whole_view_leaves_nothing_to_be_skilled_at() -> None:
    found = localise(np.random.default_rng(3).random((1, 7, 7)), [np.ones((PIXELS, PIXELS), np.bool_)])
    assert found["energy"][0] == pytest.approx(1)
    assert found["rank_accuracy"][0] == 1
    assert np.isnan(found["skill"][0])


def test_a_map_s_numbers_do_not_depend_on_its_neighbours_or_scale() -> None:
    rng = np.random.default_rng(4)
    maps = rng.random((70, 7, 7)).astype(np.float32)
    masks = [rng.random((PIXELS, PIXELS)) < 0.3 for _ in maps]
    together = localise(maps, masks)
    for row in (0, 31, 32, 69):
        alone = localise(maps[row : row + 1], [masks[row]])
        scaled = localise(maps[row : row + 1] * 2.0**-60, [masks[row]])
        for name in NAMES:
            assert alone[name][0] == together[name][row] == scaled[name][0], name
