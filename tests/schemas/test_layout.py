"""Paths in a lake."""

from __future__ import annotations

from schemas import layout


def test_unit_ids_are_sortable_and_safe() -> None:
    assert layout.unit_id(3, "train-000003") == "000003-train-000003"
    assert layout.unit_id(7, "a b/ü?.tar") == "000007-a-b-.tar"
    assert layout.unit_id(1, "???") == "000001-x"
    assert len(layout.unit_id(0, "x" * 400)) <= 6 + 1 + 48


def test_paths() -> None:
    assert layout.heatmaps("grad_cam", "layer2+layer3", "000000-a", "f00") == (
        "heatmaps/grad_cam/layer2+layer3/000000-a-f00.zarr"
    )
    assert layout.heatmaps("m", "../x", "u", "t") == "heatmaps/m/x/u-t.zarr"
    assert layout.commit("000000-a") == "commits/000000-a.json"
