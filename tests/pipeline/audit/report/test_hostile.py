"""Names from the data are text, whatever they hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.pipeline.audit.report.conftest import Open
from tests.pipeline.audit.report.example import Example, make_example

pytestmark = pytest.mark.xdist_group("report")

NAMES = (
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "<!--<script>",
    "' onfocus='window.hacked = 3' autofocus x='",
    "{{ 7 * 7 }}{% raw %}${window.hacked = 4}",
    "\u202egnp.exe\x00\x07 \U0001f680 \u2028 &lt;b&gt;",
)
SITES = ("<b>east</b>", "</option><option>", "&amp;\u2029")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The example with names that attack the page."""
    prefix = "<svg onload=window.hacked=5>"
    return make_example(tmp_path_factory.mktemp("hostile"), NAMES, SITES, prefix, units=2, images=250)


def test_names_are_text(hostile: Example, open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_bytes(hostile.report())
    page = open_page(path)
    page.click("#view-table")
    page.select_option("#group-class", index=1)
    for number in range(len(NAMES)):
        page.evaluate(f"location.hash = '#class-{number}'")
        page.wait_for_function(f"() => document.title.includes({json.dumps(NAMES[number][:8])})")
        assert page.inner_text("#class-title") == NAMES[number].replace("\x00", "\ufffd").replace("\x07", "\ufffd")
    page.evaluate("location.hash = '#findings'")
    page.locator("#finding-1").scroll_into_view_if_needed()
    page.locator("#finding-1 img").first.click()
    assert "<svg onload" in page.inner_text("#lightbox-title")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("</script>")
    assert page.locator("#jump-list li").first.inner_text().startswith("</script><script>window.hacked = 1")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img[src=x], main b:text-is('east'), body svg[onload]").count() == 0


def test_markup(hostile: Example) -> None:
    """What the browser test sees, seen without one."""
    text = hostile.report().decode()
    assert text.count("</script>") == 2
    assert text.count("<script") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert not set("<>&\u2028\u2029") & set(data[1])
    assert json.loads(data[1])["classes"]["names"][0] == NAMES[0]
    assert "<img src=x" not in text
    assert "<svg onload" not in text
    assert "\x00" not in text
    assert "49" not in "".join(json.loads(data[1])["classes"]["names"])
