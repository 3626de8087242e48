"""The textures: every kind is drawn, spans its range, and is what it is called."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.demo.textures import KINDS, fields, smooth_weights


def test_fields_span_zero_to_one_and_differ() -> None:
    drawn, kinds = fields(np.random.default_rng(0), 80, 40)
    assert drawn.shape == (80, 40, 40)
    assert drawn.dtype == np.float32
    assert np.allclose(drawn.min(axis=(1, 2)), 0)
    assert np.allclose(drawn.max(axis=(1, 2)), 1)
    assert set(kinds) == set(KINDS)
    assert len({field.tobytes() for field in drawn}) == 80


def test_the_same_seed_draws_the_same() -> None:
    first, kinds = fields(np.random.default_rng(3), 20, 32)
    second, same = fields(np.random.default_rng(3), 20, 32)
    assert np.array_equal(first, second)
    assert kinds == same


@pytest.mark.parametrize(("size", "cells"), [(96, 3), (96, 24), (10, 7)])
def test_smooth_weights_interpolate(size: int, cells: int) -> None:
    weights = smooth_weights(size, cells)
    assert weights.shape == (size, cells + 1)
    assert np.allclose(weights.sum(axis=1), 1)
    assert weights.min() >= 0
    # A constant stays, and a rising lattice never falls.
    assert np.all(np.diff(weights @ np.arange(cells + 1)) >= -1e-6)


def _share_of_strongest_wave(field: np.ndarray) -> float:
    power = np.abs(np.fft.rfft2(field - field.mean())) ** 2
    return float(power.max() / power.sum())


def test_waves_are_periodic_and_the_others_are_not_fine() -> None:
    drawn, kinds = fields(np.random.default_rng(1), 200, 64)
    by_kind = {kind: drawn[[index for index, found in enumerate(kinds) if found == kind]] for kind in KINDS}
    steps = {kind: np.abs(np.diff(part, axis=2)).mean() for kind, part in by_kind.items()}
    assert steps["gradient"] < steps["noise"] < steps["stripes"]
    assert np.mean([_share_of_strongest_wave(field) for field in by_kind["stripes"]]) > 0.15
    assert np.mean([_share_of_strongest_wave(field) for field in by_kind["checks"]]) < np.mean(
        [_share_of_strongest_wave(field) for field in by_kind["stripes"]]
    )
