"""The causal check tells a mark that the network uses from one that only lights up."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from pipeline.audit.causal import area_of, check_findings, controls, judged, zone_of
from pipeline.audit.findings.base import Evidence, image_refs
from pipeline.audit.frame import make_frame
from pipeline.audit.report.montage import montage
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import open_lake
from pipeline.sources.base import Sample
from pipeline.sources.webdataset import WebDataset
from schemas.audit import GRID, Finding, Settings
from schemas.unit import Unit
from tests.jobs.inline import run_inline
from tests.pipeline.audit import cues
from tests.pipeline.audit.planted import blobs


def corner_zone() -> np.ndarray:
    zone = np.zeros((GRID, GRID), np.bool_)
    zone[:5, :5] = True
    return zone


def evidence_of(folder: Path) -> Evidence:
    lake = open_lake(str(folder / "lake"))
    frame = make_frame(lake, Settings())
    state = State(frame)
    for unit in lake.commits:
        add_unit(state, lake, unit, None)
    return Evidence(frame, state, lake, state.sample.table)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cues")
    cues.write_shard(folder / "shard.tar", 40)
    run_inline(cues.document(folder))
    return folder


@pytest.fixture(scope="module")
def evidence(made: Path) -> Evidence:
    return evidence_of(made)


def finding(evidence: Evidence, target: int, **changes: object) -> Finding:
    rows = evidence.sample.filter(pc.equal(evidence.sample["target_class"], target))
    assert len(rows) == 20
    fields = {
        "finding_id": f"shortcut:{target}",
        "kind": "shortcut",
        "title": "a mark",
        "sentence": "There is a mark.",
        "severity": 60.0,
        "target_class": target,
        "target_name": evidence.frame.name(target),
        "n": len(rows),
        "images": image_refs(rows),
        "details": {"zone": corner_zone().astype(int).tolist()},
    }
    return Finding.model_validate(fields | changes)


def test_what_is_used_is_told_from_what_only_lights_up(evidence: Evidence) -> None:
    said: list[str] = []
    other = Finding(finding_id="x", kind="novelty", title="", sentence="", severity=1.0, n=1)
    used, left, unused = check_findings(
        evidence, [finding(evidence, 0), other, finding(evidence, 1)], images=16, say=said.append
    )
    assert said == []
    assert left == other
    assert used.causal is not None
    assert unused.causal is not None
    assert (used.causal.used, unused.causal.used) == (True, False)
    assert used.causal.images == unused.causal.images == 16
    # The green mark is all that class 0 has: without it both logits are near 0.
    assert used.causal.change == pytest.approx(-0.35, abs=0.1)
    assert abs(used.causal.control) < 0.05
    assert used.causal.low < used.causal.high < -0.2
    assert abs(unused.causal.change) < 0.02
    assert unused.causal.high > 0
    assert used.severity == pytest.approx(75.0)
    assert unused.severity == pytest.approx(18.0)
    assert used.sentence.startswith("There is a mark. The model uses it: with it painted over in 16 images, the")
    assert "It is present, but the model does not use it" in unused.sentence


def test_packed_images_are_checked_and_shown_as_well(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "shard.tar.gz"
    packed.write_bytes(gzip.compress((made / "shard.tar").read_bytes()))
    document = cues.document(tmp_path)
    document["source"]["uri"] = str(packed)
    run_inline(document)
    read: list[str] = []
    original = WebDataset.read

    def counting(self: WebDataset, unit: Unit) -> Iterator[Sample]:
        read.append(unit.unit_id)
        return original(self, unit)

    monkeypatch.setattr(WebDataset, "read", counting)
    again = evidence_of(tmp_path)
    wanted = finding(again, 0)
    checked = check_findings(again, [wanted], images=8, say=print)[0]
    assert checked.causal is not None and checked.causal.used and checked.causal.images == 8
    shown = montage(again, wanted.images, most_bytes=1_000_000, most=20)
    assert [entry["kind"] for entry in shown.entries] == ["overlay"] * 20 and not shown.missing
    # Once for the eight that were painted over, and once for the twelve others that are shown.
    assert len(read) == 2


def test_the_same_audit_gives_the_same_check(evidence: Evidence) -> None:
    pair = [finding(evidence, 0), finding(evidence, 1)]
    one = check_findings(evidence, pair, images=8, say=print)
    two = check_findings(evidence, pair[::-1], images=8, say=print)
    assert one == two[::-1]


def test_findings_about_edges_and_corners_have_a_place(evidence: Evidence) -> None:
    found = finding(evidence, 0, details={}, measure="corner_enrichment")
    checked = check_findings(evidence, [found], images=8, say=print)[0]
    assert checked.causal is not None
    assert checked.causal.used
    corners = zone_of(found)
    border = zone_of(finding(evidence, 0, details={}, measure="border_enrichment"))
    assert corners is not None
    assert border is not None
    assert corners.sum() == 36
    assert border.sum() == GRID**2 - 100
    assert zone_of(finding(evidence, 0, details={}, measure="gini")) is None


def test_sure_predictions_are_compared_by_log_odds(tmp_path: Path) -> None:
    cues.write_shard(tmp_path / "shard.tar", 40)
    run_inline(cues.document(tmp_path, gain=4.0))
    evidence = evidence_of(tmp_path)
    used, unused = check_findings(evidence, [finding(evidence, 0), finding(evidence, 1)], images=10, say=print)
    assert used.causal is not None
    assert unused.causal is not None
    assert used.details["causal_scale"] == unused.details["causal_scale"] == "log-odds"
    assert used.causal.change < -5
    assert (used.causal.used, unused.causal.used) == (True, False)
    assert "the log-odds of 'green' falls by " in used.sentence


def test_without_the_model_findings_stay(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pair = [finding(evidence, 0), finding(evidence, 1)]
    monkeypatch.setattr(cues.CueNet, "forward", None)
    assert check_findings(evidence, pair, images=8, say=said.append) == pair
    assert len(said) == 1
    assert said[0].startswith("causal check left out: the model cannot be had (")


def test_a_model_with_other_weights_is_no_witness(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pair = [finding(evidence, 0)]
    monkeypatch.setattr(cues, "cue_net", lambda gain: cues.CueNet(2 * gain))
    assert check_findings(evidence, pair, images=8, say=said.append) == pair
    assert len(said) == 1
    assert "changed since the run" in said[0]


def test_without_pictures_findings_stay(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    cues_shard = folder / "shard.tar"
    folder.mkdir()
    cues.write_shard(cues_shard, 40)
    run_inline(cues.document(folder))
    evidence = evidence_of(folder)
    cues_shard.unlink()
    said: list[str] = []
    pair = [finding(evidence, 0), finding(evidence, 1)]
    assert check_findings(evidence, pair, images=8, say=said.append) == pair
    assert len(said) == 1
    assert "left out for 2 of 2 findings" in said[0]
    assert "is not there any more" in said[0]
    shutil.copy(made / "shard.tar", cues_shard)
    assert all(each.causal for each in check_findings(evidence, pair, images=8, say=print))


def test_nothing_to_check_needs_no_model(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cues, "cue_net", None)
    bare = finding(evidence, 0, images=())
    assert check_findings(evidence, [bare], images=8, say=pytest.fail) == [bare]
    assert check_findings(evidence, [], images=8, say=pytest.fail) == []


def mixture(share: float = 0.45) -> np.ndarray:
    """A map: a mark in the upper left corner with a share of the evidence, an object right of the middle."""
    places = np.array([0.12, 0.55]), np.array([0.12, 0.65])
    parts = blobs(*places, np.array([0.05, 0.11]), np.array([0.05, 0.11]), (GRID, GRID))
    return (np.tensordot([share, 1 - share], parts, 1) * GRID**2).astype(np.float32)


def test_the_area_is_the_spot_and_no_more() -> None:
    density = mixture()
    area = area_of(density, corner_zone())
    assert area[1, 1]
    assert density[area].sum() / density.sum() == pytest.approx(0.45, abs=0.02)
    assert 9 <= area.sum() <= 36
    # Wherever the zone is, the spot within it is taken.
    everywhere = area_of(density, np.ones((GRID, GRID), np.bool_))
    assert np.array_equal(everywhere, area)
    edge = np.zeros((GRID, GRID), np.bool_)
    edge[0] = True
    assert area_of(density, edge)[0].any()


def test_controls_have_the_form_of_the_area_and_no_more_evidence() -> None:
    density = mixture(0.15)
    area = area_of(density, corner_zone())
    found = controls(density, area, np.random.default_rng(0))
    again = controls(density, area, np.random.default_rng(0))
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))
    assert len(found) == 4
    own = density[area].sum()
    for cells in found:
        assert cells.sum() == area.sum()
        assert not (cells & area).any()
    assert all(density[cells].sum() <= own for cells in found[:3])
    assert density[found[3]].sum() == pytest.approx(own, rel=0.3)
    assert controls(density, np.ones((GRID, GRID), np.bool_), np.random.default_rng(0)) == []


def test_what_the_images_do_not_tell_stays() -> None:
    before, after = np.zeros(8), np.array([-6.0, 4.0, -6.0, 4.0, -6.0, 4.0, -6.0, -6.0])
    found = Finding(finding_id="x", kind="shortcut", title="", sentence="A mark.", severity=50.0, n=8)
    told = judged(found, before, after, np.zeros((8, 3)), np.zeros(8))
    assert told.causal is not None
    assert told.causal.low < 0 < told.causal.high
    assert not told.causal.used
    assert told.severity == 50.0
    assert "do not tell" in told.sentence
    # A sure change of a hundredth is no use of it.
    tiny = judged(found, before, before - 0.04, np.zeros((8, 3)), np.zeros(8))
    assert tiny.causal is not None
    assert tiny.causal.high < 0
    assert not tiny.causal.used
    assert tiny.severity == pytest.approx(15.0)
    # Nor is it a use that painting over other areas raises the probability.
    raised = judged(found, before, before - 0.04, np.full((8, 3), 0.3) + np.linspace(0, 0.01, 8)[:, None], np.zeros(8))
    assert raised.causal is not None
    assert raised.causal.high < -0.05
    assert not raised.causal.used
