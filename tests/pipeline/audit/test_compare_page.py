"""The comparison's page: whole, safe, without the network, and in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit.compare_page import compare_page, picture
from pipeline.audit.compare_tables import (
    COMPARISON,
    PRIORS,
    Change,
    ClassDrift,
    ComparedLake,
    CompareManifest,
    PlaceChange,
    Shared,
    parquet,
)
from pipeline.audit.compare_words import sentence
from pipeline.audit.report.words import measure_label
from schemas.audit import GRID, MEASURES, Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
NAMES = ["ant", HOSTILE, "猫", "dog"]
SCREENSHOTS = Path("demo-output/report")


def lake(letter: str) -> ComparedLake:
    return ComparedLake(
        uri=f"s3://bucket/{letter}",
        run_id=f"run-{letter}",
        finished=letter == "a",
        commits_digest="0" * 64,
        model="torchvision:resnet18",
        model_digest="ab" * 32,
        method="grad_cam",
        layer="layer4",
        units=4,
        images=1000,
        maps=1200,
        counted=1000,
        regions=None,
    )


def drifted() -> ClassDrift:
    place = PlaceChange(
        distance=0.3, chance=0.03, more="at the top", less="in the centre", d=1.2, q=0.001, n_a=1, n_b=2
    )
    numbers: dict[str, Any] = {"mean_a": 0.5, "mean_b": 0.4, "difference": -0.1, "low": -0.12, "high": -0.08, "d": -0.8}
    changes = tuple(Change(measure=each.name, q=0.01, n_a=250, n_b=260, **numbers) for each in MEASURES[1:5])
    said = sentence(HOSTILE, place, changes)
    return ClassDrift(class_a=1, class_b=1, name=HOSTILE, severity=43.6, sentence=said, place=place, measures=changes)


def manifest(drifts: tuple[ClassDrift, ...], notes: tuple[str, ...] = ()) -> CompareManifest:
    return CompareManifest(
        created="2025-01-01T00:00:00+00:00",
        a=lake("a"),
        b=lake("b"),
        settings=Settings(targets="predicted"),
        matched_by="name",
        classes=len(NAMES),
        tested=len(NAMES),
        tests=36,
        only_a=(),
        only_b=(),
        without_maps=0,
        skipped=(),
        notes=notes,
        pairing="Paired by image id.",
        shared=Shared(images=900, images_a=1000, images_b=1000, maps=800, maps_by_id=800, correlation=0.91),
        drifts=drifts,
        versions={"camlake": "0.1.0"},
    )


def tables(classes: int = len(NAMES), few: bool = False) -> tuple[pa.Table, pa.Table]:
    rng = np.random.default_rng(0)
    comparison: dict[str, list[Any]] = {name: [] for name in COMPARISON.names}
    priors: dict[str, list[Any]] = {name: [] for name in PRIORS.names}
    for target in range(classes):
        about = {
            "class_a": target,
            "class_b": target,
            "name": NAMES[target % len(NAMES)],
            "n_a": 250,
            "n_b": 260 + target,
        }
        for number, measure in enumerate(MEASURES):
            d = 0.0 if few else float(rng.normal(0, 0.3))
            row = about | {
                "measure": measure.name,
                "comparable": True,
                "drift": target == 1 and 1 <= number < 5,
                "d": d,
            }
            row |= dict.fromkeys(("mean_a", "mean_b", "std_a", "std_b", "p", "q"), 0.5)
            row |= {"difference": d / 10, "low": d / 10 - 0.1, "high": d / 10 + 0.1}
            for name in COMPARISON.names:
                comparison[name].append(row[name])
        maps = rng.gamma(2, 0.5, (2, GRID * GRID))
        row = about | {"sample_a": 250, "sample_b": 260, "distance": 0.1, "sample_distance": 0.1 + target / 100}
        row |= {"chance": 0.03, "d": 0.4, "p": 0.5, "q": 0.5, "drift": target == 1, "matched": 100, "correlation": 0.9}
        row |= {"mean_a": maps[0], "mean_b": maps[1]}
        for name in PRIORS.names:
            priors[name].append(row[name])
    runs = "run-a", "run-b"
    return parquet(comparison, COMPARISON, runs)[0], parquet(priors, PRIORS, runs)[0]


def test_the_page_holds_everything_and_escapes_names() -> None:
    page = compare_page(manifest((drifted(),), (f"Only A's model has 1 class: {HOSTILE}.",)), *tables()).decode()
    assert "1 of 4 tested classes drifted." in page and "30% of the heatmaps" in page
    assert "1 more measure differs too" in page
    assert HOSTILE not in page and "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert page.count("data:image/png;base64,") == 3 * len(NAMES)
    assert page.count('<tr class="drifted">') == 4 and page.count('<th scope="row">') == len(NAMES) * len(MEASURES)
    assert "run-b (not finished)" in page and "r = 0.91" in page
    # Those that drifted come first.
    assert page.index('class="triple drifted"') < page.index('class="triple"')


def test_the_page_loads_nothing() -> None:
    page = compare_page(manifest((drifted(),)), *tables()).decode()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page) and "@import" not in page and "url(" not in page
    assert (
        'content="default-src &#39;none&#39;; img-src data:; style-src' in page
        and " style=" not in page
        and " onclick=" not in page
    )
    assert page.count("<script>") == 1


def test_the_page_of_many_classes_stays_small() -> None:
    table, priors = tables(classes=1000)
    page = compare_page(manifest((drifted(),) * 500), table, priors)
    text = page.decode()
    assert len(page) < 5_000_000
    assert f"{len(table) - 3000:,} more rows are in comparison.parquet." in text
    assert "300 more are in comparison.json." in text and "60 of 1,000 classes" in text
    assert compare_page(manifest((drifted(),) * 500), table, priors) == page


def test_a_page_without_drift_or_rows_says_so() -> None:
    page = compare_page(manifest(()), *tables(classes=0)).decode()
    assert "No drift above the thresholds in 4 tested classes." in page and "No class drifted above" in page
    assert "No class has 10 maps in both lakes." in page and "<table" not in page


def test_all_classes_together_come_first() -> None:
    table, priors = tables()
    rows = table.to_pylist()
    whole = [row | {"class_a": None, "class_b": None, "name": None} for row in rows[: len(MEASURES)]]
    for place, row in enumerate(whole):
        row |= {"difference": 0.1, "d": 0.1 + place / 100, "low": -0.01 if place == 3 else 0.05, "high": 0.15}
    table = pa.Table.from_pylist(whole + rows, table.schema)
    maps = np.random.default_rng(1).gamma(2, 0.5, (2, GRID * GRID))
    page = compare_page(manifest((drifted(),)), table, priors, maps).decode()
    summary = page[page.index('id="summary"') : page.index('id="drifts"')]
    assert "All compared classes together" in summary and summary.count("data:image/png;base64,") == 3
    told = re.findall(r'<tr><th scope="row">([^<]+)</th>', summary)
    labels = [measure_label(each.name) for each in MEASURES]
    # The largest standardised differences, but for the one whose interval holds 0.
    assert told == labels[:-7:-1] and labels[3] not in told
    assert "+0.1 (+0.05 to +0.15)" in summary


def test_where_nothing_was_tested_the_page_does_not_look_well() -> None:
    nothing = manifest(()).model_copy(update={"tested": 0, "tests": 0})
    page = compare_page(nothing, *tables(few=True)).decode()
    assert "Nothing could be tested: no class has 100 maps in both lakes." in page
    assert 'class="verdict band-minor"' in page


def test_maps_are_pictures_of_a_pixel_per_cell() -> None:
    import base64
    import io

    from PIL import Image

    values = np.zeros((GRID, GRID))
    values[0, 1], values[2, 0] = 1.0, -1.0
    shown = Image.open(io.BytesIO(base64.b64decode(picture(values, signed=True).split(",")[1]))).convert("RGB")
    more, less, none = (shown.getpixel(at) for at in ((1, 0), (0, 2), (5, 5)))
    assert shown.size == (GRID, GRID) and isinstance(more, tuple) and isinstance(less, tuple)
    assert more[0] > more[2] and less[2] > less[0] and isinstance(none, tuple) and min(none) > 220


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page in a headless Chromium; nothing may be logged, thrown or asked for."""
    path = tmp_path / "comparison.html"
    path.write_bytes(compare_page(manifest((drifted(),), ("Lake B is not finished.",)), *tables()))
    faults: list[str] = []
    with browser.new_context(viewport={"width": 1360, "height": 900}) as context:
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda each: None if each.url.startswith(("data:", "file:")) else faults.append(each.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=20_000)
        yield page
    assert not faults


@pytest.mark.xdist_group("report")
def test_sorting_search_and_colours_in_a_browser(opened: Page) -> None:
    def column(number: int) -> list[str]:
        return opened.locator(f"#measures tbody tr:visible > :nth-child({number})").all_inner_texts()

    def absolute(texts: list[str]) -> list[float]:
        return [abs(float(text.replace("−", "-"))) for text in texts]

    assert opened.locator(".triple img").count() == 12
    assert opened.locator(".triple img").first.evaluate("image => image.complete && image.naturalWidth") == GRID
    box = opened.locator(".triple img").first.bounding_box()
    assert box is not None and box["width"] > 100 and box["height"] == pytest.approx(box["width"], abs=1)
    head = opened.locator("#measures thead th").nth(6)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert absolute(column(7)) == sorted(absolute(column(7)), reverse=True)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and absolute(column(7)) == sorted(absolute(column(7)))
    opened.fill("#search", "猫")
    assert set(column(1)) == {"猫"} and len(column(1)) == len(MEASURES)
    assert opened.inner_text("#shown") == f"{len(MEASURES)} of {4 * len(MEASURES)} rows"
    opened.fill("#search", "")
    opened.check("#only")
    assert set(column(1)) == {HOSTILE} and len(column(1)) == 4
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    colours = []
    for mode in ("light", "dark"):
        opened.click("#theme")
        assert opened.inner_text("#theme").lower() == mode
        opened.evaluate("scrollTo(0, 0)")
        opened.screenshot(path=SCREENSHOTS / f"compare-{mode}.png", full_page=True)
        colours.append(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
