"""Index images, scores, codes, the labels table and names, each against an independent reader or by hand."""

from __future__ import annotations

import ast
import io
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from pipeline.pseudolabels.labels import ClassScore, ImageLabels
from pipeline.pseudolabels.names import check_plan, mask_name, mask_names
from pipeline.pseudolabels.png import decode_index, encode_confidence, encode_index, ignore_value, index_dtype
from pipeline.pseudolabels.rle import components, decode_mask, encode_labels, encode_mask
from pipeline.pseudolabels.soft import decode_soft, encode_soft
from pipeline.pseudolabels.table import labels_table
from schemas.errors import InputError
from schemas.job import Source
from schemas.pseudolabels import LABELS
from schemas.unit import Unit


def picture(seed: int = 0, high: int = 4, size: tuple[int, int] = (13, 17)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, high, (5, 5))
    return np.kron(coarse, np.ones((4, 4), int))[: size[0], : size[1]]


def test_palette_changes_no_id() -> None:
    index = np.arange(256, dtype=np.uint8).reshape(8, 32)
    plain, coloured = (encode_index(index, palette) for palette in ("none", "voc"))
    for data, mode in ((plain, "L"), (coloured, "P")):
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), index)
        np.testing.assert_array_equal(decode_index(data), index)
    with Image.open(io.BytesIO(coloured)) as image:
        # VOC's published colours: aeroplane, bicycle, bird, person, void.
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert colours[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


def test_many_classes_have_16_bits() -> None:
    assert index_dtype(254) == np.uint8 and index_dtype(255) == np.uint16
    assert (ignore_value(np.uint8), ignore_value(np.uint16)) == (255, 65535)
    with pytest.raises(InputError, match="palette"):
        index_dtype(1000, "voc")
    index = np.array([[0, 255, 256], [1000, 65534, 65535]], np.uint16)
    data = encode_index(index)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), index)
    np.testing.assert_array_equal(decode_index(data), index)
    with pytest.raises(ValueError):
        encode_index(index, "voc")
    with pytest.raises(ValueError):
        encode_index(index.astype(np.int64))


def test_decode_refuses_what_holds_no_ids() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="colours"):
        decode_index(buffer.getvalue())
    with pytest.raises(ValueError, match="no PNG"):
        decode_index(b"GIF89a" + bytes(40))


def test_confidence_is_in_steps() -> None:
    data = encode_confidence(np.array([[0.0, 0.5, 1.0, 1.7, np.nan]], np.float32))
    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [[0, 128, 255, 255, 0]]


def test_soft_scores_come_back() -> None:
    scores = np.random.default_rng(0).random((3, 4, 5), np.float32)
    data = encode_soft(scores, [7, 300])
    assert data == encode_soft(scores, [7, 300])
    with np.load(io.BytesIO(data)) as archive:
        assert archive["scores"].dtype == np.float16 and archive["ids"].tolist() == [0, 7, 300]
    found, ids = decode_soft(data)
    assert ids == (7, 300)
    np.testing.assert_allclose(found, scores, atol=2**-11)
    with pytest.raises(ValueError):
        encode_soft(scores, [7])
    for damaged in (b"no archive", data[:-30]):
        with pytest.raises(ValueError, match="archive"):
            decode_soft(damaged)


@given(st.integers(0, 10_000), st.integers(1, 5), st.tuples(st.integers(1, 19), st.integers(1, 19)))
@settings(max_examples=60, deadline=None)
def test_codes_are_those_of_pycocotools(seed: int, high: int, size: tuple[int, int]) -> None:
    index = np.random.default_rng(seed).integers(0, high + 1, size)
    found = encode_labels(index)
    assert set(found) == set(np.unique(index)) - {0}
    for label, coded in found.items():
        mask = index == label
        expected = coco.encode(np.asfortranarray(mask, np.uint8))
        assert coded.counts == expected["counts"].decode()
        assert coded.area == coco.area(expected) == mask.sum()
        x, y, width, height = coco.toBbox(expected)
        assert coded.box == (x, y, x + width, y + height)
        assert encode_mask(mask) == coded.counts
        np.testing.assert_array_equal(decode_mask(coded.counts, *size), mask)
    assert encode_labels(index, counts=False) == {k: v._replace(counts=None) for k, v in found.items()}


def test_components_by_size() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 0]], bool)
    numbers, count = components(mask)
    assert count == 4
    assert numbers.tolist() == [[3, 0, 0, 2], [0, 0, 2, 0], [0, 0, 0, 0], [4, 0, 1, 1], [0, 0, 1, 0]]
    assert components(np.zeros((3, 3), bool))[1] == 0


CLASSES = (ClassScore(2, "cat", "label", 0.75), ClassScore(9, "dog", "threshold", 0.5))


def labels(index: np.ndarray, confidence: np.ndarray, place: int = 1) -> ImageLabels:
    return ImageLabels(place, index.astype(np.uint8), CLASSES, confidence.astype(np.float32))


def test_table_of_classes_and_components() -> None:
    index = np.array([[2, 2, 0, 255], [0, 0, 0, 2], [9, 0, 0, 2]])
    confidence = np.array([[0.5, 0.7, 0.1, 0.9], [0.1, 0.1, 0.1, 1.0], [0.25, 0.1, 0.1, 0.4]])
    ids, paths = ["a", "b"], [None, "masks/b.png"]
    table = labels_table("u", [labels(index, confidence)], ids, paths)
    assert table.schema == LABELS
    cat, dog = table.to_pylist()
    assert (cat["image_id"], cat["unit_id"], cat["mask_path"]) == ("b", "u", "masks/b.png")
    assert (cat["label_id"], cat["label_name"], cat["target_kind"], cat["probability"]) == (2, "cat", "label", 0.75)
    assert (cat["area"], cat["x0"], cat["y0"], cat["x1"], cat["y1"], cat["component"]) == (4, 0, 0, 4, 3, 0)
    assert cat["score"] == pytest.approx((0.5 + 0.7 + 1.0 + 0.4) / 4)
    assert (dog["area"], dog["score"]) == (1, 0.25)
    np.testing.assert_array_equal(decode_mask(cat["rle_counts"], 3, 4), index == 2)
    parts = labels_table("u", [labels(index, confidence)], ids, paths, "component").to_pylist()
    assert [(row["label_id"], row["component"], row["area"]) for row in parts] == [(2, 0, 2), (2, 1, 2), (9, 0, 1)]
    assert [row["score"] for row in parts] == pytest.approx([0.6, 0.7, 0.25])
    assert [(row["x0"], row["y0"], row["x1"], row["y1"]) for row in parts[:2]] == [(0, 0, 2, 1), (3, 1, 4, 3)]
    joined = sum(decode_mask(row["rle_counts"], 3, 4).astype(int) for row in parts[:2])
    np.testing.assert_array_equal(joined, index == 2)
    plain = labels_table("u", [labels(index, confidence)], ids, paths, "none").to_pylist()
    assert [row["rle_counts"] for row in plain] == [None, None] and [row["area"] for row in plain] == [4, 1]
    with pytest.raises(ValueError, match="no mask path"):
        labels_table("u", [labels(index, confidence, 0)], ids, paths)


@pytest.mark.parametrize("mode", ["none", "class", "component"])
def test_class_without_pixels_has_a_row(mode: str) -> None:
    index, confidence = np.full((3, 4), 255), np.full((3, 4), 0.2)
    rows = labels_table("u", [labels(index, confidence, 0)], ["a"], ["masks/a.png"], mode).to_pylist()
    assert [(row["label_id"], row["area"], row["score"], row["x1"]) for row in rows] == [(2, 0, 0, 0), (9, 0, 0, 0)]
    assert labels_table("u", [], [], [], mode).schema == LABELS


def test_names_mirror_folders() -> None:
    names = mask_names(["cats/1.jpg", "cats/1.b.JPEG", "2.txt", "träume/ä.png"], mirrored=True)
    assert [name.stem for name in names] == ["cats/1", "cats/1.b", "2.txt", "träume/ä"]
    assert mask_name("shard-0/00.jpg", mirrored=False).stem == "shard-0/00.jpg"
    assert mask_name("s3://b/x.jpg", mirrored=False).stem == "s3%3A%2F/b/x.jpg"
    assert mask_name("a#2?", mirrored=False).stem == "a%232%3F"
    assert mask_name(".hidden/x ", mirrored=False).stem == "%2Ehidden/x%20"
    assert mask_name("x.png/y", mirrored=False).stem == "x%2Epng/y"


@pytest.mark.parametrize(
    "image_id", ["/etc/passwd", "../x.jpg", "a/../../x", "a/./b", "a//b", "", "a/", "..", "file:///x", "x" * 300]
)
def test_names_stay_in_the_folder(image_id: str) -> None:
    for mirrored in (False, True):
        name = mask_name(image_id, mirrored=mirrored)
        assert name.stem is None and name.reason is not None and "source.id" in name.reason


@given(st.lists(st.text(alphabet="a.%/:# Ä\\\n\x00", min_size=1, max_size=8), min_size=2, max_size=30, unique=True))
@settings(max_examples=200, deadline=None)
def test_names_of_different_ids_differ(ids: list[str]) -> None:
    stems = [stem for stem in (mask_name(each, mirrored=False).stem for each in ids) if stem is not None]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        assert not stem.startswith("/") and not {"", ".", ".."} & set(stem.split("/"))
        assert not set(stem) & set("\\\n\x00:#") and stem == stem.strip()


def test_names_that_meet_are_refused() -> None:
    first, second = mask_names(["a.jpg", "a.png"], mirrored=True)
    assert first.stem == "a" and second.stem is None and second.reason is not None and "'a.jpg'" in second.reason
    assert [name.stem for name in mask_names(["a.jpg", "a.png"], mirrored=False)] == ["a.jpg", "a.png"]

    def plan() -> Iterable[Unit]:
        yield Unit("0", 0, "/data/x", members=("b/1.jpg", "a-1.jpg", "A.jpg"))
        yield Unit("1", 1, "/data/x", members=("a.jpg", "b/1.png"))

    with pytest.raises(InputError, match=r"'b/1.jpg' and 'b/1.png' would have the same mask, 'b/1.png'"):
        check_plan(plan, Source(uri="/data/x", format="folder"))
    check_plan(lambda: list(plan())[:1], Source(uri="/data/x", format="folder"))
    check_plan(plan, Source(uri="/data/x", format="folder", id="key"))


def test_headers_are_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # CPython 3.11's parser fails now and then in several threads at once, and NumPy's headers are Python.
    data = encode_soft(np.zeros((2, 3, 4), np.float32), [1])
    inside, most, parse = 0, 0, ast.literal_eval

    def slow(text: str) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(4) as pool:
        assert all(ids == (1,) for _, ids in pool.map(decode_soft, [data] * 8))
    assert most == 1
