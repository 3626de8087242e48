"""Planted differences between groups are found, each once; Simpson's paradox and chance are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.audit.cells import Cell, Key
from pipeline.audit.contrast import Contrast, Sums, by_group
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.checks import area_controlled, split_half, standardised
from pipeline.audit.findings.group_difference import KIND
from pipeline.audit.findings.location import ninths, permutation_p, sample_d
from schemas.audit import GRID, MEASURE_INDEX, Finding, Settings
from tests.pipeline.audit.evidence import GivenCells, blobs, find, make_evidence

Sites = npt.NDArray[np.str_]


def evidence_of(
    seed: int, classes: int, sites: int, n: int, bad: tuple[int, str] | None = None, **more: Any
) -> Evidence:
    """``n`` maps of each class and site in the middle; those of a class and site that are ``bad`` at the top left."""
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(classes), sites * n)
    site = np.tile(np.repeat([chr(ord("a") + number) for number in range(sites)], n), classes)
    odd = (target == bad[0]) & (site == bad[1]) if bad else np.zeros(len(target), np.bool_)
    maps = blobs(rng, len(target), *(np.where(odd, 0.12, 0.5) for _ in range(2)))
    values = {"probability": rng.uniform(0.4, 1, len(target))}
    return make_evidence(target, maps, groups={"site": site.tolist()}, values=values, **more)


def about(found: list[Finding]) -> list[tuple[int | None, str | None]]:
    return [(each.target_class, each.value) for each in found]


@pytest.mark.parametrize("sites", [2, 3, 5])
@pytest.mark.parametrize("bad", [(1, "a"), (2, "b")])
def test_one_class_at_one_site_in_a_corner_is_found_alone(sites: int, bad: tuple[int, str]) -> None:
    (found,) = find(KIND, evidence_of(sites, 3, sites, 110, bad))
    assert about([found]) == [bad]
    assert (found.attribute, found.finding_id) == ("site", f"group_difference:{bad[0]}:site:{bad[1]}")
    assert {"location", "centre_x", "centre_y"} <= set(found.details["measures"])
    assert abs(found.details["d"]) == max(abs(each["d"]) for each in found.details["measures"].values())
    assert found.details["checks"]["split_half"]["held"] is True
    assert found.details["place"] == "at the top left"
    assert found.low is not None and found.high is not None and found.effect is not None
    assert found.low < found.effect < found.high
    assert (found.n, found.reference_n) == (110, 110 * (sites - 1))
    assert found.q is not None and found.q < 1e-3
    images = np.array([int(image.image_id[-6:]) for image in found.images])
    assert (images // 110 == bad[0] * sites + ord(bad[1]) - ord("a")).all()
    assert f"'name-{bad[0]}' where site is '{bad[1]}'" in found.sentence


def test_two_odd_sites_are_both_found_and_the_others_are_not() -> None:
    rng = np.random.default_rng(0)
    site = np.repeat(list("abcd"), 120)
    y = np.select([site == "b", site == "d"], [0.1, 0.9], 0.5)
    found = find(KIND, make_evidence(np.zeros(480, np.int64), blobs(rng, 480, y), groups={"site": site.tolist()}))
    assert sorted(about(found)) == [(0, "b"), (0, "d")]


def test_what_an_odd_site_makes_of_the_others_is_no_finding_even_without_floors() -> None:
    settings = Settings(effect_d=0, effect_energy=0, effect_ratio=1)
    for seed in range(5):
        assert about(find(KIND, evidence_of(seed, 1, 3, 100, (0, "a"), settings=settings))) == [(0, "a")]


def test_simpsons_trap_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 1200)
    # Site a has mostly class 0, which lies on the left; within the classes the sites are the same.
    site = np.where(rng.random(1200) < np.where(target == 0, 0.8, 0.2), "a", "b")
    maps = blobs(rng, 1200, 0.5, np.where(target == 0, 0.3, 0.7), 0.05)
    groups = {"site": site.tolist()}
    assert find(KIND, make_evidence(target, maps, groups=groups)) == []
    # Were the classes one, it would be one.
    assert len(find(KIND, make_evidence(target * 0, maps, groups=groups))) == 1


def test_chance_is_hardly_ever_flagged() -> None:
    # Without floors, so that only the tests keep chance out; what passes them must also hold in both halves.
    settings = Settings(effect_d=0, effect_energy=0, effect_ratio=1)
    runs = [find(KIND, evidence_of(seed, 2, 3, 100, settings=settings)) for seed in range(30)]
    assert sum(map(bool, runs)) <= 2
    assert not any(find(KIND, evidence_of(seed, 2, 3, 100)) for seed in range(6))


@pytest.mark.parametrize("size", [1, 5])
def test_bootstrap_p_is_uniform_by_chance(size: int) -> None:
    rng = np.random.default_rng(size)
    below = []
    for seed in range(12):
        site = np.repeat(np.arange(10), 100)
        patients = np.arange(1000) // size
        values = {"probability": np.clip(0.5 + 0.2 * rng.normal(size=1000)[patients], 0, 1)}
        maps = np.ones((1000, GRID, GRID))
        clusters = [f"{seed} {patient}" for patient in patients]
        groups = {"site": [str(each) for each in site]}
        evidence = make_evidence(site * 0, maps, groups=groups, values=values, clusters=clusters)
        cells = by_group(evidence.state.maps, 0)["site", 0]
        sums = Sums.of(list(cells.values()), [MEASURE_INDEX["probability"]])
        below += (Contrast(sums, sums.others()).p(100) < 0.1).ravel().tolist()
    assert len(below) == 120
    assert 0.02 <= np.mean(below) <= 0.18


def test_permutation_p_is_uniform_by_chance_and_small_for_a_difference() -> None:
    rng = np.random.default_rng(0)
    p = np.array([permutation_p(blobs(rng, 30).reshape(30, -1), blobs(rng, 60).reshape(60, -1), s) for s in range(150)])
    assert 0.01 <= (p < 0.05).mean() <= 0.1
    assert 0.35 <= (p < 0.5).mean() <= 0.65
    assert permutation_p(blobs(rng, 30, 0.3).reshape(30, -1), blobs(rng, 60).reshape(60, -1), 0) < 1e-6


def test_a_place_that_no_moment_shows() -> None:
    # In both sites half of the maps lie in one corner and half in the opposite one: all moments agree.
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 400)
    site = np.repeat(["a", "b"], 200)
    x = np.where((site == "a") == (side == 0), 0.25, 0.75)
    maps = blobs(rng, 400, np.where(side == 0, 0.25, 0.75), x, 0.03)
    (found,) = find(KIND, make_evidence(side * 0, maps, groups={"site": site.tolist()}))
    assert found.measure == "location"
    assert list(found.details["measures"]) == ["location"]
    assert found.details["elsewhere"] > 0.5


def test_few_patients_make_no_group() -> None:
    evidence = evidence_of(0, 1, 2, 120, (0, "a"))
    assert len(find(KIND, evidence)) == 1
    for patients, count in ((1, 0), (4, 0), (40, 1)):
        clusters = [f"patient {row % patients if row < 120 else -row}" for row in range(240)]
        assert len(find(KIND, evidence_of(0, 1, 2, 120, (0, "a"), clusters=clusters))) == count


def test_patients_that_look_in_different_places_are_no_difference_of_sites() -> None:
    # Were rows taken for independent, each of these sites would differ in place.
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(24), 20)
        y, x = rng.uniform(0.2, 0.8, (2, 24))
        maps = blobs(rng, 480, y[patient], x[patient], 0.02)
        groups = {"site": ["a" if each < 12 else "b" for each in patient]}
        clusters = [f"patient {each}" for each in patient]
        found += find(KIND, make_evidence(patient * 0, maps, groups=groups, clusters=clusters))
    assert found == []


def test_small_groups_are_not_flagged() -> None:
    assert find(KIND, evidence_of(0, 1, 2, 90, (0, "a"))) == []
    assert len(find(KIND, evidence_of(0, 1, 2, 90, (0, "a"), settings=Settings(flagged_from=80)))) == 1


def with_objects(seed: int, gain: float) -> Evidence:
    """Objects are larger at site a, and energy follows their size; site b has ``gain`` of it besides."""
    rng = np.random.default_rng(seed)
    site = np.repeat(["a", "b"], 400)
    area = np.clip(np.where(site == "a", 0.4, 0.3) + rng.normal(0, 0.1, 800), 0.05, 0.9)
    energy = np.clip(area + 0.1 + rng.normal(0, 0.05, 800) + gain * (site == "b"), 0, 1)
    maps = np.ones((800, GRID, GRID)) + rng.normal(0, 0.01, (800, GRID, GRID))
    values = {"area": area, "energy": energy, "probability": rng.random(800)}
    return make_evidence(np.zeros(800, np.int64), maps, groups={"site": site.tolist()}, values=values)


def test_what_the_objects_size_explains_is_no_finding() -> None:
    assert find(KIND, with_objects(0, 0.0)) == []
    (found,) = find(KIND, with_objects(0, 0.2))
    assert found.measure == "energy"
    control = found.details["checks"]["object_area"]
    assert control["held"] is True and abs(control["d"]) > abs(found.details["d"])


def test_area_control_compares_like_with_like() -> None:
    rng = np.random.default_rng(0)
    mine = np.arange(4000) < 1000
    area = np.where(mine, 0.5, 0.3) + rng.normal(0, 0.1, 4000)
    noise = rng.normal(0, 1, 4000)
    explained = area_controlled(10 * area + noise, mine, area, 0.2, 30)
    real = area_controlled(10 * area + noise + mine, mine, area, 0.2, 30)
    assert explained is not None and real is not None
    assert standardised(10 * area + noise, mine) > 1
    assert explained["held"] is False
    assert real["held"] is True and real["d"] == pytest.approx(1, abs=0.25)
    assert area_controlled(noise, mine, area * np.nan, 0.2, 30) is None
    few = area_controlled(noise, np.arange(4000) < 20, area, 0.2, 30)
    assert few is not None and few["held"] is None
    apart = area_controlled(noise, mine, np.where(mine, 0.9, 0.1), 0.2, 30)
    assert apart is not None and apart["held"] is None


def test_what_holds_in_one_half_only_is_no_finding() -> None:
    rng = np.random.default_rng(0)
    site = np.repeat(["a", "b"], 300)
    half = rng.integers(0, 2, 600).astype(np.int8)
    x = np.where((site == "a") & (half == 0), 0.2, 0.5)
    maps = blobs(rng, 600, 0.5, x)
    groups = {"site": site.tolist()}
    target = np.zeros(600, np.int64)
    assert find(KIND, make_evidence(target, maps, groups=groups, sample={"half": half})) == []
    assert len(find(KIND, make_evidence(target, maps, groups=groups))) == 1


def test_split_half_says_where_it_cannot_say() -> None:
    values, mine = np.arange(40.0), np.arange(40) < 20
    assert split_half((values, values), (mine, mine), 0.2, 20)["held"] is True
    assert split_half((values, -values), (mine, mine), 0.2, 20)["held"] is False
    assert split_half((values, values), (mine, mine), 0.2, 21)["held"] is None
    evidence = evidence_of(0, 1, 2, 110, (0, "a"))
    few = Evidence(
        evidence.frame, evidence.state, evidence.lake, evidence.sample.take([0, 1, 2, 3, 110, 111, 112, 113])
    )
    (found,) = find(KIND, few)
    assert found.measure != "location"
    assert found.details["checks"]["split_half"]["held"] is None


def test_cells_without_mass_do_not_lead() -> None:
    rng = np.random.default_rng(0)
    own, other = (blobs(rng, 50, 0.5, at).reshape(50, -1) for at in (0.3, 0.7))
    own[:, 0], other[:, 0] = 1e-5, 0.0
    d = sample_d(own, other)
    assert abs(d[0]) < 1e-3 < np.abs(d).max()


def test_places_have_names() -> None:
    names, cells = ninths()
    of = dict(zip(names, cells.reshape(9, GRID, GRID), strict=True))
    assert of["at the top left"][0, 0] == of["at the top"][0, 7] == of["in the centre"][6, 7] == 1
    assert of["at the right"][7, 13] == of["at the bottom left"][13, 0] == 1
    assert (cells.sum(0) == 1).all() and cells.sum(1).tolist() == [25, 20, 25, 20, 16, 20, 25, 20, 25]


def test_the_state_of_parts_gives_the_same_findings() -> None:
    evidence = evidence_of(0, 2, 3, 110, (1, "b"))
    again = type(evidence.state)(evidence.frame)
    again.add_bytes(evidence.state.to_bytes())
    assert find(KIND, Evidence(evidence.frame, again, evidence.lake, evidence.sample)) == find(KIND, evidence)


@pytest.mark.timeout(60)
def test_many_classes_and_groups_take_seconds() -> None:
    evidence = evidence_of(0, 1, 3, 110, (0, "a"))
    cells = {key: Cell(dict(cell.sums)) for key, cell in evidence.state.maps.cells.items()}
    of = {value: cells[Key(0, 0, "site", value, 1)] for value in "abc"}
    for target in range(1, 300):
        cells[Key(0, target, "", "", 1)] = of["b"]
        for value in range(20):
            cells[Key(0, target, "site", f"value {value}", 1)] = of["bc"[value % 2]]
    evidence.state.maps = GivenCells(cells)
    assert about(find(KIND, evidence)) == [(0, "a")]
