"""Maps and pictures of chosen images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipeline.audit.exports.base import About, Item
from pipeline.audit.exports.choose import Choice, by_hash
from pipeline.audit.exports.items import PROBE, Reading
from pipeline.audit.frame import make_frame
from pipeline.audit.objects import Objects, open_objects
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import Lake
from pipeline.lake.originals import Originals
from schemas.audit import MEASURES, Settings
from schemas.errors import LakeError
from tests.pipeline.audit.exports.pictured import make_pictured, number_of, picture
from tests.pipeline.audit.lakes import HEIGHT, VIEW, WIDTH


def reading(lake: Lake, settings: Settings | None = None, objects: Objects | None = None) -> Reading:
    frame = make_frame(lake, settings or Settings())
    names = [measure.name for measure in MEASURES if objects is not None or not measure.regional]
    about = About("name", lake.store.uri, lake.manifest, frame, names)
    return Reading(lake, about, objects or Objects(), {}, Originals(lake))


def all_of(lake: Lake, found: Reading, most: int = 1000) -> list[Item]:
    return list(found.items(by_hash(lake, found.about.frame, most)))


def test_items_hold_what_the_audit_measures(pictured: Lake) -> None:
    settings = Settings(boxes="boxes")
    frame = make_frame(pictured, settings)
    objects = open_objects(frame.settings, pictured)
    state = State(frame)
    for unit in pictured.commits:
        add_unit(state, pictured, unit, objects.source)
    expected = {row["image_id"]: row for row in state.sample.table.to_pylist()}
    items = all_of(pictured, reading(pictured, settings, objects))
    assert [item.place for item in items] == list(range(len(items)))
    compared = 0
    for item in items:
        row = expected.get(item.image["image_id"])
        if row is None:  # without mass, which no sample holds
            assert np.isnan(item.density).all() and not item.heat.any()
            assert set(item.measures.values()) == {None}
            continue
        compared += 1
        assert item.density.ravel().tolist() == row["map"] and item.row["target_class"] == row["target_class"]
        assert item.outcome == ("unknown", "right", "wrong")[row["outcome"]]
        for name, value in item.measures.items():
            assert (value is None) == bool(np.isnan(row[name]))
            assert value is None or np.float32(value) == np.float32(row[name]), name
    assert compared > 100


def test_heat_is_the_stored_map_over_its_largest_value(pictured: Lake) -> None:
    for item in all_of(pictured, reading(pictured), 30):
        stored = pictured.heatmap(item.row, scaled=True)
        assert np.array_equal(item.heat, np.nan_to_num(stored))
        assert item.row["method"] == "grad_cam" and item.row["is_predicted"]


def test_pictures_belong_to_their_rows(pictured: Lake) -> None:
    for item in all_of(pictured, reading(pictured)):
        assert number_of(item) == int(item.image["image_id"][-5:])
        assert item.picture.size == (WIDTH, HEIGHT) and item.kind == "PNG"
        assert (item.view.x0, item.view.y0, item.view.x1, item.view.y1) == VIEW


def test_the_wanted_class_comes_first_and_the_predicted_one_second(pictured: Lake) -> None:
    maps = pictured.maps.to_table(filter=(pc.field("method") == "grad_cam") & ~pc.field("is_predicted")).to_pylist()
    row = maps[0]
    found = reading(pictured)
    by_label, by_none, by_other = (
        next(found.items([Choice(row["image_id"], row["unit_id"], target)])).row
        for target in (row["target_class"], None, 99)
    )
    assert by_label["target_class"] == row["target_class"] and not by_label["is_predicted"]
    assert by_none["is_predicted"] and by_other["is_predicted"]


def test_what_cannot_be_had_is_left_out_and_counted(tmp_path: Path) -> None:
    lake = make_pictured(tmp_path, units=2, images=20)
    next(tmp_path.glob("000001*.pack")).unlink()
    found = reading(lake)
    items = all_of(lake, found)
    assert {item.image["unit_id"] for item in items} == {"000000-shard-000"}
    assert [item.place for item in items] == list(range(19)) and found.missing == 19
    assert "is not there any more" in found.reason


def test_where_the_first_pictures_cannot_be_had_no_other_is_asked_for(tmp_path: Path) -> None:
    lake = make_pictured(tmp_path, units=2, images=40)
    for path in tmp_path.glob("*.pack"):
        path.unlink()
    found = reading(lake)
    with pytest.raises(LakeError, match=f"none of the first {PROBE} pictures .*--source-storage"):
        all_of(lake, found)
    assert found.missing == PROBE


def test_an_image_without_a_map_is_left_out(pictured: Lake) -> None:
    unit = sorted(pictured.commits)[0]
    failed = pictured.unit_images(unit).filter(pc.field("status") == "decode_error")["image_id"][0].as_py()
    found = reading(pictured)
    assert list(found.items([Choice(failed, unit, None)])) == [] and found.missing == 1
    with pytest.raises(LakeError, match="holds no unit 'gone'"):
        list(found.items([Choice(failed, "gone", None)]))


def shown(draw: Callable[[dict[str, Any]], bytes], folder: Path) -> Item:
    lake = make_pictured(folder, draw=draw, units=1, images=2, failed=False, flagged=False)
    return all_of(lake, reading(lake))[0]


def test_an_image_that_a_browser_would_turn_is_stored_as_the_model_saw_it(tmp_path: Path) -> None:
    def draw(row: dict[str, Any]) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = 6
        row["exif_orientation"] = 6
        return picture(1, "PNG", exif=exif)

    item = shown(draw, tmp_path)
    with Image.open(io.BytesIO(item.data)) as stored:
        assert stored.size == (WIDTH, HEIGHT) and not stored.getexif()
        assert np.array_equal(np.asarray(stored), np.asarray(item.picture))


@pytest.mark.parametrize(
    ("kind", "mode", "stored"), [("TIFF", "RGB", "PNG"), ("JPEG", "CMYK", "PNG"), ("JPEG", "L", "JPEG")]
)
def test_what_no_browser_shows_becomes_a_png(tmp_path: Path, kind: str, mode: str, stored: str) -> None:
    def draw(row: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(picture(1))).convert(mode).save(buffer, kind)
        return buffer.getvalue()

    item = shown(draw, tmp_path)
    assert item.kind == stored == str(Image.open(io.BytesIO(item.data)).format)
    assert item.picture.mode == "RGB"


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    def draw(row: dict[str, Any]) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (WIDTH, WIDTH)).save(buffer, "PNG")
        return buffer.getvalue()

    lake = make_pictured(tmp_path, draw=draw, units=1, images=3)
    found = reading(lake)
    assert all_of(lake, found) == [] and "has its file changed" in found.reason


def test_images_that_cannot_be_had_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_pictured(tmp_path, units=2, images=20, failed=False)
    original = Originals.stream

    def some(self: Originals, rows: Any) -> Iterator[Any]:
        for place, (row, data) in enumerate(original(self, rows)):
            yield row, data if place < 18 else LakeError("not there any more")

    monkeypatch.setattr(Originals, "stream", some)
    found = reading(lake)
    items = all_of(lake, found)
    assert len(items) == 36
    assert all(number_of(item) == int(item.image["image_id"][-5:]) for item in items)
    assert found.missing == 4 and "not there any more" in found.reason


def test_tags_are_kinds_and_flags_once(pictured: Lake) -> None:
    items = all_of(pictured, reading(pictured))
    tags = {tuple(item.tags) for item in items}
    assert tags == {(), ("all_zero", "constant"), ("not_finite",), ("constant",)}
    assert dataclasses.replace(items[0], findings=()).tags == items[0].tags
