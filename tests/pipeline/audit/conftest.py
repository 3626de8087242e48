"""Fixtures of the audit's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from schemas.registries import FINDINGS
from tests.browser import NoBrowserError, find

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where there is none."""
    try:
        found = find()
    except NoBrowserError as error:
        pytest.skip(str(error))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found.program, env=os.environ | found.environment, args=_ARGUMENTS
        )
        yield started
        started.close()


@pytest.fixture
def one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the kind of finding of the tests, and no report: both have tests of their own."""
    for name in list(FINDINGS):
        monkeypatch.delitem(FINDINGS, name)
    monkeypatch.setitem(FINDINGS, "degenerate", "tests.pipeline.audit.kinds")
    monkeypatch.setattr("pipeline.audit.run.write_report", lambda *given: b"<!doctype html>")
