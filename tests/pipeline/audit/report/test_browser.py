"""The report in a real browser: what is there, what it does, and how it looks."""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.audit.report.conftest import Open
from tests.pipeline.audit.report.example import MARKED, NAMES, Example

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.xdist_group("report")

_SCREENSHOTS = Path("demo-output/report")


def texts(page: Page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def active(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def heading(page: Page, text: str, there: bool = True) -> None:
    """Wait until the page's first heading is ``text``, or another one: a change of place takes a moment."""
    page.wait_for_function(
        "([text, there]) => ([...document.querySelectorAll('h1')].find(h => h.checkVisibility()).textContent === text)"
        " === there",
        arg=[text, there],
    )


def pixels(canvas: Locator) -> np.ndarray[Any, Any]:
    """What a canvas shows, (h, w, 3) uint8."""
    uri = canvas.evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return np.asarray(picture.convert("RGB"))


def test_what_is_there(open_page: Open, example: Example) -> None:
    page = open_page()
    assert page.title() == "Audit of scenes-r50"
    assert texts(page, "h1:visible") == ["scenes-r50"]
    assert texts(page, "#overview > section > .section-head h2") == [
        "Findings",
        "Classes",
        "Groups",
        "Methods and limits",
    ]
    assert "3 serious findings" in page.inner_text(".verdict")
    assert page.locator(".finding").count() == len(example.findings)
    ranks = [int(text.split()[-1]) for text in texts(page, ".finding .severity")]
    assert ranks == sorted(ranks, reverse=True)
    first = page.locator("#finding-1")
    assert "something at the lower left corner" in first.inner_text()
    assert "the model uses it" in first.locator(".causal.used").inner_text()
    unused = page.locator(".causal.unused").inner_text()
    assert "present, but not used" in unused
    assert "the log-odds of the class falls by 0.02" in unused
    label = first.locator("svg.gauge").get_attribute("aria-label")
    assert label == "ratio ×25, 95% interval ×12 to ×53"
    assert page.locator(".tile").count() == len(NAMES)
    assert len(texts(page, ".forest caption")) == 2


def test_pictures(open_page: Open) -> None:
    page = open_page()
    first = page.locator("#finding-1 .montage")
    first.scroll_into_view_if_needed()
    images = first.locator("img")
    images.first.wait_for()
    # Each picture, and beside it the heatmap over it.
    assert images.count() == 2 * 9
    assert images.first.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        160,
        120,
    ]
    first.locator(".more").click()
    assert images.count() == 2 * 24
    plain, overlaid = (images.nth(place).get_attribute("src") for place in (0, 1))
    assert plain != overlaid
    assert (images.nth(1).get_attribute("alt") or "").startswith("Heatmap over image")
    colours = pixels(first.locator(".key canvas")).astype(int).sum(2)[0]
    assert (np.diff(colours) >= 0).mean() > 0.75 and colours[-1] > colours[0] + 500
    images.first.click()
    assert page.locator("#lightbox img").count() == 2
    assert "scenes/" in page.inner_text("#lightbox-title")
    page.keyboard.press("Escape")
    assert not page.locator("#lightbox").is_visible()


def test_maps_are_painted(open_page: Open) -> None:
    page = open_page()
    for canvas in page.locator("canvas.map:not(.zone)").all():
        assert len(np.unique(pixels(canvas).reshape(-1, 3), axis=0)) > 10
    zone = pixels(page.locator("#finding-1 canvas.zone"))
    assert zone.shape[:2] == (14, 14) and len(np.unique(zone.reshape(-1, 3), axis=0)) == 2
    # The class that leans on the border is bright at its edge, dark at the middle of its upper part.
    found = pixels(page.locator('canvas[aria-label="Mean map of husky"]')).astype(int).sum(2)
    high, wide = found.shape
    assert found[1, 1] > found[round(0.18 * high), wide // 2] + 100


def test_search_and_order_of_classes(open_page: Open) -> None:
    page = open_page()
    counts = [int(text.split()[-1]) for text in texts(page, ".tile .what span:first-child")]
    assert counts == sorted(counts, reverse=True)
    page.select_option("#class-sort", "border_enrichment")
    assert texts(page, ".tile .name")[0] == "husky"
    page.select_option("#class-sort", "corner_enrichment")
    values = [float(text.split()[-1]) for text in texts(page, ".tile .what span:last-child")]
    assert values == sorted(values, reverse=True)
    page.fill("#class-search", "SHIP")
    assert texts(page, ".tile .name") == ["container ship"]
    assert page.inner_text("#class-count") == "1 of 10 classes"
    page.fill("#class-search", "nothing like it")
    assert page.locator(".tile").count() == 0


def test_table_of_classes(open_page: Open) -> None:
    page = open_page()
    page.click("#view-table")
    assert page.get_attribute("#view-table", "aria-pressed") == "true"
    heads = page.locator("#class-table th[data-key]")
    assert [head.get_attribute("aria-sort") for head in heads.all()].count("descending") == 1
    page.click("#class-table th[data-key=name] button")
    assert texts(page, "#class-table tbody th") == sorted(NAMES, key=str.casefold)
    assert page.get_attribute("#class-table th[data-key=name]", "aria-sort") == "ascending"
    page.click("#class-table th[data-key=name] button")
    assert texts(page, "#class-table tbody th") == sorted(NAMES, key=str.casefold, reverse=True)
    assert page.get_attribute("#class-table th[data-key=name]", "aria-sort") == "descending"
    assert page.evaluate("document.activeElement.closest('th').dataset.key") == "name"
    page.click("#class-table th[data-key=energy] button")
    place = [head.get_attribute("data-key") for head in heads.all()].index("energy")
    energy = [float(text) for text in texts(page, f"#class-table tbody tr > :nth-child({place + 1})")]
    assert energy == sorted(energy, reverse=True)


def test_page_of_a_class(open_page: Open, example: Example) -> None:
    page = open_page(fragment=f"#class-{MARKED}")
    assert texts(page, "h1:visible") == ["container ship"]
    assert page.title().startswith("container ship")
    assert active(page) == "class-title"
    assert not page.locator("#overview").is_visible()
    about = [each for each in example.findings if each.target_class == MARKED]
    assert page.locator("#class-view .found a").count() == len(about)
    assert texts(page, "#class-body h2") == ["Findings", "Exemplars", "Parts", "Groups"]
    assert page.locator("#class-view .montage .shot").count() == 6
    cell = example.evidence.cell(MARKED)
    assert cell is not None
    assert texts(page, "#class-body .tiles dd")[1] == str(cell.rows)
    # Less of the evidence is on the object at the site with the mark, and the plot's table says so.
    site = page.locator("#class-view .forest", has_text="site")
    means = {
        name: float(mean)
        for name, mean in site.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [row.cells[0].textContent, row.cells[2].textContent])"
        )
    }
    assert means["east"] < min(means["north"], means["south"]) - 0.05
    page.click("#class-view .found a >> nth=0")
    heading(page, "scenes-r50")
    assert active(page) == "finding-1"
    page.go_back()
    heading(page, "container ship")
    page.click("#class-previous")
    heading(page, "container ship", there=False)
    page.keyboard.press("Escape")
    heading(page, "scenes-r50")


def test_page_of_an_unknown_class(open_page: Open) -> None:
    page = open_page(fragment="#class-999")
    assert "holds nothing about this class" in page.inner_text("#class-body")


def test_findings_are_filtered_and_ordered(open_page: Open, example: Example) -> None:
    page = open_page()
    page.select_option("#finding-kind", "shortcut")
    assert page.locator(".finding:visible").count() == 2
    page.fill("#finding-search", "school upper")
    assert page.locator(".finding:visible").count() == 1
    assert page.inner_text("#finding-count") == "1 of 12 shown"
    page.fill("#finding-search", "zebra")
    assert page.locator("#finding-none").is_visible()
    page.fill("#finding-search", "")
    page.select_option("#finding-kind", "")
    page.select_option("#finding-sort", "n")
    first = page.locator(".finding").first.get_attribute("data-number")
    assert example.findings[int(first or 0) - 1].n == max(each.n for each in example.findings)


def test_groups(open_page: Open) -> None:
    page = open_page()
    page.select_option("#group-measure", label="Corner enrichment")
    assert "corner enrichment" in page.locator("#group-plots thead").first.inner_text().lower()
    page.select_option("#group-class", label="container ship")
    rows = page.locator("#group-plots .forest", has_text="site").locator("tbody tr")
    assert texts(page, "#group-plots .forest >> nth=1 >> tbody th")[0] == "east"
    assert rows.locator("svg .whisker").count() == 4
    # The axis is as wide as the plot.
    plot, ticks = rows.first.locator(".plot"), page.locator("#group-plots .ticks").first
    assert plot.evaluate("e => e.offsetWidth") == pytest.approx(ticks.evaluate("e => e.offsetWidth"), abs=2)
    east, north = (float(rows.nth(i).locator("td").nth(1).inner_text()) for i in (0, 1))
    assert east > 1.5 * north


def test_keyboard(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.evaluate("addEventListener('hashchange', () => document.body.setAttribute('data-moved', ''))")
    page.keyboard.press("Enter")
    assert active(page) == "main"
    # The page's own listener moves the focus there, too, a little later: keys faster than a hand's would be undone.
    page.wait_for_selector("body[data-moved]")
    page.keyboard.press("j")
    # Findings are drawn when the page comes to them; the policy would refuse a function to wait for.
    page.locator("#finding-1:focus").wait_for()
    page.keyboard.press("j")
    page.locator("#finding-2:focus").wait_for()
    page.keyboard.press("k")
    assert active(page) == "finding-1"
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("j")
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    page.keyboard.press("/")
    assert active(page) == "jump"
    page.keyboard.type("ship")
    assert texts(page, "#jump-list li[aria-selected=true]")[0].startswith("container ship")
    page.keyboard.press("Enter")
    heading(page, "container ship")
    page.keyboard.press("k")
    heading(page, "container ship", there=False)


def test_focus_is_seen(open_page: Open) -> None:
    page = open_page()
    for _ in range(12):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth] })()"
        )
        assert style == ["solid", "2px"], page.evaluate("document.activeElement.outerHTML.slice(0, 80)")


def test_colours(open_page: Open) -> None:
    def paper(page: Page) -> int:
        return int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"))

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert paper(light) > 200 > 60 > paper(dark)
    light.keyboard.press("t")
    light.keyboard.press("t")
    assert light.inner_text("#theme") == "Dark"
    assert paper(light) < 60
    light.reload()
    light.wait_for_selector("html[data-ready]")
    assert paper(light) < 60
    light.click("#theme")
    assert light.inner_text("#theme") == "Auto"
    assert paper(light) > 200


@pytest.mark.parametrize("fragment", ["", f"#class-{MARKED}"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_others_need(open_page: Open, scheme: str, fragment: str) -> None:
    """The checks that axe makes first: names, headings, ids, tables, contrast."""
    page = open_page(fragment=fragment, color_scheme=scheme)
    page.locator(".montage:visible").first.scroll_into_view_if_needed()
    if not fragment:
        page.click("#view-table")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("main").count() == page.locator("body > header").count() == 1
    page.evaluate((Path(__file__).parent / "checks.js").read_text())
    for name in ("withoutAlternative", "nameless", "twice", "withoutScope", "withoutCaption", "faint"):
        assert page.evaluate(f"checks.{name}()") == [], name
    levels = page.evaluate("checks.headings()")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("fragment", ["", f"#class-{MARKED}"])
def test_narrow(open_page: Open, fragment: str) -> None:
    page = open_page(fragment=fragment, viewport={"width": 380, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") == 380


def test_print(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.locator("header.bar").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    empty = page.evaluate("[...document.querySelectorAll('[data-montage]')].filter(e => !e.childElementCount).length")
    assert empty == 0


def test_nothing_comes_from_elsewhere(open_page: Open, report: Path) -> None:
    """The policy refuses what the page itself would never do."""
    page = open_page(offline=True)
    assert (
        page.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    )
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    text = report.read_text()
    assert 'src="http' not in text and "@import" not in text and "url(" not in text


def test_the_policy_holds(browser: Browser, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.evaluate("fetch('data:text/plain,x').then(() => false, () => true)")
    added = """() => { const script = document.createElement('script');
        try { script.textContent = 'window.hacked = true'; document.body.append(script); } catch { }
        return window.hacked }"""
    assert page.evaluate(added) is None
    context.close()


def test_without_scripts(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert "scripts are switched off" in page.inner_text("noscript")
    assert "something at the lower left corner" in page.inner_text("#finding-1")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screenshots(open_page: Open, scheme: str) -> None:
    """Kept in ``demo-output/report``, to be looked at."""
    _SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    shots = {"summary": ("", 1360), "class": (f"#class-{MARKED}", 1360), "phone": ("", 380)}
    for name, (fragment, width) in shots.items():
        page = open_page(fragment=fragment, color_scheme=scheme, viewport={"width": width, "height": 900})
        page.wait_for_timeout(150)
        shot = page.screenshot(path=_SCREENSHOTS / f"{name}-{scheme}.png")
        assert len(shot) > 20_000
    page = open_page(color_scheme=scheme)
    page.locator("#finding-1").scroll_into_view_if_needed()
    page.locator("#finding-1 img").first.wait_for()
    page.screenshot(path=_SCREENSHOTS / f"all-{scheme}.png", full_page=True)


@pytest.mark.parametrize("name", ["classes", "methods", "finding-9"])
def test_links_lead_there(open_page: Open, name: str) -> None:
    """What is drawn later must not push the target away."""
    page = open_page(fragment=f"#{name}")
    page.wait_for_timeout(300)
    top = page.evaluate(f"document.getElementById('{name}').getBoundingClientRect().top")
    bottom = page.evaluate("innerHeight + scrollY >= document.documentElement.scrollHeight - 1")
    assert 0 <= top < 120 or (bottom and 0 <= top < 900)
