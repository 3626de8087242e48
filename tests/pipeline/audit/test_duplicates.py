"""Equal images are found, the worst under different labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit.findings import duplicates
from pipeline.audit.findings.base import Evidence
from pipeline.audit.findings.duplicates import KIND
from pipeline.lake import Lake
from schemas.tables import IMAGES
from tests.pipeline.audit.evidence import find, make_evidence, tables


def evidence_of(contents: Sequence[object], labels: Sequence[int | None] | None = None, **more: Any) -> Evidence:
    """One image per entry; entries that are equal are equal images. None: an image that could not be read."""
    digests = [None if each is None else hashlib.sha256(str(each).encode()).digest() for each in contents]
    return of_digests(digests, labels, **more)


def of_digests(digests: Sequence[bytes | None], labels: Sequence[int | None] | None = None, **more: Any) -> Evidence:
    columns: dict[str, Any] = {
        "image_id": [f"image-{number:03d}" for number in range(len(digests))],
        "unit_id": ["unit"] * len(digests),
        "sha256": list(digests),
        "label": list(labels) if labels is not None else [0] * len(digests),
        "status": ["ok"] * len(digests),
    }
    rows = [pa.array(columns.get(field.name, [None] * len(digests)), field.type) for field in IMAGES]
    lake = tables(images=pa.table(rows, schema=IMAGES))
    evidence = make_evidence(np.zeros(1, np.int64), np.ones((1, 14, 14)), classes=5, lake=lake, **more)
    known = [each[:8] for each in digests if each is not None]
    # As a unit adds them.
    evidence.state.add_digests(np.frombuffer(b"".join(known), "<u8").astype(np.uint64))
    return evidence


def test_copies_and_conflicting_labels_are_told_apart() -> None:
    contents = [*range(90), 3, 3, 4, 5, None, None]
    labels = [*[0] * 90, 0, 0, 1, None, 0, 0]
    found = {each.finding_id: each for each in find(KIND, evidence_of(contents, labels))}
    assert set(found) == {"duplicates:labels", "duplicates:copies"}
    wrong, copies = found["duplicates:labels"], found["duplicates:copies"]
    assert [image.image_id for image in wrong.images] == ["image-004", "image-092"]
    assert ["'name-0'" in wrong.images[0].note, "'name-1'" in wrong.images[1].note] == [True, True]
    assert (wrong.effect, wrong.effect_name, wrong.n) == (2.0, "count", 94)
    assert wrong.sentence.startswith("1 picture is in the data more than once under different labels (2 images")
    assert [image.image_id for image in copies.images[:3]] == ["image-003", "image-090", "image-091"]
    assert {image.image_id for image in copies.images[3:]} == {"image-005", "image-093"}
    assert copies.effect == pytest.approx(4 / 94)
    assert copies.details == {"copies": 4, "pictures": 3, "looked_at": 1.0, "all_looked_up": True}
    assert wrong.severity > copies.severity


def test_images_that_differ_are_none() -> None:
    assert find(KIND, evidence_of([*range(50), None, None])) == []


def test_equal_beginnings_of_digests_are_not_enough() -> None:
    assert find(KIND, of_digests([b"12345678" + b"a" * 24, b"12345678" + b"b" * 24])) == []
    (found,) = find(KIND, of_digests([b"12345678" + each * 24 for each in (b"a", b"b", b"a")]))
    assert {image.image_id for image in found.images} == {"image-000", "image-002"}


def test_a_share_of_the_images_is_said_to_be_one() -> None:
    contents = [*range(400), *range(400)]
    (found,) = find(KIND, evidence_of(contents, digest_limit=2**62))
    assert 60 < found.details["pictures"] < 140
    assert found.effect == pytest.approx(0.5)
    assert "looked for in 25.0% of all images" in found.sentence
    assert found.details["looked_at"] == pytest.approx(0.25)


def test_what_is_looked_up_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_COPIES", 5)
    monkeypatch.setattr(duplicates, "_LOOKED_UP", 12)
    contents = [*["blank"] * 300, *range(40), *range(40)]
    labels = [*[0] * 340, *[1] * 40]
    found = {each.finding_id: each for each in find(KIND, evidence_of(contents, labels))}
    looked_up = sum(len(each.images) for each in found.values())
    assert 0 < looked_up <= 12
    assert found["duplicates:labels"].sentence.startswith("At least ")
    assert found["duplicates:labels"].details["all_looked_up"] is False


def test_one_picture_very_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_COPIES", 5)
    (found,) = find(KIND, evidence_of([*["blank"] * 300, 1, 2]))
    assert found.effect == pytest.approx(299 / 302)
    assert [image.image_id for image in found.images] == [f"image-{number:03d}" for number in range(4)]


def test_of_a_picture_no_more_copies_are_kept_than_asked() -> None:
    evidence = evidence_of([*["blank"] * 40, *[number // 2 for number in range(40)]])
    table = evidence.lake.images.to_table()
    lake = tables(images=pa.Table.from_batches(table.to_batches(max_chunksize=7)))
    wanted, counts = np.unique(evidence.state.digests, return_counts=True)
    quota = np.minimum(counts, 5)
    found = duplicates._look_up(
        Evidence(evidence.frame, evidence.state, cast(Lake, lake), evidence.sample), wanted, quota
    )
    assert sorted(map(len, found.pictures)) == [*[2] * 20, 5]


def test_reading_stops_when_all_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = evidence_of([1, 1, *range(2, 100)])
    batches = evidence.lake.images.to_table().to_batches(max_chunksize=10)
    read = []

    def some(**_: Any) -> Any:
        for batch in batches:
            read.append(len(batch))
            yield batch.select(["sha256", "image_id", "unit_id", "label"])

    monkeypatch.setattr(evidence.lake, "images", type("Images", (), {"to_batches": staticmethod(some)})())
    (found,) = find(KIND, evidence)
    assert len(found.images) == 2
    assert read == [10]
