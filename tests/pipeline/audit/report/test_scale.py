"""A thousand classes in ten groups: the page stays small, and quick in a browser."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.audit.report import page as page_module
from pipeline.audit.report.limits import PAGE_BYTES
from pipeline.audit.report.page import make_page
from pipeline.audit.report.sums import Numbers, Rows
from schemas.audit import GRID, MEASURES
from tests.pipeline.audit.report.conftest import Open
from tests.pipeline.audit.report.example import Example

pytestmark = pytest.mark.xdist_group("report")

CLASSES, GROUPS = 1000, 10


def rows(rng: np.random.Generator, n: int) -> Rows:
    mean = rng.random((n, len(MEASURES)))
    count = rng.integers(100, 3000, n)
    right = (count * 0.8).astype(np.int64)
    maps = rng.gamma(1.0, 1.0, (n, GRID, GRID))
    wide = rng.random((n, len(MEASURES))) / 20
    return Rows(
        count, mean, mean - wide, mean + wide, mean, mean, right, count - right, np.zeros(n, np.int64), maps, maps / 2
    )


def many(*given: Any) -> Numbers:
    rng = np.random.default_rng(0)
    groups = [("site" if i < GROUPS // 2 else "camera", f"value {i}") for i in range(GROUPS)]
    return Numbers(
        total=rows(rng, 1),
        classes=list(range(CLASSES)),
        by_class=rows(rng, CLASSES),
        groups=groups,
        by_group=rows(rng, GROUPS),
        cells=[(place, group) for place in range(CLASSES) for group in range(GROUPS)],
        by_cell=rows(rng, CLASSES * GROUPS),
    )


@pytest.fixture(scope="module")
def large(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of many classes, with as many findings as a page shows."""
    patch = pytest.MonkeyPatch()
    patch.setattr(page_module, "numbers_of", many)
    names = tuple(f"class with a name, {i}" for i in range(CLASSES))
    frame = dataclasses.replace(example.evidence.frame, class_names=names)
    evidence = dataclasses.replace(example.evidence, frame=frame)
    findings = [
        example.findings[i % 5].model_copy(update={"finding_id": f"f{i}", "severity": 90 - i / 4}) for i in range(300)
    ]
    page = make_page(evidence, findings, example.groups, example.manifest, None)
    patch.undo()
    path = tmp_path_factory.mktemp("large") / "report.html"
    path.write_bytes(page)
    return path


def test_size(large: Path) -> None:
    assert 2_000_000 < large.stat().st_size < PAGE_BYTES


def test_it_is_quick(large: Path, open_page: Open) -> None:
    """Bounds are ten times what a laptop takes."""
    start = time.perf_counter()
    page = open_page(large)
    assert time.perf_counter() - start < 15
    # Only a part of a large table is in the document.
    assert page.locator(".tile").count() == 60
    page.click("#view-table")
    assert page.locator("#class-table tbody tr").count() == 50
    spent = page.evaluate(
        """() => { const start = performance.now();
        for (const key of ['energy', 'name', 'n']) document.querySelector(`th[data-key=${key}] button`).click();
        document.querySelector('#class-search').value = 'name, 77';
        document.querySelector('#class-search').dispatchEvent(new Event('input'));
        return performance.now() - start }"""
    )
    assert spent < 3000
    assert page.inner_text("#class-count") == "11 of 1,000 classes"
    page.fill("#class-search", "")
    page.click("#class-pager button >> nth=1")
    assert "page 2 of 20" in page.inner_text("#class-pager")
    page.evaluate("location.hash = '#class-777'")
    page.wait_for_function("() => document.title.startsWith('class with a name, 777')")
    assert page.locator("#class-view .forest").count() == 2
    assert page.locator("#class-view .maps-row canvas").count() == 20
