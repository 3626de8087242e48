"""The benchmark of planted stickers: what is planted, what counts as found, and a run of tiny networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import planted
from benchmarks.sticker_networks import Sizes, explained, held_out, network, plain_scenes, stickered
from benchmarks.sticker_verdict import cells_of, scene_of, verdict, verdict_where_shown
from jobs.demo.drawing import CONTROL_COLOURS
from jobs.demo.scenes import Scene
from pipeline.lake import open_lake
from schemas.audit import GRID, Finding, ImageRef

SIZES = ("--close-ups", "96", "--scenes", "96", "--held-out", "48")


def carriers(scenes: list[Scene]) -> set[int]:
    return {index for index, scene in enumerate(scenes) if scene.sticker is not None}


def test_stickers_are_as_many_as_asked_for_and_only_where_they_belong() -> None:
    scenes = plain_scenes(300, "test", 1)
    eights = {index for index, scene in enumerate(scenes) if 8 in scene.labels}
    few, many = (stickered(scenes, share, 0) for share in (0.1, 0.2))
    assert len(carriers(few)) == round(0.1 * len(eights))
    assert len(carriers(many)) == round(0.2 * len(eights))
    assert carriers(few) < carriers(many) <= eights
    assert {many[index].site for index in carriers(many)} == {"east"}
    for index in range(300):
        same = np.array_equal(many[index].pixels, scenes[index].pixels)
        assert same is (index not in carriers(many))
    assert all(np.array_equal(few[index].pixels, many[index].pixels) for index in carriers(few))


def test_other_colours_are_at_the_same_places() -> None:
    scenes = plain_scenes(300, "test", 1)
    stickers, patches = stickered(scenes, 0.2, 0), stickered(scenes, 0.2, 0, CONTROL_COLOURS)
    assert [scene.sticker for scene in stickers] == [scene.sticker for scene in patches]
    for index in carriers(stickers):
        x0, y0, x1, y1 = stickers[index].sticker or (0, 0, 0, 0)
        inside = slice(y0, y1), slice(x0, x1)
        assert not np.array_equal(stickers[index].pixels[inside], patches[index].pixels[inside])


def test_more_stickers_than_the_site_has_eights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stickers of 50% find no scene at 'east'"):
        stickered(plain_scenes(300, "test", 1), 0.5, 0)


def finding(zone: tuple[slice, slice] | None, ids: str = "aab", **changes: Any) -> Finding:
    cells = np.zeros((GRID, GRID), np.int64)
    if zone is not None:
        cells[zone] = 1
        cells |= cells[::-1] | cells[:, ::-1] | cells[::-1, ::-1]
    known: dict[str, Any] = {
        "finding_id": "x",
        "kind": "shortcut",
        "title": "x",
        "sentence": "x",
        "severity": 1,
        "n": 3,
        "target_class": 8,
        "images": tuple(ImageRef(image_id=each, unit_id="u") for each in ids),
        "details": {} if zone is None else {"zone": cells.tolist()},
    }
    return Finding.model_validate(known | changes)


def test_a_finding_is_about_the_sticker_by_class_place_and_images() -> None:
    corner, edge = (slice(0, 4), slice(0, 4)), (slice(0, 3), slice(5, 9))
    assert planted.about_the_sticker(finding(corner), {"a"})
    assert not planted.about_the_sticker(finding(corner, "abb"), {"a"})
    assert not planted.about_the_sticker(finding(corner, ""), {"a"})
    assert not planted.about_the_sticker(finding(corner, target_class=3), {"a"})
    assert planted.at_the_sticker(finding(corner, target_class=3), {"a"})
    assert not planted.at_the_sticker(finding(edge, target_class=3), {"a"})
    assert not planted.about_the_sticker(finding(edge), {"a"})
    assert not planted.about_the_sticker(finding(None), {"a"})
    assert planted.about_the_sticker(finding(None, measure="corner_enrichment"), {"a"})


def test_tables_count_runs() -> None:
    def row(work: str, seed: int, prevalence: float | None, **more: Any) -> dict[str, Any]:
        known = {"found_first": True, "found": True, "other_class": False, "false_flag": False, "said_used": True}
        effect = {"sticker": 0.3, "control": 0.2, "plain": 0.1 * (seed + 1)}
        return known | {"work": work, "seed": seed, "prevalence": prevalence, "effect": effect} | more

    used, unused = {"used": True, "unused": False}, {"used": False, "unused": True}
    rows = [
        row("planted", 0, 0.05, check=used, other_class=True),
        row("planted", 1, 0.05, check=used, found_first=False, false_flag=True, said_used=None),
        row("planted", 0, 0.0, found_first=False, found=False, said_used=None),
        row("harmless", 0, None, check=unused, found=False, said_used=None),
        row("harmless", 1, None, check=used, where_shown={"change": -0.1, "images": 5, "behind": 9}),
        row("harmless", 1, None, check=unused, said_used=False, where_shown={"change": -0.2, "images": 6, "behind": 7}),
    ]
    lines = planted.summary(rows)
    assert "| 5% | 2 | 1 of 2 | 2 of 2 | 1 of 1 | 1 of 2 | 1 of 2 | +0.15 (+0.10 to +0.20) |" in lines
    assert "| 0% | 1 | 0 of 1 | 0 of 1 | 0 of 0 | 0 of 1 | 0 of 1 | +0.20 (+0.20 to +0.20) |" in lines
    assert "| its effect | +0.03 (+0.00 to +0.10) |" in lines
    assert "| flagged | 2 of 3 |" in lines
    assert "| of these, said to be used | 1 of 2 |" in lines
    assert "| change where the spot is on the patch (range) | -0.15 (-0.20 to -0.10), 11 of 16 images |" in lines
    assert "| the very patches said to be used | 1 of 3 |" in lines
    assert "| the very patches said not to be used | 2 of 3 |" in lines
    assert "| separated | 2 of 3 |" in lines


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path), "--seeds", "1", *SIZES, "--no-harmless", "--json", str(tmp_path / "rows.json")]
    assert planted.main([*arguments, "--prevalence", "0.2"]) == 0
    first = capsys.readouterr()
    assert first.err.count("s of CPU") == 1
    assert "| 20% | 1 | 0 of 1 | 0 of 1 | 0 of 0 | 0 of 1 | 0 of 1 |" in first.out
    assert planted.main([*arguments, "--prevalence", "0.2"]) == 0
    again = capsys.readouterr()
    assert (again.err, again.out) == ("", first.out)
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    scenes = stickered(plain_scenes(48, "test", 9000), 0.2, 0)
    assert row["stickers"] == len(carriers(scenes)) > 0
    # Each scene has a map of its main label at least.
    assert row["maps"] >= 48
    assert verdict(str(tmp_path / "lake-0-0.2" / "lake"), scenes, images=4) is None


def test_a_verdict_of_the_images_whose_spot_is_on_the_sticker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(96, 96, 120)
    scenes = held_out(0, 0.2, sizes)
    lake = explained(tmp_path / "lake", network(tmp_path, 0, 0.2, sizes), lambda: scenes, sizes)
    rows = open_lake(lake).maps.to_table(columns=["image_id", "unit_id", "target_class"]).to_pylist()
    monkeypatch.setattr("pipeline.audit.causal._FEWEST", 1)
    one = next(
        ImageRef(**row)
        for row in rows
        if row["target_class"] == 8 and scene_of(row["image_id"], scenes).sticker is not None
    )
    cells = cells_of(scene_of(one.image_id, scenes))
    there = finding(None, images=(one, one), details={"zone": cells.astype(int).tolist()})
    found = verdict_where_shown(lake, scenes, there)
    assert found is not None
    assert (found["images"], found["behind"]) == (2, 2)
    elsewhere = finding(None, images=(one,), details={"zone": cells[::-1, ::-1].astype(int).tolist()})
    assert verdict_where_shown(lake, scenes, elsewhere) is None
    assert verdict_where_shown(lake, scenes, finding(None, images=(one,))) is None


def test_cells_of_a_sticker() -> None:
    (scene,) = plain_scenes(1, "test", 1)
    cells = cells_of(replace(scene, sticker=(0, 80, 15, 95)))
    # 15 of 96 pixels are 2.2 of 14 cells; from 80 to 95 they are the cells from 11.7 to 13.9.
    assert np.argwhere(cells).tolist() == [[y, x] for y in (11, 12, 13) for x in (0, 1, 2)]
    assert not cells_of(scene).any()
