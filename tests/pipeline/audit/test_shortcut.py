"""A planted mark is the first finding; without one nothing is found."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pipeline.audit.enrichment import LEVELS, Surroundings, count, fisher, trend
from pipeline.audit.findings.shortcut import KIND
from pipeline.audit.places import LATTICE, NEAR_CORNERS, along_edges, plain_places, spots, where, window_shares
from schemas.audit import GRID, Finding
from tests.pipeline.audit.planted import SITES, Planted, blobs, evidence, planted, table


def found_in(made: Planted, **settings: object) -> list[Finding]:
    """Findings, the worst first."""
    return sorted(KIND().find(evidence(made.sample, **settings)), key=lambda each: -each.severity)


def about_the_mark(finding: Finding, made: Planted) -> bool:
    """Whether a finding is of the marked class, at the corners, and most of its images carry the mark."""
    marked = made.marked_ids
    shown = [image.image_id in marked for image in finding.images]
    at = finding.details["where"]
    return finding.target_class == 3 and ("corner" in at or "edge" in at) and np.mean(shown) > 0.5


def test_the_mark_is_the_first_finding_and_names_what_it_is() -> None:
    made = planted(0, prevalence=0.15)
    found = found_in(made)
    first = found[0]
    assert about_the_mark(first, made)
    assert (first.kind, first.target_class, first.attribute, first.value) == ("shortcut", 3, "site", "east")
    assert first.finding_id.startswith("shortcut:3:")
    assert first.effect_name == "ratio"
    assert first.low is not None and first.effect is not None and first.high is not None
    assert 1.5 < first.low < first.effect < first.high
    assert first.q is not None and first.q < 0.05
    site = np.array(made.sample["group:site"].to_pylist())
    mine = made.sample["target_class"].to_numpy() == 3
    assert (first.n, first.reference_n) == ((mine & (site == "east")).sum(), (mine & (site != "east")).sum())
    # 75 of about 167 images from the east carry it.
    rate = made.marked.sum() / first.n
    assert first.details["share_low"] < rate < first.details["share_high"]
    assert first.details["class_ratio"] > 1.5
    shown = [float(image.note.split("%")[0]) for image in first.images]
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == 24
    assert "'class 3' with site = east" in first.sentence
    assert np.asarray(first.details["zone"]).shape == (GRID, GRID)
    assert all(about_the_mark(each, made) for each in found)


def test_a_class_alone_is_enough() -> None:
    made = planted(1, prevalence=0.15, site=None, groups=())
    first = found_in(made)[0]
    assert about_the_mark(first, made)
    assert first.attribute is None
    assert "of the images of other classes" in first.sentence
    assert (first.n, first.reference_n) == (500, 4500)


def test_a_mark_in_one_corner_is_placed_there() -> None:
    made = planted(2, prevalence=0.15, corners=1)
    assert {each.details["where"] for each in found_in(made)[:1]} <= {"the upper left corner", "the corners"}


def test_without_a_mark_nothing_is_found() -> None:
    assert [each.title for seed in range(3) for each in found_in(planted(seed, prevalence=0.0))] == []


def test_classes_that_lie_elsewhere_are_no_candidates() -> None:
    """Each class on a circle around the middle, as far apart as they can be."""
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(6), 300)
    y, x = (0.5 + 0.27 * each[target] + rng.normal(0, 0.05, len(target)) for each in (np.sin(angle), np.cos(angle)))
    size = np.full(len(target), 0.1)
    maps = blobs(y, x, size, size, (7, 7))
    sites = np.array(SITES, np.object_)[rng.integers(0, 3, len(target))]
    assert KIND().find(evidence(table(maps, target, {"site": sites}))) == []


def test_a_difference_of_classes_is_none_of_groups() -> None:
    """Simpson: the marked class is nearly all of one site, and is marked alike at every site."""
    made = planted(3, prevalence=0.3, site=None)
    rng = np.random.default_rng(1)
    target = made.sample["target_class"].to_numpy()
    east = rng.random(len(target)) < np.where(target == 3, 0.7, 0.1)
    sites = np.where(east, "east", "north").tolist()
    place = made.sample.column_names.index("group:site")
    changed = Planted(made.sample.set_column(place, made.sample.schema.field(place), [sites]), made.marked)
    found = found_in(changed)
    assert about_the_mark(found[0], changed)
    assert {each.attribute for each in found} == {None}


def test_small_groups_are_not_flagged() -> None:
    made = planted(0, prevalence=0.15)
    assert found_in(made, flagged_from=200)[0].attribute is None
    assert found_in(made, flagged_from=600) == []
    assert found_in(Planted(made.sample.slice(0, 150), made.marked[:150])) == []


def test_the_same_sample_gives_the_same_findings() -> None:
    made = planted(4, prevalence=0.1, per_class=200)
    assert found_in(made) == found_in(made)


def test_spots_stand_by_themselves() -> None:
    y, x = np.array([0.5, 0.12]), np.array([0.5, 0.12])
    parts = blobs(y, x, np.array([0.15, 0.05]), np.array([0.15, 0.05]), (GRID, GRID)) * GRID**2
    both = np.stack([parts[0], 0.6 * parts[0] + 0.4 * parts[1]])
    found = spots(both)
    assert found[0, :3, :3].max() == 0  # the object's flank
    assert found[1, :3, :3].max() > 0.25
    assert window_shares(np.ones((1, GRID, GRID))) == pytest.approx(9 / 196)


def test_a_mark_beside_the_outermost_window_is_at_the_corners() -> None:
    place = next(place for place in plain_places() if place.key == NEAR_CORNERS)
    assert np.argwhere(place.windows[:3, :3]).tolist() == [[0, 0], [0, 1], [1, 0]]
    assert np.array_equal(place.windows, place.windows[::-1]) and np.array_equal(place.windows, place.windows[:, ::-1])
    # Spots of a quarter of the evidence, a cell further along the edge than the very corner.
    rng = np.random.default_rng(0)
    target, marked = np.repeat([0, 1], 400), np.arange(800) < 24
    y, x = rng.normal(0.5, 0.08, (2, 800))
    size = np.full(800, 0.08)
    maps = blobs(y, x, size, size, (GRID, GRID))
    mark = blobs(np.full(800, 2.5 / GRID), np.full(800, 1.5 / GRID), size / 2, size / 2, (GRID, GRID))
    maps = np.where(marked[:, None, None], 0.75 * maps + 0.25 * mark, maps)
    (found,) = KIND().find(evidence(table(maps, target)))
    assert (found.target_class, found.details["where"], found.details["share"]) == (0, "the corners", 24 / 400)
    # What looks at the very corner is shown first, however weak.
    corner = blobs(np.full(800, 1.5 / GRID), np.full(800, 1.5 / GRID), size / 2, size / 2, (GRID, GRID))
    maps[394:400] = 0.85 * maps[394:400] + 0.15 * corner[394:400]
    (found,) = KIND().find(evidence(table(maps, target)))
    assert {int(image.image_id[-6:]) for image in found.images[:6]} == set(range(394, 400))


def test_places_in_words() -> None:
    names = {place.key: (place.words, place.outer) for place in plain_places()}
    assert names["at-00-00"] == ("the upper left corner", True)
    assert names["at-11-05"] == ("the lower edge", True)
    assert names["at-05-11"] == ("the right edge", True)
    assert names["at-05-05"] == ("the middle", False)
    assert names["at-03-03"] == ("the upper left part", False)
    assert names["mirrored-00-00"] == ("the corners", True)
    assert names[NEAR_CORNERS] == ("the corners", True)
    assert names["mirrored-00-04"] == ("the upper or lower edge", True)
    assert where(0.5, 0.25) == "the left part"


def test_counts_are_what_a_loop_counts() -> None:
    rng = np.random.default_rng(0)
    load, code = rng.random((50, 3)).astype(np.float32), rng.choice([0, 2, 3], 50)
    hits, rows = count(load, code, 5)
    assert rows.tolist() == [(code == each).sum() for each in range(5)]
    for level, least in enumerate(LEVELS):
        for each in range(5):
            assert hits[level, each].tolist() == (load[code == each] >= least).sum(0).tolist()


def test_fishers_exact_test() -> None:
    from scipy.stats import fisher_exact

    test = fisher(12, 200, 9, 600, target_class=0, attribute="", value="", place=0, level=0.1)
    assert test.p == pytest.approx(fisher_exact([[12, 188], [9, 591]], alternative="greater").pvalue)
    assert test.ratio == pytest.approx(4, rel=0.05)
    assert test.low < 4 < test.high


def test_exact_trend() -> None:
    from scipy.stats import fisher_exact

    # Without rows that score 1 it is Fisher's test.
    assert trend((7, 7), 40, (3, 3), 90) == pytest.approx(
        fisher_exact([[7, 33], [3, 87]], alternative="greater").pvalue
    )
    assert trend((0, 0), 40, (0, 0), 90) == 1.0
    # All ways to deal three of eight cards, which score 2, 2, 1, 1, 1, 0, 0, 0.
    scores = [2, 2, 1, 1, 1, 0, 0, 0]
    dealt = [sum(scores[each] for each in hand) for hand in combinations(range(8), 3)]
    assert trend((1, 3), 3, (1, 2), 5) == pytest.approx(sum(each >= 4 for each in dealt) / len(dealt))
    assert trend((2, 2), 3, (0, 3), 5) == pytest.approx(sum(each >= 4 for each in dealt) / len(dealt))


def surroundings(own: np.ndarray, others: np.ndarray) -> Surroundings:
    counts = np.stack([own.ravel(), others.ravel()]).astype(np.int64)
    return Surroundings(np.repeat(counts[None], len(LEVELS), 0), counts.sum(1))


def test_what_thins_out_evenly_is_expected() -> None:
    """Normal positions about different centres: an edge is looked at much more often by the class that is near it."""
    y, x = np.mgrid[0:LATTICE, 0:LATTICE]
    own = np.round(3000 * np.exp(-0.5 * (((y - 5.5) / 2.5) ** 2 + ((x - 4.0) / 2.5) ** 2)) / 39)
    others = np.round(9000 * np.exp(-0.5 * (((y - 5.5) / 2.5) ** 2 + ((x - 7.0) / 2.5) ** 2)) / 39)
    place = next(place for place in plain_places() if place.key == "at-05-00")
    hits = (int(own.ravel()[place.windows.ravel()].sum()), int(others.ravel()[place.windows.ravel()].sum()))
    rows = (int(own.sum()), int(others.sum()))
    test = fisher(hits[0], rows[0], hits[1], rows[1], target_class=0, attribute="", value="", place=0, level=LEVELS[0])
    assert test.p < 1e-6
    assert test.ratio > 3
    assert surroundings(own, others).p(test, 0, place) > 0.05
    more = own.copy()
    more[5, 0] += 2 * hits[0]
    bumped = fisher(
        3 * hits[0], rows[0], hits[1], rows[1], target_class=0, attribute="", value="", place=0, level=LEVELS[0]
    )
    assert surroundings(more, others).p(bumped, 0, place) < 1e-3
    # A fifth more than expected is sure with so many maps, and little.
    slightly = own.copy()
    slightly[5, 0] += round(0.2 * hits[0])
    a_fifth = replace(test, hits=round(1.2 * hits[0]))
    counts = np.stack([slightly.ravel(), others.ravel()]).astype(np.int64)
    demanding = Surroundings(np.repeat(counts[None], len(LEVELS), 0), counts.sum(1), least=1.5)
    assert demanding.p(a_fifth, 0, place) > 0.5
    assert demanding.p(replace(test, hits=3 * hits[0]), 0, place) < 0.01


def test_a_class_that_is_nearer_to_a_whole_edge_is_expected_at_each_place_of_it() -> None:
    """Objects anywhere; one class has its spots further up in them, so they gather all along the upper edge."""
    rng = np.random.default_rng(0)
    y, x = rng.integers(1, LATTICE, (2, 40_000))
    own = np.zeros((2, LATTICE, LATTICE), np.int64)
    np.add.at(own[0], (np.maximum(y[:4000] - 3, 0), x[:4000]), 1)
    np.add.at(own[1], (y[4000:], x[4000:]), 1)
    place = next(place for place in plain_places() if place.key == "at-00-06")
    hits = [int(each.ravel()[place.windows.ravel()].sum()) for each in own]
    test = fisher(hits[0], 4000, hits[1], 36_000, target_class=0, attribute="", value="", place=0, level=LEVELS[0])
    assert test.p < 1e-6
    assert surroundings(own[0], own[1]).p(test, 0, place) > 0.05


def test_edges_without_their_corners() -> None:
    by_key = {place.key: along_edges(place.windows).reshape(LATTICE, LATTICE) for place in plain_places()}
    assert not by_key["at-05-05"].any()
    upper = np.zeros((LATTICE, LATTICE), np.bool_)
    upper[:2, 2:-2] = True
    assert np.array_equal(by_key["at-00-06"], upper)
    assert np.array_equal(by_key["at-00-00"], upper | upper.T)
    assert np.array_equal(by_key["mirrored-00-05"], upper | upper[::-1])
    assert by_key["corners-00"].sum() == 4 * upper.sum()


def test_a_mark_does_not_make_other_places_stand_out() -> None:
    """The marked images look elsewhere less often, so that the other sites seemed to look at an edge too often."""
    assert [each.value for each in found_in(planted(14, prevalence=0.15))] == ["east"]


def rates(prevalence: float, share: float, seeds: range, **changes: object) -> tuple[float, float]:
    """Shares of the runs in which the mark is the first finding, and in which anything else is found."""
    first, false = 0, 0
    for seed in seeds:
        made = planted(seed, prevalence=prevalence, share=share, **changes)  # type: ignore[arg-type]
        found = found_in(made)
        first += bool(found) and about_the_mark(found[0], made)
        false += any(not about_the_mark(each, made) for each in found)
    return first / len(seeds), false / len(seeds)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("prevalence", "least"), [(0.15, 0.95), (0.05, 0.95), (0.03, 0.85), (0.0, 0.0)])
@pytest.mark.parametrize("site", ["east", None])
def test_power_and_false_flags(prevalence: float, least: float, site: str | None) -> None:
    """Ten classes of 500 maps; the mark gets 0.6 of the evidence and lies in any of four corners."""
    groups = ("site",) if site else ()
    first, false = rates(prevalence, 0.6, range(20), site=site, groups=groups)
    assert first >= least
    assert false <= 0.05
