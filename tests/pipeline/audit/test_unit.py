"""One unit into the state, against the lake read plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.canonical import canonical
from pipeline.audit.frame import make_frame
from pipeline.audit.keys import keys_of, poisson_weights
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import Lake, open_lake
from schemas.audit import MEASURE_INDEX, OUTCOMES, PROPERTIES, Settings
from schemas.errors import LakeError
from tests.pipeline.audit.lakes import HEIGHT, WIDTH, make_lake

Row = tuple[dict[str, Any], dict[str, Any], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("unit") / "lake"
    return open_lake(make_lake(folder, units=3, images=60, methods=("grad_cam", "layer_cam")))


def audited(lake: Lake, **settings: Any) -> State:
    state = State(make_frame(lake, Settings(**settings)))
    for unit in sorted(lake.commits):
        add_unit(state, lake, unit, None)
    return state


def rows_of(lake: Lake, method: str = "grad_cam") -> list[Row]:
    """(row of the maps table, row of the images table, map) of every map of a method."""
    images = {row["image_id"]: row for row in lake.images.to_table().to_pylist()}
    return [(row, images[row["image_id"]], values) for row, values in lake.heatmaps(method=method)]


def outcome(image: dict[str, Any]) -> str:
    if image["label"] is None:
        return "unknown"
    return "right" if image["label"] == image["predicted_class"] else "wrong"


@pytest.mark.parametrize("targets", ["predicted", "label", "all"])
def test_maps_are_counted_by_class_group_and_outcome(lake: Lake, targets: str) -> None:
    state = audited(lake, targets=targets, groups=("site", "camera"))
    flag = {"predicted": "is_predicted", "label": "is_label"}.get(targets)
    rows = [row for row in rows_of(lake) if flag is None or row[0][flag]]
    assert state.counts["counted"] == 2 * len(rows)
    assert state.counts["units"] == 3 and state.counts["images"] == 180
    seen = 0
    for target in range(4):
        for site in ("east", "north", "south"):
            for place, name in enumerate(OUTCOMES):
                mine = [
                    row
                    for row in rows
                    if (row[0]["target_class"], row[1]["site"], outcome(row[1])) == (target, site, name)
                ]
                cell = state.maps.collect(0, target, "site", site, [place])
                assert (0 if cell is None else cell.rows) == len(mine)
                seen += len(mine)
                if cell is None:
                    continue
                gini = np.array([row[0]["gini"] for row in mine if row[0]["gini"] is not None])
                assert cell.count(MEASURE_INDEX["gini"]) == len(gini)
                assert abs(cell.mean(MEASURE_INDEX["gini"]) - gini.mean()) < 1e-6
    assert seen == len(rows)
    cameras = state.maps.collect(0, None, "camera", "cam 1")
    assert cameras is not None and cameras.rows == sum(row[1]["camera"] == "cam 1" for row in rows)
    assert state.maps.values(0, "camera") == ["cam 0", "cam 1"]


def test_mean_maps_and_flags_are_those_of_the_lake(lake: Lake) -> None:
    state = audited(lake, targets="all")
    rows = rows_of(lake)
    cell = state.maps.collect(0)
    assert cell is not None
    density = canonical(np.stack([values for _, _, values in rows]))
    density = density[np.isfinite(density[:, 0, 0])]
    assert cell.maps == len(density) == cell.rows - 6
    assert np.allclose(cell.mean_map(), density.mean(0), atol=2e-3)  # stored as float16
    assert cell.sums["flags"].tolist() == [
        sum(row[0][flag] for row in rows) for flag in ("all_zero", "constant", "not_finite")
    ]
    # What is zero or not finite says nothing, of its probability neither.
    assert cell.count(MEASURE_INDEX["probability"]) == len(density)
    border = np.array([row[0]["border_mass"] for row in rows if row[0]["border_mass"] is not None]) / 0.36
    assert abs(cell.mean(MEASURE_INDEX["border_enrichment"]) - border.mean()) < 1e-6
    assert cell.count(MEASURE_INDEX["energy"]) == 0 == state.counts["regions"]


@pytest.mark.parametrize("cluster", [None, "patient", "camera"])
def test_the_bootstrap_draws_clusters(lake: Lake, cluster: str | None) -> None:
    state = audited(lake, cluster=cluster, seed=4, bootstrap=50)
    rows = [row for row in rows_of(lake) if row[0]["is_predicted"] and row[0]["gini"] is not None]

    def name(image: dict[str, Any]) -> str:
        if cluster is None:
            return str(image["image_id"])
        return f"id {image['image_id']}" if image[cluster] is None else f"in {image[cluster]}"

    weights = poisson_weights(keys_of([name(image) for _, image, _ in rows], 4), 50).astype(float)
    gini = np.array([row[0]["gini"] for row in rows])
    cell = state.maps.collect(0)
    assert cell is not None
    expected = (weights * gini[:, None]).sum(0) / weights.sum(0)
    assert np.allclose(cell.resampled_means(MEASURE_INDEX["gini"]), expected, atol=1e-6)
    spread = expected.std() * np.sqrt(len(rows)) / gini.std()
    # Two cameras, drawn whole, vary more than single images do.
    assert spread < 1.6 if cluster is None else spread > 0.5


def test_only_the_audits_own_series_is_drawn_and_sampled(lake: Lake) -> None:
    state = audited(lake, method="layer_cam", groups=("site",))
    first, second = state.maps.collect(0), state.maps.collect(1)
    assert first is not None and second is not None
    assert "drawn" in second.sums and "drawn" not in first.sums
    sample = state.sample.table
    rows = {row[0]["image_id"]: row for row in rows_of(lake, "layer_cam") if row[0]["is_predicted"]}
    assert len(sample) == second.maps
    for each in sample.slice(0, 20).to_pylist():
        row, image, values = rows[each["image_id"]]
        assert (each["store_path"], each["store_row"]) == (row["store_path"], row["store_row"])
        assert each["target_class"] == row["target_class"] and OUTCOMES[each["outcome"]] == outcome(image)
        assert each["label_name"] == image["label_name"] and each["group:site"] == image["site"]
        assert each["gini"] == pytest.approx(row["gini"]) and np.isnan(each["energy"])
        assert np.allclose(each["map"], canonical(values[None])[0].ravel(), atol=0.05, rtol=2e-3)
    halves = sample["half"].to_numpy()
    assert set(halves.tolist()) == {0, 1} and abs(halves.mean() - 0.5) < 0.2


def test_halves_keep_clusters_together(lake: Lake) -> None:
    sample = audited(lake, cluster="patient").sample.table
    patients = {row["image_id"]: row["patient"] for row in lake.images.to_table().to_pylist()}
    halves: dict[str, set[int]] = {}
    for image, half in zip(sample["image_id"].to_pylist(), sample["half"].to_pylist(), strict=True):
        halves.setdefault(patients[image], set()).add(half)
    assert len(halves) < len(sample) and all(len(each) == 1 for each in halves.values())


def test_methods_are_compared_map_by_map(lake: Lake) -> None:
    cell = audited(lake, targets="all").agreement.collect(1)
    assert cell is not None
    pairs = zip(rows_of(lake, "grad_cam"), rows_of(lake, "layer_cam"), strict=True)
    expected = []
    for (row, _, one), (other, _, two) in pairs:
        assert (row["image_id"], row["target_class"]) == (other["image_id"], other["target_class"])
        if np.isfinite(one).all() and one.std() > 0 and two.std() > 0:
            maps = canonical(np.stack([one, two])).reshape(2, -1)
            expected.append(np.corrcoef(maps)[0, 1])
    # Those of the constant maps are not defined.
    assert cell.count(0) == len(expected)
    assert abs(cell.mean(0) - np.mean(expected)) < 2e-3


def test_properties_of_images_are_summed_by_label(lake: Lake) -> None:
    state = audited(lake, groups=("site",))
    images = [row for row in lake.images.to_table().to_pylist() if row["status"] == "ok"]
    for label in range(4):
        mine = [row for row in images if row["label"] == label]
        cell = state.images.collect(0, label)
        assert cell is not None and cell.rows == len(mine)
        names = [measure.name for measure in PROPERTIES]
        assert cell.mean(names.index("log_aspect")) == pytest.approx(np.log(WIDTH / HEIGHT), abs=1e-6)
        size = np.mean([np.log(row["byte_size"] / (WIDTH * HEIGHT)) for row in mine])
        assert cell.mean(names.index("log_bytes_per_pixel")) == pytest.approx(size, abs=1e-6)
    grouped = state.images.collect(0, None, "site", "east")
    assert grouped is not None and grouped.rows == sum(row["site"] == "east" for row in images)


def test_digests_of_all_images_are_kept(lake: Lake) -> None:
    state = audited(lake)
    shas = [row["sha256"][:8] for row in lake.images.to_table().to_pylist() if row["sha256"] is not None]
    assert state.digests.tolist() == sorted(int.from_bytes(sha, "little") for sha in shas)


def test_images_without_labels_have_an_unknown_outcome(tmp_path: Path) -> None:
    lake = open_lake(make_lake(tmp_path / "lake", units=1, labelled=False))
    state = audited(lake)
    assert {key.outcome for key in state.maps.cells} == {OUTCOMES.index("unknown")}
    assert not state.images.cells


def test_blocks_of_a_unit_do_not_matter(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = audited(lake, groups=("site",)).to_bytes()
    monkeypatch.setattr("pipeline.audit.unit._ROWS", 7)
    assert audited(lake, groups=("site",)).to_bytes() == whole


def test_methods_with_other_targets_are_a_damaged_unit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Lake.unit_maps

    def shuffled(self: Lake, unit: str) -> Any:
        table = whole(self, unit)
        return table.slice(1)

    monkeypatch.setattr(Lake, "unit_maps", shuffled)
    with pytest.raises(LakeError, match="maps of different targets; run 'camlake verify'"):
        audited(lake)
