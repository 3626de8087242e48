"""The page without a browser: its numbers, its pictures, its size."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.audit.findings.base import image_refs
from pipeline.audit.report import page as page_module
from pipeline.audit.report import write_report
from pipeline.audit.report.limits import PAGE_BYTES, Limits
from pipeline.audit.report.montage import PROBE, SIDE, key_of, montage
from pipeline.audit.report.page import make_page
from pipeline.audit.report.sums import numbers_of
from schemas.audit import MEASURE_INDEX, Finding, ImageRef
from schemas.errors import InputError, LakeError
from tests.pipeline.audit.report.example import MARKED, NAMES, Example

pytestmark = pytest.mark.xdist_group("report")


def data_of(page: bytes) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.decode(), re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_one_file(report: Path) -> None:
    data = report.read_bytes()
    assert data.startswith(b"<!doctype html>")
    assert len(data) < 2_000_000
    text = data.decode()
    for tag, name in (("style", "style"), ("script", "script")):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(inside) == 1
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{name}-src &#39;sha256-{digest}&#39;" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text.split("<script")[0])
    assert ' style="' not in text


def test_numbers_are_those_of_the_state(example: Example) -> None:
    evidence = example.evidence
    numbers = numbers_of(evidence, example.groups, Limits())
    assert numbers.classes == list(range(len(NAMES)))
    cell, total = evidence.cell(MARKED), evidence.cell()
    assert cell is not None and total is not None
    energy = MEASURE_INDEX["energy"]
    assert numbers.total.n[0] == total.rows
    assert numbers.by_class.n[MARKED] == cell.rows
    assert numbers.by_class.mean[MARKED, energy] == pytest.approx(cell.mean(energy))
    low, high = np.nanpercentile(cell.resampled_means(energy), [2.5, 97.5])
    assert numbers.by_class.low[MARKED, energy] == pytest.approx(low)
    assert numbers.by_class.high[MARKED, energy] == pytest.approx(high)
    np.testing.assert_allclose(numbers.by_class.mean_map[MARKED], cell.mean_map())
    np.testing.assert_allclose(numbers.by_class.deviation_map[MARKED] ** 2, cell.variance_map())
    assert (numbers.by_class.right + numbers.by_class.wrong == numbers.by_class.n).all()
    for row, (place, group) in enumerate(numbers.cells):
        part = evidence.cell(numbers.classes[place], *numbers.groups[group])
        assert part is not None
        assert numbers.by_cell.n[row] == part.rows
        few = part.count(energy) < evidence.frame.settings.interval_from
        assert (
            np.isnan(numbers.by_cell.mean[row, energy])
            if few
            else numbers.by_cell.mean[row, energy] == (pytest.approx(part.mean(energy)))
        )
    assert int(numbers.total.flagged[0]) == 4  # the first map of each unit is zero


def test_limits_keep_what_findings_are_about(example: Example) -> None:
    numbers = numbers_of(example.evidence, example.groups, Limits(classes=3, cells=4, values=2), [MARKED])
    assert len(numbers.classes) == 3
    assert MARKED in numbers.classes
    assert numbers.classes_left_out == len(NAMES) - 3
    assert len(numbers.cells) == 4
    assert {numbers.classes[place] for place, _ in numbers.cells} == {MARKED}
    assert [attribute for attribute, _ in numbers.groups] == ["camera", "camera", "site", "site"]


def test_pictures_are_laid_over(example: Example) -> None:
    first = example.findings[0].images[:3]
    found = montage(example.evidence, first, most_bytes=100_000, most=10)
    assert [entry["kind"] for entry in found.entries] == ["overlay"] * 3
    entry = found.entries[found.places[key_of(first[0])]]

    def pixels(uri: str) -> np.ndarray[Any, Any]:
        picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert picture.size == (SIDE, SIDE * 3 // 4)
        return np.asarray(picture.convert("RGB"), np.float64)

    laid, plain = pixels(entry["overlay"]), pixels(entry["plain"])
    source = Image.open(io.BytesIO(example.evidence.lake.image_bytes(first[0].image_id)))
    assert np.abs(plain - np.asarray(source.convert("RGB"), np.float64)).mean() < 8
    # Outside the view nothing is laid over; the mark in the corner, which the map is on, is.
    assert np.abs(laid - plain)[:, :14].mean() < 6
    assert np.abs(laid - plain)[100:118, 26:50].mean() > 20


def test_where_pictures_cannot_be_had(example: Example) -> None:
    asked = []

    def fetch(row: Any) -> bytes:
        asked.append(row["image_id"])
        raise LakeError("the bucket <is> closed")

    page = example.report(fetch=fetch)
    data = data_of(page)
    assert {entry["kind"] for entry in data["pictures"]} == {"heatmap"}
    assert len(asked) == PROBE
    text = page.decode()
    assert "could not be had" in text
    assert "the bucket &lt;is&gt; closed" in text


def test_fetch_gives_the_pictures(example: Example) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 120), (0, 200, 0)).save(buffer, "PNG")
    found = montage(
        example.evidence,
        example.findings[0].images[:2],
        most_bytes=100_000,
        most=10,
        fetch=lambda row: buffer.getvalue(),
    )
    plain = Image.open(io.BytesIO(base64.b64decode(found.entries[0]["plain"].split(",")[1])))
    assert np.abs(np.asarray(plain.convert("RGB"), np.int64).mean((0, 1)) - [0, 200, 0]).max() < 4


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_pictures_are_no_end(example: Example, data: bytes) -> None:
    found = montage(
        example.evidence, example.findings[0].images[:2], most_bytes=100_000, most=10, fetch=lambda row: data
    )
    assert [entry["kind"] for entry in found.entries] == ["heatmap", "heatmap"]
    assert found.missing == 2
    assert found.reason


def test_a_store_that_raises_anything_is_no_end(example: Example) -> None:
    def fetch(row: Any) -> bytes:
        raise RuntimeError

    found = montage(example.evidence, example.findings[0].images[:1], most_bytes=100_000, most=10, fetch=fetch)
    assert [entry["kind"] for entry in found.entries] == ["heatmap"]
    assert "RuntimeError" in found.reason


def test_references_that_lead_nowhere(example: Example) -> None:
    lost = ImageRef(image_id="gone", unit_id="nowhere")
    bare = example.findings[0].images[0].model_copy(update={"store_path": None, "store_row": None})
    found = montage(example.evidence, [lost, bare], most_bytes=100_000, most=10)
    assert [entry["kind"] for entry in found.entries] == ["none", "picture"]


def test_pictures_stay_within_their_bytes(example: Example) -> None:
    every = image_refs(example.evidence.sample, most=60)
    found = montage(example.evidence, [*every, *every], most_bytes=60_000, most=1000)
    assert 0 < len(found.entries) < 60
    assert found.used <= 60_000
    assert len(json.dumps(found.entries)) <= 60_000 + 2 * len(found.entries) + 2
    assert found.left_out == 60 - len(found.entries)
    # The first ones can also be seen without the map.
    plain = [bool(entry["plain"]) for entry in found.entries]
    assert plain == sorted(plain, reverse=True)
    assert plain[0] and not plain[-1]


def test_the_page_has_a_bound(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts, many findings: what does not fit is left out, and the page says so."""
    monkeypatch.setattr(page_module, "PAGE_BYTES", 1_500_000)
    monkeypatch.setattr(page_module, "_MARGIN", 100_000)
    monkeypatch.setattr(page_module, "_PICTURES", 200_000)
    first = example.findings[0]
    long = {"sentence": "<é" * 5000, "title": "&" * 900}
    many = [first.model_copy(update=long | {"finding_id": f"f{i}", "severity": 50 - i / 20}) for i in range(900)]
    page = make_page(example.evidence, many, example.groups, example.manifest, None)
    assert len(page) <= 1_500_000
    data = data_of(page)
    assert 0 < len(data["findings"]) < 900
    assert f"{900 - len(data['findings'])} more findings of lower rank" in page.decode()
    assert data["pictures"]


def test_most_of_everything_fits() -> None:
    """The bounds of :class:`Limits`, taken together and encoded, leave room for pictures."""
    limits, measures, cells = Limits(), 14, 14 * 14
    numbers = 6 * measures
    packed = (
        limits.classes * (2 * cells + numbers + 2 * 2 * measures + 16 + 2 * 64)
        + limits.cells * (numbers + 16 + 8)
        + limits.cell_maps * (cells + 8)
    )
    assert packed * 4 / 3 + limits.classes * limits.name * 2 < PAGE_BYTES - 1_500_000


def test_no_finding(example: Example) -> None:
    text = write_report(example.evidence, [], example.groups, example.manifest).decode()
    assert "Nothing above the thresholds." in text
    assert "no proof that there is nothing" in text


def test_verdict_without_serious_findings(example: Example) -> None:
    mild = [each for each in example.findings if each.severity < 50]
    text = write_report(example.evidence, mild, example.groups, example.manifest).decode()
    assert "Nothing serious; 9 findings to look at." in text
    assert "no causal check shows that the model uses them" in text


def test_the_worst_comes_first_in_whatever_order(example: Example) -> None:
    turned: list[Finding] = example.findings[::-1]
    one = write_report(example.evidence, turned, example.groups, example.manifest)
    assert one == example.report()


def test_without_jinja(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'camlake\[audit\]'"):
        write_report(example.evidence, [], example.groups, example.manifest)
