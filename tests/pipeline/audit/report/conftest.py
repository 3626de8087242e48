"""One example audit, its report, and a browser to look at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.pipeline.audit.report.example import Example, make_example

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Opens a page from disk; what it logs, asks for or throws ends up in :class:`Opened`.
Open = Callable[..., "Page"]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """An audit of a small lake."""
    return make_example(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="session")
def report(example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report as a file."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(example.report())
    return path


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[Open]:
    """Open the report, or another file; nothing may be logged, thrown or asked for by the time the test ends."""
    contexts: list[Any] = []
    faults: list[str] = []

    def open_it(path: Path = report, fragment: str = "", **options: Any) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1360, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        url = path.as_uri()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))

        def asked(request: Any) -> None:
            if not request.url.startswith(("data:", url)):
                faults.append(f"request: {request.url}")

        page.on("request", asked)
        page.goto(url + fragment)
        page.wait_for_selector("html[data-ready]", timeout=20_000)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not faults
