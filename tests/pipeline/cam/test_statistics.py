"""Statistics of maps, against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.cam.statistics import statistics
from schemas.tables import MAPS, STATISTICS


def of(*rows: list[float]) -> dict[str, float]:
    columns = statistics(torch.tensor([list(rows)], dtype=torch.float32))
    return {name: values[0].item() for name, values in columns.items()}


def test_columns_and_types_are_those_of_the_table() -> None:
    columns = statistics(torch.rand(3, 2, 5))
    assert list(columns) == STATISTICS
    for name, values in columns.items():
        assert values.shape == (3,)
        assert values.dtype == np.dtype(MAPS.field(name).type.to_pandas_dtype())
    assert all(len(values) == 0 for values in statistics(torch.empty(0, 2, 5)).values())


def test_a_map_by_hand() -> None:
    found = of([0.0, 1.0], [-8.0, 3.0])
    assert found["vmax"] == 8
    assert found["mass"] == 4
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found["entropy"] == pytest.approx(entropy)
    assert found["effective_area"] == pytest.approx(math.exp(entropy) / 4)
    # Sorted 0, 0, 1, 3: (-3 * 0 - 1 * 0 + 1 * 1 + 3 * 3) / (4 * 4).
    assert found["gini"] == pytest.approx(10 / 16)
    assert (found["peak_y"], found["peak_x"]) == (0.75, 0.75)
    assert (found["centre_y"], found["centre_x"]) == pytest.approx((0.25 * 0.25 + 0.75 * 0.75, 0.75))
    assert found["spread"] == pytest.approx(math.sqrt(0.25 * 0.375**2 + 0.75 * 0.125**2))
    # Each cell is 1/2 x 1/2: 0.4^2 of its 0.5^2 lies inside the border, 0.2^2 in the corner.
    assert found["border_mass"] == pytest.approx(1 - 0.16 / 0.25)
    assert found["corner_mass"] == pytest.approx(0.04 / 0.25)
    assert (found["all_zero"], found["constant"], found["not_finite"]) == (False, False, False)


def test_border_and_corner_count_cells_by_their_area() -> None:
    # 20 x 4 cells: the border is 2 rows, and 0.4 of a column; a corner 4 rows and 0.8 of a column.
    maps = torch.zeros(4, 20, 4)
    maps[0, 1, 1] = 1  # top border, beside the corner square but for nothing: column 1 is outside
    maps[1, 10, 0] = 1  # left border: 0.4 of the cell
    maps[2, 3, 3] = 1  # in the corner: 0.8 of the cell; border: 0.4
    maps[3, 10, 1] = 1
    columns = statistics(maps)
    assert columns["border_mass"].tolist() == pytest.approx([1, 0.4, 0.4, 0])
    assert columns["corner_mass"].tolist() == pytest.approx([0, 0, 0.8, 0])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (3, 8), (56, 5)])
def test_a_uniform_map(height: int, width: int) -> None:
    columns = statistics(torch.full((1, height, width), 0.3))
    assert columns["border_mass"][0] == pytest.approx(0.36, abs=1e-6)
    assert columns["corner_mass"][0] == pytest.approx(0.16, abs=1e-6)
    assert columns["effective_area"][0] == pytest.approx(1)
    assert columns["gini"][0] == pytest.approx(0, abs=1e-6)
    assert columns["centre_y"][0] == pytest.approx(0.5)
    assert columns["constant"][0]
    assert not columns["all_zero"][0]


def test_one_cell() -> None:
    found = of([2.5])
    assert (found["vmax"], found["mass"], found["entropy"], found["spread"]) == (2.5, 2.5, 0, 0)
    assert (found["peak_y"], found["peak_x"]) == (0.5, 0.5)
    assert found["effective_area"] == 1
    assert found["constant"]


NUMBERS = [name for name in STATISTICS if name not in ("vmax", "mass", "all_zero", "constant", "not_finite")]


def test_where_nothing_is_positive() -> None:
    zero, negative = of([0.0, -0.0]), of([-1.0, -2.0])
    assert (zero["vmax"], zero["mass"], zero["all_zero"], zero["constant"]) == (0, 0, True, True)
    assert (negative["vmax"], negative["mass"], negative["all_zero"], negative["constant"]) == (2, 0, False, False)
    for name in NUMBERS:
        assert math.isnan(zero[name]), name
        assert math.isnan(negative[name]), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite(bad: float) -> None:
    found = of([1.0, bad])
    for name in [*NUMBERS, "vmax", "mass"]:
        assert math.isnan(found[name]), name
    assert (found["not_finite"], found["all_zero"]) == (True, False)


def test_constant_maps_have_no_peak_and_equals_give_the_first() -> None:
    constant = of([2.0, 2.0])
    assert math.isnan(constant["peak_y"])
    assert math.isnan(constant["peak_x"])
    assert (constant["constant"], constant["mass"]) == (True, 4)
    assert of([1.0, 5.0, 5.0])["peak_x"] == 0.5


def test_sums_are_taken_in_double_precision() -> None:
    # In float32 a running sum of 2^24 and ones would stand still.
    maps = torch.ones(1, 64, 64)
    maps[0, 0, 0] = 2.0**24
    assert statistics(maps)["mass"][0] == np.float32(2.0**24 + 4095)
