"""Which images go into an export."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.audit.exports.choose import _Best, behind_findings, by_hash, class_indices
from pipeline.audit.frame import make_frame
from pipeline.audit.keys import keys_of, mixed
from pipeline.lake import Lake
from schemas.audit import Finding, ImageRef, Settings
from schemas.errors import InputError


def test_images_are_those_of_the_smallest_keys_of_each_class(pictured: Lake) -> None:
    frame = make_frame(pictured, Settings(seed=3))
    chosen = by_hash(pictured, frame, 20)
    table = pictured.maps.to_table(filter=(pc.field("method") == "grad_cam") & pc.field("is_predicted"))
    ids, target = table["image_id"].to_pylist(), table["target_class"].to_numpy().astype(np.int64)
    keys = mixed(keys_of(ids, 3), target)
    for each in range(4):
        rows = np.flatnonzero(target == each)
        smallest = {ids[row] for row in rows[np.argsort(keys[rows])][:5]}
        assert {choice.image_id for choice in chosen if choice.target_class == each} == smallest
    assert len(chosen) == 20 and all(choice.image_id.startswith(choice.unit_id) for choice in chosen)


def test_fewer_images_are_the_first_of_more(pictured: Lake) -> None:
    frame = make_frame(pictured, Settings())
    assert by_hash(pictured, frame, 7) == by_hash(pictured, frame, 50)[:7]
    assert len({choice.target_class for choice in by_hash(pictured, frame, 4)}) == 4


def test_only_asked_classes_and_targets_are_taken(pictured: Lake) -> None:
    frame = make_frame(pictured, Settings(targets="label"))
    chosen = by_hash(pictured, frame, 1000, {1, 2})
    wanted = pictured.images.to_table(filter=(pc.field("status") == "ok") & pc.field("label").isin([1, 2]))
    assert {choice.image_id for choice in chosen} == set(wanted["image_id"].to_pylist())


def test_an_image_with_several_targets_is_taken_once(pictured: Lake) -> None:
    chosen = by_hash(pictured, make_frame(pictured, Settings(targets="all")), 1000)
    assert max(Counter(choice.image_id for choice in chosen).values()) == 1
    assert len(chosen) == pictured.images.count_rows(filter=pc.field("status") == "ok")


def test_what_is_held_is_bounded_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    target = rng.choice(30, 60_000, p=rng.dirichlet(np.full(30, 0.2))).astype(np.int32)
    ids = [f"image-{number}" for number in range(len(target))]
    table = pa.table({"image_id": ids, "unit_id": ids, "target_class": target})
    held, whole = _Best(100, 0), _Best(10**9, 0)
    for batch in table.to_batches(max_chunksize=5000):
        held.add(batch)
        whole.add(batch)
        assert sum(map(len, held._parts)) <= 25_000
    assert held.table.equals(whole.table.slice(0, 100))


def finding(name: str, *images: tuple[str, int | None]) -> Finding:
    return Finding(
        finding_id=name,
        kind="shortcut",
        title=name,
        sentence=name,
        severity=1.0,
        n=1,
        images=tuple(ImageRef(image_id=image, unit_id="u", target_class=target) for image, target in images),
    )


def test_images_behind_findings_come_worst_first_and_keep_all_their_findings() -> None:
    first, second = finding("x", ("a", 1), ("b", None), ("a", 2)), finding("y", ("c", 1), ("a", 1), ("d", 3))
    chosen, named = behind_findings([first, second], 3)
    assert [(choice.image_id, choice.target_class) for choice in chosen] == [("a", 1), ("b", None), ("c", 1)]
    assert named == {"a": [first, second], "b": [first], "c": [second]}
    chosen, _ = behind_findings([first, second], 9, {3})
    assert [choice.image_id for choice in chosen] == ["d"]


def test_classes_are_names_or_indices(pictured: Lake) -> None:
    frame = make_frame(pictured, Settings())
    assert class_indices(["name-1", "3"], frame, 4) == {1, 3}
    with pytest.raises(InputError, match=r"no class 'name-9' \(did you mean name-"):
        class_indices(["name-9"], frame, 4)
    with pytest.raises(InputError, match="indices below 4"):
        class_indices(["4"], frame, 4)
