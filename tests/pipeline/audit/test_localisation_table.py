"""The table of how well a lake's methods find objects: its numbers, its sample, and where it ends up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.audit import localisation_table as module
from pipeline.audit.frame import make_frame
from pipeline.audit.localisation import localise
from pipeline.audit.localisation_table import localisation_lines, localisation_table
from pipeline.audit.regions import open_regions
from pipeline.audit.regions.base import Region
from pipeline.audit.regions.column import Column
from pipeline.audit.run import AuditResult, run_audit
from pipeline.audit.wsol import Found, outlines
from pipeline.lake import Lake, LakeStore, open_lake
from pipeline.lake.reader import view_of
from schemas.audit import LOCALISATION, AuditManifest, Settings
from schemas.errors import LakeError
from tests.pipeline.audit.lakes import make_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    path = tmp_path_factory.mktemp("lake") / "lake"
    return open_lake(make_lake(path, units=3, images=8, boxes=True, methods=("grad_cam", "layer_cam"), accuracy=0.9))


def table(lake: Lake, most: int = 1000, **settings: Any) -> list[dict[str, Any]]:
    chosen = Settings.model_validate({"boxes": "boxes", **settings})
    regions = open_regions(chosen, lake)
    assert regions is not None
    found = localisation_table(lake, make_frame(lake, chosen), regions, most)
    assert found.schema == LOCALISATION
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_a_lake_s_table(lake: Lake) -> None:
    regions = open_regions(Settings(boxes="boxes"), lake)
    assert regions is not None
    rows = table(lake)
    assert [(row["method"], row["layer"]) for row in rows] == [
        ("grad_cam", "layer4"),
        ("layer_cam", "layer4"),
        ("centre_gaussian", ""),
    ]
    for row in rows[:2]:
        maps, masks, boxes, classes = [], [], [], []
        for about, values in lake.heatmaps(pc.field("is_predicted"), method=row["method"]):
            image = lake.image(about["image_id"])
            region = regions.region(image, about["target_class"], about["target_name"])
            assert region is not None
            maps.append(values)
            masks.append(region.in_view(view_of(image)))
            boxes.append(outlines(region, view_of(image)))
            classes.append(about["target_class"])
        sums = Found()
        sums.add(np.stack(maps), masks, boxes, classes)
        expected = sums.row()
        assert row["maps"] == len(maps) == 21
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-4), name
        measured = localise(np.stack(maps), masks)
        hits = [measured["pointing"][np.array(classes) == each] for each in sorted(set(classes))]
        assert row["pointing"] == pytest.approx(np.mean([np.nanmean(each) for each in hits if np.isfinite(each).any()]))
        assert row["energy"] == pytest.approx(np.nanmean(measured["energy"]), abs=1e-4)
    # The blobs of the maps are where the boxes are, and not in the middle.
    assert rows[0]["pointing"] > 0.7 > 0.1 > rows[2]["pointing"]
    assert rows[0]["max_box_acc_v2"] > rows[2]["max_box_acc_v2"]
    assert rows[2]["maps"] == 21
    assert rows[2]["skill"] == pytest.approx(0, abs=1e-4)


def test_the_sample_is_bounded_and_the_same_again(lake: Lake) -> None:
    rows = table(lake, 9)
    assert [row["maps"] for row in rows] == [9, 9, 9]
    assert rows == table(lake, 9)
    assert rows != table(lake, 9, seed=1)


def test_the_settings_choose_the_maps(tmp_path: Path) -> None:
    lake = open_lake(make_lake(tmp_path / "lake", units=1, images=9, boxes=True, accuracy=0.4))
    labels, predicted, both = (table(lake, 6, targets=each)[0] for each in ("label", "predicted", "all"))
    assert labels["maps"] == predicted["maps"] == 6
    # The boxes are the label's, and some predictions are wrong.
    assert labels["energy"] > predicted["energy"] + 0.1
    # An image with two maps counts once against the size of the sample.
    assert both["maps"] > 6


# In an audit ----------------------------------------------------------------------------------------------------------


def audited(lake: Lake, output: Path, **settings: Any) -> AuditResult:
    return run_audit(
        lake.store.uri, Settings.model_validate({"bootstrap": 50, **settings}), str(output), say=lambda line: None
    )


@pytest.mark.usefixtures("one_kind")
def test_an_audit_that_knows_objects_writes_the_table_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = audited(lake, tmp_path / "out", boxes="boxes")
    written = tmp_path / "out" / "localisation.parquet"
    stored = pq.read_table(written)
    assert stored.schema.remove_metadata().equals(LOCALISATION)
    assert result.tables.localisation is not None and stored.to_pylist() == table(lake)
    manifest = AuditManifest.model_validate_json((tmp_path / "out" / "audit.json").read_text())
    assert manifest.localisation == 21
    # What depends on thresholds is made anew, the comparison of maps and boxes is not.
    monkeypatch.setattr(module, "localisation_table", None)
    again = audited(lake, tmp_path / "out", boxes="boxes", q=0.01)
    assert pq.read_table(written).equals(stored) and again.manifest.localisation == 21
    without = audited(lake, tmp_path / "out")
    assert without.tables.localisation is None and without.manifest.localisation == 0
    assert not written.exists()


@pytest.mark.usefixtures("one_kind")
def test_a_damaged_table_is_named(lake: Lake, tmp_path: Path) -> None:
    audited(lake, tmp_path / "out", boxes="boxes")
    (kept,) = (tmp_path / "out" / "parts").glob("localisation-*.parquet")
    for data in (b"", kept.read_bytes()[:-9], (tmp_path / "out" / "groups.parquet").read_bytes()):
        kept.write_bytes(data)
        with pytest.raises(LakeError, match=f"{kept.name} is damaged .*delete it"):
            audited(lake, tmp_path / "out", boxes="boxes")


def test_objects_outside_the_view_make_no_table(lake: Lake, tmp_path: Path) -> None:
    class Outside(Column):
        def region(self, image: Any, target_class: int, target_name: str | None) -> Region:
            return Region(boxes=((0.0, 0.0, 4.0, 48.0),))  # left of what the model saw

    output, frame = LakeStore(str(tmp_path / "out")), make_frame(lake, Settings(boxes="boxes"))
    assert module.kept_localisation(lake, frame, Outside("boxes"), output, []) is None
    assert len(list(output.list("parts"))) == 1


def test_lines_name_the_best_and_who_is_no_better_than_the_middle() -> None:
    nothing = dict.fromkeys(LOCALISATION.names)

    def row(method: str, v2: float | None, pointing: float | None = 0.8) -> dict[str, Any]:
        about = {"method": method, "layer": "layer4", "maps": 90, "classes": 3}
        return nothing | about | {"max_box_acc_v2": v2, "pointing": pointing}

    rows = [row("grad_cam", 0.525), row("cam", 0.637), row("eigen_cam", 0.4), row("centre_gaussian", 0.525)]
    assert localisation_lines(pa.Table.from_pylist(rows, LOCALISATION)) == [
        "best by MaxBoxAccV2 over 90 maps: cam at layer4, 63.7% (a Gaussian in the middle: 52.5%); pointing game 80.0%",
        "no better than the Gaussian: grad_cam at layer4, eigen_cam at layer4",
    ]
    # Masks without a box around them, or maps without a peak.
    rows = [row("cam", None), row("centre_gaussian", None)]
    assert localisation_lines(pa.Table.from_pylist(rows, LOCALISATION)) == []
    rows = [row("cam", 0.6, None), row("centre_gaussian", 0.5, None)]
    (line,) = localisation_lines(pa.Table.from_pylist(rows, LOCALISATION))
    assert line.endswith("pointing game not defined")
