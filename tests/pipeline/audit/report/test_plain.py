"""A lake with next to nothing: few maps, no groups, no labels that count, a signed method, no pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.audit.findings.base import Evidence
from pipeline.audit.frame import make_frame
from pipeline.audit.groups import groups_table
from pipeline.audit.report import write_report
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import LakeStore, open_lake
from schemas.audit import AuditManifest, Finding, ImageRef, Settings
from tests.pipeline.audit.report.conftest import Open
from tests.pipeline.lake.helpers import build

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of such a lake."""
    folder = tmp_path_factory.mktemp("plain")
    build(LakeStore(str(folder / "lake")), 2)
    lake = open_lake(str(folder / "lake"))
    frame = make_frame(lake, Settings(method="xgrad_cam", targets="all", parts=2))
    state = State(frame)
    for unit in lake.commits:
        add_unit(state, lake, unit, None)
    evidence = Evidence(frame, state, lake, state.sample.table)
    rows = lake.maps.to_table().to_pylist()
    first = next(each for each in rows if each["method"] == "xgrad_cam" and each["mass"] and each["mass"] > 0)
    reference = ImageRef(
        image_id=first["image_id"],
        unit_id=first["unit_id"],
        target_class=first["target_class"],
        store_path=first["store_path"],
        store_row=first["store_row"],
    )
    finding = Finding(
        finding_id="degenerate", kind="degenerate", title="t", sentence="s", severity=5, n=1, images=(reference,)
    )
    manifest = AuditManifest(
        created="2026-03-01T09:30:00+00:00",
        lake=lake.store.uri,
        lake_run_id="run-1",
        lake_finished=False,
        commits_digest="5e" * 32,
        settings=frame.settings,
        method="xgrad_cam",
        layer="layer4",
        units=2,
        images=10,
        maps=48,
        counted=48,
        classes=len(evidence.classes),
        findings=1,
        regions=None,
        versions={},
    )
    path = folder / "report.html"
    path.write_bytes(write_report(evidence, [finding], groups_table(state.maps, frame), manifest))
    return path


def test_plain_lake(plain: Path, open_page: Open) -> None:
    page = open_page(plain)
    assert page.locator("#groups").count() == 0
    assert "too few" in page.locator(".tile").first.inner_text()
    assert page.inner_text("h1:visible").endswith("/lake")
    assert "not finished yet" in (page.text_content(".audited") or "")
    # The picture's file is not there, so the map is shown bare, in the colours of signed maps.
    assert "could not be had" in page.inner_text("#findings .notice")
    alternative = page.locator("#finding-1 img").first.get_attribute("alt") or ""
    assert alternative.startswith("Heatmap of image")
    page.click(".tile >> nth=0")
    page.wait_for_selector("#class-title:visible")
    assert "fewer than 30 give no estimate" in page.inner_text("#class-body")
