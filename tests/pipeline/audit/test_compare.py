"""Two lakes compared: what did not change does not drift, what changed does, and chance seldom does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.audit import parts_files
from pipeline.audit.compare import Comparison, run_compare
from pipeline.audit.compare_pair import ClassPair, Pair, make_pair
from pipeline.audit.compare_priors import Side, matches
from pipeline.audit.compare_result import Outcome, class_drifts, outcome
from pipeline.audit.compare_tables import CompareManifest
from pipeline.audit.findings.base import Evidence
from pipeline.audit.run import run_audit
from pipeline.lake import Lake, LakeStore, open_lake
from schemas.audit import GRID, MEASURE_INDEX, MEASURES, Settings
from schemas.errors import InputError
from tests.pipeline.audit.evidence import blobs, make_evidence
from tests.pipeline.audit.lakes import Maps, Rows, make_lake

SETTINGS = Settings(bootstrap=100)
#: Whatever is beyond chance counts.
NO_FLOORS = Settings(effect_d=0, effect_energy=0, effect_ratio=1, bootstrap=100)
CLASSES = 4


def to_the_right(
    maps: Maps, rows: Rows, image: npt.NDArray[np.int64], target: npt.NDArray[np.int64], rng: np.random.Generator
) -> None:
    """The maps of class 1 lie two of seven cells further to the right."""
    maps[target == 1] = np.roll(maps[target == 1], 2, axis=2)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A lake, and the same with the maps of one class elsewhere."""
    folder = tmp_path_factory.mktemp("compare")
    options: dict[str, Any] = {"units": 6, "images": 130, "classes": CLASSES, "methods": ("grad_cam", "layer_cam")}
    return make_lake(folder / "a", **options), make_lake(folder / "b", **options, paint=to_the_right)


def compared(a: str, b: str, output: Path, settings: Settings = SETTINGS, **options: Any) -> Comparison:
    return run_compare(a, b, settings, str(output), say=lambda line: None, **options)


def objects(output: Path) -> dict[str, bytes]:
    """All that is written but the parts and the manifest, which holds the time."""
    names = ("comparison.parquet", "priors.parquet", "comparison.html")
    return {name: (output / name).read_bytes() for name in names}


# Whole comparisons ------------------------------------------------------------------------------------------------


def test_a_lake_does_not_drift_from_itself(lakes: tuple[str, str], tmp_path: Path) -> None:
    result = compared(lakes[0], lakes[0], tmp_path / "out", NO_FLOORS)
    assert result.manifest.drifts == () and result.manifest.classes == result.manifest.tested == CLASSES
    tested = result.table.filter(pc.field("p").is_valid())
    assert result.manifest.tests == len(tested) + CLASSES > 20
    assert set(tested["p"].to_pylist()) == {1.0} and set(tested["difference"].to_pylist()) == {0.0}
    assert result.priors["distance"].to_pylist() == [0.0] * CLASSES
    assert result.priors["correlation"].to_pylist() == pytest.approx([1.0] * CLASSES)
    shared = result.manifest.shared
    assert shared.images == shared.images_a == shared.images_b == 780
    assert shared.maps == shared.maps_by_id == sum(result.priors["sample_a"].to_pylist())
    assert "No class drifted" in (tmp_path / "out" / "comparison.html").read_text()


def test_the_class_whose_maps_moved_drifts_and_no_other(lakes: tuple[str, str], tmp_path: Path) -> None:
    result = compared(*lakes, tmp_path / "out")
    (drift,) = result.manifest.drifts
    assert (drift.class_a, drift.class_b, drift.name) == (1, 1, "name-1")
    assert drift.place is not None and (drift.place.more, drift.place.less) == ("at the bottom right", "at the bottom")
    assert 0.4 < drift.place.distance < 0.7 and drift.place.chance < 0.1
    assert drift.measures[0].measure == "centre_x" and 0.15 < drift.measures[0].difference < 0.25
    assert drift.measures[0].low < drift.measures[0].difference < drift.measures[0].high
    assert drift.sentence.startswith("name-1: 5") and "more of it at the bottom right" in drift.sentence
    # Of one image, the maps of the other classes are the same.
    rows = {row["name"]: row for row in result.priors.to_pylist()}
    assert rows["name-0"]["correlation"] == pytest.approx(1) and rows["name-1"]["correlation"] < 0.5
    assert rows["name-0"]["mean_a"] == rows["name-0"]["mean_b"]
    stored = CompareManifest.model_validate_json((tmp_path / "out" / "comparison.json").read_bytes())
    assert stored == result.manifest


def test_the_table_holds_the_lakes_numbers(lakes: tuple[str, str], tmp_path: Path) -> None:
    result = compared(*lakes, tmp_path / "out")
    for letter, uri in zip("ab", lakes, strict=True):
        maps = open_lake(uri).maps.to_table().to_pandas()
        kept = maps[maps.is_predicted & (maps.method == "grad_cam") & ~maps.all_zero & ~maps.not_finite]
        for name in ("spread", "centre_x", "probability"):
            expected = kept[kept.target_class == 1][name].astype(float)
            (row,) = [row for row in result.table.to_pylist() if (row["class_a"], row["measure"]) == (1, name)]
            assert row[f"n_{letter}"] == len(expected)
            assert row[f"mean_{letter}"] == pytest.approx(expected.mean(), abs=1e-5)
            assert row[f"std_{letter}"] == pytest.approx(expected.std(), abs=1e-4)
    (whole,) = [row for row in result.table.to_pylist() if row["class_a"] is None and row["measure"] == "centre_x"]
    assert whole["p"] is None and whole["q"] is None and not whole["drift"] and whole["difference"] > 0.02


def test_chunks_workers_and_kept_parts_do_not_matter(
    lakes: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    whole = compared(*lakes, tmp_path / "whole")
    assert [len(list((tmp_path / "whole" / side / "parts").iterdir())) for side in "ab"] == [1, 1]
    compared(*lakes, tmp_path / "ray", most_maps=1, workers=2)
    assert [len(list((tmp_path / "ray" / side / "parts").iterdir())) for side in "ab"] == [6, 6]
    assert objects(tmp_path / "ray") == objects(tmp_path / "whole")
    # A part that is lost is made again, the others are not.
    next((tmp_path / "ray" / "b" / "parts").iterdir()).unlink()
    lines: list[str] = []
    run_compare(*lakes, SETTINGS, str(tmp_path / "ray"), say=lines.append, most_maps=1)
    assert "          6 parts, of which 6 are there" in lines and "          6 parts, of which 5 are there" in lines
    monkeypatch.setattr(parts_files, "add_unit", None)
    again = compared(*lakes, tmp_path / "ray", most_maps=1)
    assert objects(tmp_path / "ray") == objects(tmp_path / "whole")
    assert again.manifest.model_dump(exclude={"created"}) == whole.manifest.model_dump(exclude={"created"})


@pytest.mark.usefixtures("one_kind")
def test_the_parts_of_an_audit_are_used(
    lakes: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = tmp_path / "a"
    shutil.copytree(lakes[0], a)
    run_audit(str(a), SETTINGS, say=lambda line: None)
    first = compared(lakes[0], lakes[1], tmp_path / "first")
    seen = []
    add = parts_files.add_unit

    def add_unit(state: Any, lake: Lake, unit: str, regions: Any) -> None:
        seen.append(lake.store.uri)
        add(state, lake, unit, regions)

    monkeypatch.setattr(parts_files, "add_unit", add_unit)
    second = compared(str(a), lakes[1], tmp_path / "second")
    assert set(seen) == {lakes[1]}
    assert second.table.equals(first.table) and second.priors.equals(first.priors)
    # Of other settings they are not.
    compared(str(a), lakes[1], tmp_path / "third", SETTINGS.model_copy(update={"seed": 3}))
    assert str(a) in seen


def test_the_output_is_a_folder_of_its_own(lakes: tuple[str, str], tmp_path: Path) -> None:
    for lake in lakes:
        with pytest.raises(InputError, match="lies in the lake"):
            compared(*lakes, Path(lake) / "out")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is no comparison \(it holds thesis\.tex\)"):
        compared(*lakes, tmp_path)
    uris = [make_lake(f"memory://{tmp_path.name}/{name}", units=1, seed=place) for place, name in enumerate("ab")]
    result = run_compare(uris[0], uris[1], SETTINGS, say=lambda line: None)
    assert result.output == f"{uris[1]}.against-a" and LakeStore(result.output).exists("comparison.json")
    assert result.manifest.tested == 0 and result.manifest.drifts == ()  # 40 images


def test_grids_that_differ_keep_two_measures_out(lakes: tuple[str, str], tmp_path: Path) -> None:
    coarse = make_lake(tmp_path / "coarse", units=6, images=130, classes=CLASSES, grid=(4, 4))
    result = compared(lakes[0], coarse, tmp_path / "out")
    assert result.manifest.skipped == ("effective_area", "gini")
    assert any("A's maps are 7 x 7 cells, B's 4 x 4 cells" in note for note in result.manifest.notes)
    assert any("Only A holds maps of layer_cam at layer4" in note for note in result.manifest.notes)
    rows = [row for row in result.table.to_pylist() if row["class_a"] is not None]
    for row in rows:
        assert row["comparable"] == (row["measure"] not in ("effective_area", "gini")) == (row["p"] is not None)
        assert row["d"] is not None


# Which can be compared --------------------------------------------------------------------------------------------


def named(lake: Lake, names: list[str] | None) -> Lake:
    """The lake, had its model these classes."""
    changes = {"class_names": names, "num_classes": len(names or "four")}
    lake.manifest = lake.manifest.model_copy(update={"model": lake.manifest.model.model_copy(update=changes)})
    return lake


def pair_of(uris: tuple[str, str], names_a: list[str] | None, names_b: list[str] | None) -> Pair:
    return make_pair((named(open_lake(uris[0]), names_a), named(open_lake(uris[1]), names_b)), SETTINGS)


def test_classes_are_matched_by_name(lakes: tuple[str, str]) -> None:
    pair = pair_of(lakes, ["ant", "crane", "crane", "bee"], ["crane", "cat", "ant", "crane", "dog"])
    assert pair.by_name
    assert pair.classes == (ClassPair(0, 2, "ant"), ClassPair(1, 0, "crane"), ClassPair(2, 3, "crane"))
    assert pair.only == (("bee",), ("cat", "dog"))
    assert "Only A's model has 1 class: bee." in pair.notes and "Only B's model has 2 classes: cat, dog." in pair.notes
    with pytest.raises(InputError, match="have no class name in common"):
        pair_of(lakes, ["ant"], ["bee"])


def test_without_names_classes_are_matched_by_index(lakes: tuple[str, str]) -> None:
    pair = pair_of(lakes, None, ["ant", "bee", "cat", "dog", "emu"])
    assert not pair.by_name and [(each.a, each.b) for each in pair.classes] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert pair.classes[1].name == "bee" and pair.only == ((), ("emu",))
    assert any("matched by index" in note for note in pair.notes)


def test_methods_must_be_named_where_none_is_shared(lakes: tuple[str, str], tmp_path: Path) -> None:
    other = make_lake(tmp_path / "other", units=1, methods=("eigen_cam", "layer_cam"))
    opened = open_lake(lakes[0]), open_lake(other)
    assert [each.method for each in make_pair(opened, SETTINGS).series] == ["layer_cam", "layer_cam"]
    only = opened[0], open_lake(make_lake(tmp_path / "only", units=1, methods=("eigen_cam",)))
    with pytest.raises(InputError, match=r"no method in common .* give --method and --method-b"):
        make_pair(only, SETTINGS)
    pair = make_pair(only, SETTINGS, method_b="eigen_cam")
    assert [each.method for each in pair.series] == ["grad_cam", "eigen_cam"]
    assert any("A's grad_cam is grad_cam, B's eigen_cam is eigen_cam" in note for note in pair.notes)
    with pytest.raises(InputError, match=r"only: --layer: 'eigen_cam' has no layer 'layer3'.* give --method-b or"):
        make_pair(only, SETTINGS, method_b="eigen_cam", layer_b="layer3")


def test_what_only_b_lacks_is_told_of_b(lakes: tuple[str, str]) -> None:
    b = open_lake(lakes[1])
    b.manifest = b.manifest.model_copy(update={"attributes": {"site": "string"}})
    with pytest.raises(InputError, match=r"/b: --cluster: the lake has no column 'patient'.*site$"):
        make_pair((open_lake(lakes[0]), b), Settings(cluster="patient"))
    b.commits = {}
    with pytest.raises(InputError, match=r"^\S*/b has no committed unit yet"):
        make_pair((open_lake(lakes[0]), b), SETTINGS)


def test_layers_of_other_names_are_compared_and_told(lakes: tuple[str, str]) -> None:
    b = open_lake(lakes[1])
    renamed = [info.model_copy(update={"layers": ["stem", "features.7"]}) for info in b.manifest.methods]
    b.manifest = b.manifest.model_copy(update={"methods": renamed})
    pair = make_pair((open_lake(lakes[0]), b), SETTINGS)
    assert [each.layer for each in pair.series] == ["layer4", "features.7"]
    assert "A's layer 'layer4' is compared with B's layer 'features.7'." in pair.notes
    assert [each.layer for each in make_pair((open_lake(lakes[0]), b), SETTINGS, layer_b="stem").series][1] == "stem"


def test_images_that_are_prepared_otherwise_are_told_whoever_decided_it(lakes: tuple[str, str]) -> None:
    def prepared(uri: str, **changes: Any) -> Lake:
        lake = open_lake(uri)
        model = lake.manifest.model.model_copy(update={"preprocess": {"resize": 48} | changes})
        lake.manifest = lake.manifest.model_copy(update={"model": model})
        return lake

    def told(**changes: Any) -> bool:
        pair = make_pair(
            (prepared(lakes[0], sources={"resize": "the job file"}), prepared(lakes[1], **changes)), SETTINGS
        )
        return any("otherwise prepared" in note for note in pair.notes)

    assert not told(sources={"resize": "a preset of other weights"})
    assert told(resize=50)


def test_other_kinds_of_targets_are_refused(lakes: tuple[str, str]) -> None:
    b = open_lake(lakes[1])
    job = b.manifest.job | {"model": b.manifest.job["model"] | {"activation": "sigmoid"}}
    b.manifest = b.manifest.model_copy(update={"job": job})
    both = open_lake(lakes[0]), b
    with pytest.raises(InputError, match="say with --targets"):
        make_pair(both, SETTINGS)
    assert make_pair(both, Settings(targets="label")).frames[1].settings.targets == "label"


# Statistics -------------------------------------------------------------------------------------------------------


def concluded(a: Evidence, b: Evidence, classes: list[ClassPair]) -> Outcome:
    """The outcome of two lakes that are evidence only."""
    lakes = cast(tuple[Lake, Lake], (None, None))
    pair = Pair(lakes, (a.frame, b.frame), True, tuple(classes), ((), ()), (), ())
    samples = [each.sample.sort_by([("target_class", "ascending"), ("key", "ascending")]) for each in (a, b)]
    first, second = (Side(each, each["image_id"].to_pylist()) for each in samples)
    return outcome(pair, (a.state, b.state), (first, second))


def side(
    target: npt.NDArray[np.int64], maps: npt.NDArray[np.float64], ids: list[str], settings: Settings, **options: Any
) -> Evidence:
    options = {"clusters": ids, "sample": {"image_id": ids}} | options
    return make_evidence(target, maps, settings=settings, classes=CLASSES, **options)


def same(count: int = CLASSES) -> list[ClassPair]:
    return [ClassPair(each, each, f"name-{each}") for each in range(count)]


@pytest.mark.parametrize("paired", [False, True])
def test_chance_drifts_no_more_often_than_q(paired: bool) -> None:
    """Halves of one lake, and two models that differ by noise on the same images."""
    runs, flagged, p = 40, 0, []
    for seed in range(runs):
        rng = np.random.default_rng([seed, paired])
        target = rng.integers(0, 2, 480 if paired else 960)
        centre = np.array([0.35, 0.6])[target]
        ids = [f"image-{seed}-{number}" for number in range(len(target))]
        maps = blobs(rng, len(target), 0.5, centre)
        if paired:
            noise = [blobs(rng, len(target), 0.5, centre) for _ in range(2)]
            found = concluded(*(side(target, (maps + each) / 2, ids, NO_FLOORS) for each in noise), same(2))
        else:
            halves = [np.flatnonzero(rng.permutation(len(target)) % 2 == half) for half in range(2)]
            parts = (side(target[rows], maps[rows], [ids[row] for row in rows], NO_FLOORS) for rows in halves)
            found = concluded(*parts, same(2))
        assert found.tested == 2
        flagged += bool(found.drift.any())
        p += [prior.p for prior in found.priors]
    assert flagged <= 0.05 * runs + 2  # of 40 runs at 5%, more than 4 are one case in twenty
    assert 0.01 <= np.mean(np.array(p) < 0.1) <= 0.2  # and p of the places is neither too small nor too large


def test_images_in_both_lakes_make_the_difference_paired() -> None:
    rng = np.random.default_rng(1)
    n = 400
    target, maps = np.zeros(n, np.int64), blobs(rng, n)
    centre = rng.normal(0.5, 0.1, n)
    moved = centre + 0.01 + rng.normal(0, 0.02, n)
    ids = [f"image-{number}" for number in range(n)]
    column = MEASURE_INDEX["centre_x"]

    def width(other_ids: list[str]) -> float:
        sides = [
            side(target, maps, each, SETTINGS, values={"centre_x": values})
            for each, values in ((ids, centre), (other_ids, moved))
        ]
        found = concluded(sides[0], sides[1], same(1)).measures
        assert found.difference[0, column] == pytest.approx((moved - centre).mean(), abs=1e-5)
        assert found.d[0, column] == pytest.approx((moved - centre).mean() / 0.1, rel=0.15)
        return float(found.high[0, column] - found.low[0, column])

    alone = 2 * 1.96 * np.sqrt(centre.var() / n + moved.var() / n)
    assert width([f"other-{number}" for number in range(n)]) == pytest.approx(alone, rel=0.25)
    paired = 2 * 1.96 * (moved - centre).std() / np.sqrt(n)
    assert paired < alone / 4 and width(ids) == pytest.approx(paired, rel=0.25)


def test_few_maps_do_not_look_like_drift_of_the_place() -> None:
    rng = np.random.default_rng(2)
    target = np.repeat(np.arange(3), [8, 40, 120])
    lakes = []
    for letter in "ab":
        maps = blobs(rng, len(target), wander=0.3)
        lakes.append(side(target, maps, [f"{letter}-{number}" for number in range(len(target))], SETTINGS))
    found = concluded(lakes[0], lakes[1], same(3))
    tiny, small, enough = found.priors
    assert np.isnan(tiny.chance) and np.isnan(tiny.p) and np.isnan(small.p)
    # Distances that would be drift, were they not what chance makes.
    assert small.distance > 0.1 and small.excess < 0.05
    assert enough.distance > 0.05 and enough.excess < 0.05 and enough.p > 0.05
    assert not found.drift.any()


def test_places_of_other_images_drift_and_rows_that_depend_count_less() -> None:
    rng = np.random.default_rng(3)
    target = np.zeros(300, np.int64)
    ids = [[f"{letter}-{number}" for number in range(300)] for letter in "ab"]
    maps = [blobs(rng, 300, 0.5, x) for x in (0.42, 0.52)]
    free = concluded(*(side(target, *each, SETTINGS) for each in zip(maps, ids, strict=True)), same(1))
    assert free.drift[0, -1] and free.priors[0].p < 1e-4
    (drift,) = class_drifts(free)
    assert drift.place is not None and drift.class_a == 0
    settings = SETTINGS.model_copy(update={"cluster": "patient"})
    patients = [[f"{name[0]}-{number // 20}" for number, name in enumerate(each)] for each in ids]
    bound = concluded(
        *(side(target, each, own, settings, clusters=of) for each, own, of in zip(maps, ids, patients, strict=True)),
        same(1),
    )
    assert bound.priors[0].distance == free.priors[0].distance
    assert bound.priors[0].chance == pytest.approx(free.priors[0].chance * np.sqrt(20), rel=0.25)
    assert bound.priors[0].p > 0.01 and not bound.drift[0, -1]


def test_classes_of_other_numbers_meet() -> None:
    rng = np.random.default_rng(4)
    places = np.array([0.25, 0.4, 0.6, 0.75])
    target = rng.integers(0, CLASSES, 600)
    turned = (target + 1) % CLASSES
    sides = [
        side(each, blobs(rng, 600, 0.5, places[target]), [f"{letter}-{number}" for number in range(600)], SETTINGS)
        for letter, each in zip("ab", (target, turned), strict=True)
    ]
    right = [ClassPair(each, (each + 1) % CLASSES, f"name-{each}") for each in range(CLASSES)]
    assert not concluded(sides[0], sides[1], right).drift.any()
    assert concluded(sides[0], sides[1], same()).drift[:, -1].all()


def test_measures_are_held_against_their_floors() -> None:
    n = 2000
    target = np.zeros(n, np.int64)
    rng = np.random.default_rng(5)
    maps = blobs(rng, n)
    ids = [[f"{letter}-{number}" for number in range(n)] for letter in "ab"]
    # Beyond chance, all of them: by a hair, by less than a share, by less than a ratio, and by enough.
    changes = {"gini": (0.5, 0.51, 0.1), "probability": (0.5, 0.54, 0.1), "border_enrichment": (1.0, 1.4, 0.3)}
    changes |= {"spread": (0.2, 0.3, 0.1)}
    values = [{name: rng.normal(each[at], each[2], n) for name, each in changes.items()} for at in range(2)]
    sides = [side(target, maps, own, SETTINGS, values=each) for own, each in zip(ids, values, strict=True)]
    found = concluded(sides[0], sides[1], same(1))
    rows = {name: MEASURE_INDEX[name] for name in changes}
    assert all(found.q[0, row] < 0.05 for row in rows.values())
    assert [name for name, row in rows.items() if found.drift[0, row]] == ["spread"]
    assert not found.drift[0, -1] and found.q.shape == (1, len(MEASURES) + 1)


def test_rows_are_matched_once() -> None:
    assert matches(["x", "y", "x", "z"], ["x", "q", "x", "x", "y"]).tolist() == [[0, 0], [2, 2], [1, 4]]
    assert matches([], ["x"]).shape == (0, 2)


def test_maps_of_one_content_correlate_whatever_their_ids() -> None:
    rng = np.random.default_rng(6)
    target, n = np.zeros(50, np.int64), 50
    maps = blobs(rng, n)
    order = rng.permutation(n)
    a, b = (side(target, maps[rows], [f"{letter}-{row}" for row in rows], SETTINGS) for letter, rows in
            (("a", np.arange(n)), ("b", order)))  # fmt: skip
    frames = a.frame, b.frame
    pair = Pair(cast(tuple[Lake, Lake], (None, None)), frames, True, tuple(same(1)), ((), ()), (), ())
    known = [[f"content {name.split('-')[1]}" for name in each.sample["image_id"].to_pylist()] for each in (a, b)]
    found = outcome(pair, (a.state, b.state), (Side(a.sample, known[0]), Side(b.sample, known[1])))
    assert found.priors[0].matched == n and found.priors[0].correlation == pytest.approx(1)
    assert (found.shared.maps, found.shared.maps_by_id) == (n, 0)
    assert isinstance(a.sample, pa.Table) and found.priors[0].mean.shape == (2, GRID * GRID)
