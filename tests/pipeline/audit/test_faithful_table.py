"""The table of faithfulness against loops over the same resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit.faithful_table import (
    CENTRE,
    FAITHFUL_MEASURES,
    RANDOM,
    Row,
    faithfulness_lines,
    faithfulness_table,
    no_better_than_random,
)
from pipeline.audit.keys import keys_of, poisson_weights
from schemas.audit import FAITHFULNESS, Settings

ROWS = [
    Row("good", "a"),
    Row("bad", "a"),
    Row("good", "b"),
    Row(RANDOM, "a", True),
    Row(RANDOM, "b", True),
    Row(CENTRE, None, True),
]
N = 50
SETTINGS = Settings(bootstrap=60)
#: What the rows are about, for measures where much is better; the others get 1 - this.
LEVEL = np.array([0.6, 0.3, 0.5, 0.3, 0.2, 0.9])


def values() -> np.ndarray:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.2, N)
    found = np.empty((len(ROWS), len(FAITHFUL_MEASURES), N))
    for place, measure in enumerate(FAITHFUL_MEASURES):
        level = LEVEL if measure.better != "lower" else 1 - LEVEL
        found[:, place] = level[:, None] + shared + rng.normal(0, 0.02, (len(ROWS), N))
    found[0, 1, :5] = np.nan
    found[4, 2] = np.nan
    return found


def keys() -> np.ndarray:
    return keys_of([f"patient {number // 2}" for number in range(N)], 3)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return faithfulness_table(ROWS, values(), keys(), SETTINGS)


def row_of(table: pa.Table, method: str, layer: str | None, measure: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        r for r in table.to_pylist() if (r["method"], r["layer"], r["measure"]) == (method, layer, measure)
    ]
    assert len(found) == 1
    return found[0]


def naive(numbers: np.ndarray) -> tuple[float, float, float]:
    """Mean and interval, resample by resample, row by row."""
    weights = poisson_weights(keys(), SETTINGS.bootstrap)
    means = []
    for resample in range(SETTINGS.bootstrap):
        total, weight = 0.0, 0
        for value, times in zip(numbers, weights[:, resample], strict=True):
            if not np.isnan(value):
                total, weight = total + value * int(times), weight + int(times)
        means.append(total / weight)
    return float(np.nanmean(numbers)), *np.quantile(means, (0.025, 0.975))


def test_means_and_paired_differences(table: pa.Table) -> None:
    assert table.schema.equals(FAITHFULNESS) and len(table) == len(ROWS) * len(FAITHFUL_MEASURES)
    all_values = values()
    for place, name in ((0, "road"), (1, "road_morf")):
        best, own, random = all_values[0, place], all_values[1, place], all_values[3, place]
        row = row_of(table, "bad", "a", name)
        assert row["n"] == N
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(naive(own))
        assert tuple(row[f"to_best{end}"] for end in ("", "_low", "_high")) == pytest.approx(naive(own - best))
        assert tuple(row[f"to_random{end}"] for end in ("", "_low", "_high")) == pytest.approx(naive(own - random))
        # Pairs are of the same images, so what they share cancels.
        assert row["to_best_high"] - row["to_best_low"] < 0.3 * (row["high"] - row["low"])
    assert row_of(table, "good", "a", "road_morf")["n"] == N - 5


def test_the_best_is_a_method_and_of_the_right_end(table: pa.Table) -> None:
    for measure in FAITHFUL_MEASURES:
        best = [(r["method"], r["layer"]) for r in table.to_pylist() if r["best"] and r["measure"] == measure.name]
        assert best == ([] if measure.better is None else [("good", "a")])
    assert row_of(table, "good", "a", "road")["to_best"] is None
    assert row_of(table, CENTRE, None, "road")["to_best"] > 0


def test_random_maps_are_those_of_the_layer(table: pa.Table) -> None:
    assert row_of(table, "good", "b", "road")["to_random"] == pytest.approx(0.3, abs=0.02)
    assert row_of(table, "good", "a", "road")["to_random"] == pytest.approx(0.3, abs=0.02)
    assert row_of(table, "good", "b", "road_lerf")["to_random"] is None
    assert row_of(table, RANDOM, "a", "road")["to_random"] is None
    for measure in ("road", "road_morf", "deletion"):
        assert no_better_than_random(table, measure) == [Row("bad", "a")]


def test_a_method_that_is_worse_than_random_is_no_better() -> None:
    turned = values()
    turned[1] = np.where([[m.better == "lower"] for m in FAITHFUL_MEASURES], turned[1] + 0.2, turned[1] - 0.2)
    table = faithfulness_table(ROWS, turned, keys(), SETTINGS)
    for measure in ("road", "road_morf"):
        assert no_better_than_random(table, measure) == [Row("bad", "a")]


def test_few_images_have_no_interval_and_fewer_no_mean() -> None:
    for n, has_mean, has_interval in ((29, True, False), (9, False, False), (30, True, True), (0, False, False)):
        table = faithfulness_table(ROWS, values()[:, :, :n], keys()[:n], SETTINGS)
        row = row_of(table, "good", "a", "road")
        assert row["n"] == n
        assert (row["mean"] is not None, row["low"] is not None) == (has_mean, has_interval)
    assert faithfulness_lines(table) == ["too few images to compare methods (0)"]


def test_what_is_told(table: pa.Table) -> None:
    first, second = faithfulness_lines(table)
    assert first.startswith("best by ROAD over 50 images: good at a, 0.626 (0.")
    assert second == "no better than a random map: bad at a"
