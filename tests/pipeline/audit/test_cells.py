"""Sums by cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.audit import draws
from pipeline.audit.cells import EVERYTHING, Block, Cell, Cells, Key
from pipeline.audit.fixed import SCALAR_BITS
from pipeline.audit.keys import keys_of, poisson_weights
from pipeline.audit.reading import CellReader
from schemas.audit import BINS, GRID, Measure
from schemas.errors import InputError

MEASURES = (Measure("share", 0, 1, False, ""), Measure("skill", -1, 1, True, ""))
RESAMPLES = 60


def make_block(rows: int = 300, seed: int = 0) -> Block:
    rng = np.random.default_rng(seed)
    values = np.stack([rng.uniform(0, 1, rows), rng.uniform(-1, 1, rows)], 1)
    values[rng.random(rows) < 0.2, 1] = np.nan
    site = np.array(["east", "west", None], np.object_)[rng.integers(0, 3, rows)]
    maps = rng.uniform(0, 2, (rows, GRID, GRID))
    maps[:3] = np.nan
    flags = np.zeros((rows, 3), np.bool_)
    flags[:3, 0] = True
    weights = poisson_weights(keys_of([f"{seed}-{i}" for i in range(rows)], 0), RESAMPLES)
    return Block(0, rng.integers(0, 3, rows), rng.integers(0, 3, rows), {"site": site}, values, flags, maps, weights)


def taken(block: Block, rows: np.ndarray) -> Block:  # type: ignore[type-arg]
    assert block.maps is not None
    return Block(
        block.series,
        block.target_class[rows],
        block.outcome[rows],
        {name: values[rows] for name, values in block.groups.items()},
        block.values[rows],
        block.flags[rows],
        block.maps[rows],
        None if block.weights is None else block.weights[rows],
        None if block.keys is None else block.keys[rows],
    )


def summed(*blocks: Block) -> Cells:
    found = Cells(MEASURES, RESAMPLES)
    for block in blocks:
        found.add(block)
    return found


def assert_same(left: Cells, right: Cells) -> None:
    """The same numbers, in the same form."""
    one, two = left.arrays("x"), right.arrays("x")
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype and np.array_equal(values, two[name]), name
    assert_same_sums(left, right)


def assert_same_sums(left: CellReader, right: CellReader) -> None:
    """The same numbers, whatever the form: of each cell, and over all classes."""
    assert list(left.cells) == list(right.cells)
    pairs = [(cell, right.cells[key]) for key, cell in left.cells.items()]
    for attribute in (EVERYTHING, "site"):
        for value in left.values(0, attribute):
            for outcome in range(3):
                of_all = left.collect(0, None, attribute, value, [outcome])
                other = right.collect(0, None, attribute, value, [outcome])
                assert of_all is not None and other is not None
                pairs.append((of_all, other))
    for one, two in pairs:
        assert set(one.sums) == set(two.sums)
        assert all(np.array_equal(values, two.sums[name]) for name, values in one.sums.items())


def test_sums_are_those_of_the_rows() -> None:
    block = make_block()
    assert block.maps is not None and block.weights is not None
    cells = summed(block)
    rows = (block.target_class == 1) & (block.groups["site"] == "east")
    cell = cells.collect(0, 1, "site", "east")
    assert cell is not None and cell.rows == rows.sum()
    for measure in range(2):
        values = block.values[rows, measure]
        values = values[np.isfinite(values)]
        assert cell.count(measure) == len(values)
        assert abs(cell.mean(measure) - values.mean()) < 1e-6
        assert abs(cell.variance(measure) - values.var(ddof=1)) < 1e-5
        spec = MEASURES[measure]
        assert cell.sums["histogram"][measure].tolist() == np.histogram(values, BINS, (spec.low, spec.high))[0].tolist()
        for share in (0.05, 0.5, 0.95):
            assert (
                abs(cell.quantile(measure, share, spec) - np.quantile(values, share))
                < 2 * (spec.high - spec.low) / BINS
            )
        known = np.isfinite(block.values[rows, measure])
        weights = block.weights[rows][known].astype(float)
        expected = (weights * values[:, None]).sum(0) / weights.sum(0)
        assert np.allclose(cell.resampled_means(measure), expected, atol=1e-6)
    maps = block.maps[rows & np.isfinite(block.maps[:, 0, 0])]
    assert cell.maps == len(maps)
    assert np.allclose(cell.mean_map(), maps.mean(0), atol=1e-7)
    assert np.allclose(cell.variance_map(), maps.var(0, ddof=1), atol=1e-4)


def test_everything_is_in_the_cells_without_attribute() -> None:
    block = make_block()
    cells = summed(block)
    everything = cells.collect(0)
    assert everything is not None
    assert everything.rows == 300 and everything.sums["flags"].tolist() == [3, 0, 0]
    wrong = cells.collect(0, outcomes=[2])
    assert wrong is not None and wrong.rows == (block.outcome == 2).sum()
    assert cells.classes(0) == [0, 1, 2] and cells.values(0, "site") == ["east", "west"]
    assert cells.collect(0, 7) is None and cells.collect(1) is None
    grouped = [cells.collect(0, None, "site", value) for value in cells.values(0, "site")]
    known = sum(value is not None for value in block.groups["site"])
    assert sum(cell.rows for cell in grouped if cell is not None) == known < 300


def test_any_order_and_any_cut_gives_the_same_integers() -> None:
    block = make_block()
    whole = summed(block)
    rng = np.random.default_rng(5)
    for parts in (2, 7, 300):
        pieces = np.array_split(rng.permutation(300), parts)
        assert_same(whole, summed(*(taken(block, rows) for rows in pieces)))
        merged = Cells(MEASURES, RESAMPLES)
        for rows in pieces[::-1]:
            merged.merge(summed(taken(block, rows)))
        assert_same(whole, merged)


def test_products_are_exact_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summed(make_block())
    monkeypatch.setattr(draws, "_TOGETHER", 7)
    assert_same(whole, summed(make_block()))


def with_keys(block: Block, seed: int = 0) -> Block:
    keys = keys_of([f"{seed}-{i}" for i in range(len(block.target_class))], 0)
    return replace(block, weights=None, keys=keys)


@pytest.mark.parametrize("kept", [0, 12, 34, 1000])
def test_small_cells_keep_their_rows_and_draw_the_same(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the 300 rows some cells have fewer than 12, most fewer than 34, all fewer than 1000.
    monkeypatch.setattr("pipeline.audit.cells.KEPT", kept)
    monkeypatch.setattr(draws, "_TOGETHER", 64)
    dense, block = summed(make_block()), with_keys(make_block())
    assert block.keys is not None
    whole = summed(block)
    stored = whole.arrays("x")
    # A row is kept once for all cells in which it waits.
    waiting = int((stored.get("x/0/rows/slots", np.empty(0)) >= 0).sum())
    everything = 300 + sum(site is not None for site in block.groups["site"])
    assert waiting == {0: 0, 1000: everything}.get(kept, waiting)
    assert kept in (0, 1000) or 0 < waiting < everything
    rng = np.random.default_rng(1)
    for parts in (1, 4, 300):
        merged, loaded, added = (Cells(MEASURES, RESAMPLES) for _ in range(3))
        for rows in np.array_split(rng.permutation(300), parts):
            piece = taken(block, rows)
            added.add(piece)
            merged.merge(summed(piece))
            loaded.load("x", summed(piece).arrays("x"))
        for cells in (added, merged, loaded):
            # Which form a cell has depends on its rows alone, so parts are the same to the bit.
            found = cells.arrays("x")
            assert found.keys() == stored.keys()
            assert all(np.array_equal(found[name], stored[name]) for name in stored)
            assert_same_sums(cells, dense)


def test_rows_that_wait_join_sums_that_are_drawn() -> None:
    one, two = with_keys(make_block(seed=1), 1), make_block(seed=2)
    expected = summed(make_block(seed=1), two)
    for parts in ((summed(one), summed(two)), (summed(two), summed(one))):
        merged, loaded = Cells(MEASURES, RESAMPLES), Cells(MEASURES, RESAMPLES)
        for part in parts:
            merged.merge(part)
            loaded.load("x", part.arrays("x"))
        assert_same_sums(loaded, expected)
        assert_same_sums(merged, expected)
    both = summed(one)
    both.add(two)
    assert_same_sums(both, expected)


def test_cells_come_back_from_their_arrays_and_add_up() -> None:
    one, two = summed(make_block(seed=1)), summed(make_block(seed=2))
    loaded = Cells(MEASURES, RESAMPLES)
    loaded.load("x", two.arrays("x"))
    assert_same(loaded, two)
    loaded.load("x", one.arrays("x"))
    one.merge(two)
    assert_same(loaded, one)


def test_collecting_leaves_the_cells_alone() -> None:
    cells = summed(make_block())
    before = summed(make_block())
    for _ in range(2):
        cells.collect(0)
    assert_same(cells, before)


def test_values_beyond_the_range_count_in_the_outer_bins_and_undefined_ones_nowhere() -> None:
    values = np.array([[-3.0, np.inf], [5.0, np.inf], [np.nan, 0.0], [1.0, -1.0]])
    rows = len(values)
    none = np.zeros((rows, 3), np.bool_)
    cells = summed(Block(0, np.zeros(rows, np.int64), np.zeros(rows, np.int64), {}, values, none))
    cell = cells.cells[Key(0, 0, "", "", 0)]
    assert [cell.count(0), cell.count(1)] == [3, 2]
    assert cell.sums["histogram"][0].tolist() == [1, *[0] * (BINS - 2), 2]
    assert cell.sums["total"].tolist() == [3 << SCALAR_BITS, -(1 << SCALAR_BITS)]
    assert "drawn" not in cell.sums and cell.maps == 0 and np.isnan(cell.mean_map()).all()


def test_nothing_has_no_mean() -> None:
    nan = np.full((1, 2), np.nan)
    zero = np.zeros(1, np.int64)
    cell = summed(Block(0, zero, zero, {}, nan, np.zeros((1, 3), np.bool_))).collect(0)
    assert cell is not None
    assert np.isnan([cell.mean(0), cell.variance(0), cell.quantile(0, 0.5, MEASURES[0])]).all()
    assert np.isnan(cell.variance_map()).all()


def test_a_column_of_names_is_no_group() -> None:
    block = make_block()
    block.groups["site"] = np.array([f"patient {i}" for i in range(300)], np.object_)
    with pytest.raises(InputError, match=r"'site' has more than 256 values.*--cluster"):
        summed(block)


def test_sums_that_leave_64_bits_are_refused() -> None:
    one = Cell({"total": np.array([2**61], np.int64)})
    with pytest.raises(OverflowError):
        one.merge(Cell({"total": np.array([2**61], np.int64)}))
