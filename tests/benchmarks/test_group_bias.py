"""The benchmark of groups: who is where in its scenes, and a run of a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import group_bias


def test_fives_of_one_site_lie_in_the_upper_left_and_others_do_not() -> None:
    scenes = group_bias.biased(300, 0)
    assert len(scenes) == 300
    near = {True: 0, False: 0}
    for scene in scenes:
        if 5 in scene.labels:
            x0, y0, x1, y1 = scene.boxes[scene.labels.index(5)]
            inside = max(x0 + x1, y0 + y1) < 96
            assert inside is (scene.site == "east")
            near[inside] += 1
    assert min(near.values()) > 5
    rest = [scene.site for scene in scenes if 5 not in scene.labels]
    assert {site: rest.count(site) for site in set(rest)} == pytest.approx(
        dict.fromkeys(("north", "south", "east"), len(rest) / 3), abs=1
    )


def test_in_the_trap_sites_differ_by_class_alone() -> None:
    scenes = group_bias.trapped(300, 0)
    assert len(scenes) == 300
    even = np.array([scene.labels[0] % 2 == 0 for scene in scenes])
    north = np.array([scene.site == "north" for scene in scenes])
    right = np.array([scene.boxes[0][0] + scene.boxes[0][2] > 96 for scene in scenes])
    assert np.array_equal(even, right)
    assert all(len(scene.labels) == 1 for scene in scenes)
    assert north[even].mean() == pytest.approx(0.8, abs=0.1)
    assert north[~even].mean() == pytest.approx(0.2, abs=0.1)


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--close-ups", "96", "--scenes", "96", "--held-out", "40")
    file = tmp_path / "rows.json"
    assert group_bias.main([str(tmp_path), "--seeds", "1", *sizes, "--json", str(file)]) == 0
    assert "| 'five' at east always in the upper left | 1 | 0 | 0 | 0 | 0 | |" in capsys.readouterr().out
    bias, trap = json.loads(file.read_text())["rows"]
    assert (bias["found"], trap["false_flag"]) == (False, False)
    # Such a network looks anywhere: only that something was measured is known.
    assert abs(trap["pooled_d"]) < 1
