"""Labels against true masks: every figure against a loop over pixels, or by hand."""

from __future__ import annotations

import json
from collections import Counter as Tally
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from jobs.evaluate_labels import evaluate
from pipeline.lake import Lake, LakeStore
from pipeline.pseudolabels.collection import LabelLake, open_labels
from pipeline.pseudolabels.confusion import IGNORED, Confusion, class_results, totals
from pipeline.pseudolabels.evaluate import Counted, Counter, Coverage, pairs_of, spread
from pipeline.pseudolabels.evaluation import Evaluation
from pipeline.pseudolabels.png import encode_index
from pipeline.pseudolabels.sweep import POWERS, THRESHOLDS, Sweep, best_of, threshold_of
from pipeline.pseudolabels.trainset import export_trainset
from pipeline.pseudolabels.truth import FOREIGN, open_truth
from schemas.errors import InputError, LakeError

if TYPE_CHECKING:
    from tests.s3_server import S3Store

SIZES = [(11, 17), (20, 9), (6, 6), (13, 13), (8, 30)]


def write(folder: Path, images: list[np.ndarray], classes: dict[int, str] | None = None, palette: str = "none") -> Path:
    for number, index in enumerate(images):
        path = folder / "sub" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_index(index, palette))
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def drawn(seed: int, ids: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(np.array(ids, np.uint8), size) for size in SIZES]


def compared(labels: Path, truth: Path, **how: object) -> Evaluation:
    opened = open_labels(str(labels))
    known = {name: how.pop(name) for name in ("ignore", "unknown") if name in how}
    masks = open_truth(str(truth), opened, **known)
    return evaluate(opened, masks, str(truth), missing=how.pop("missing", "error"), **how)


def test_every_pixel_is_counted_once(tmp_path: Path) -> None:
    labels, truth = drawn(0, [0, 1, 2, 3, 255]), drawn(1, [0, 1, 2, 7, 255])
    found = compared(write(tmp_path / "labels", labels, palette="voc"), write(tmp_path / "truth", truth))
    tally: Tally[tuple[int, int]] = Tally()
    for one, two in zip(truth, labels, strict=True):
        tally.update((int(a), -1 if b == 255 else int(b)) for a, b in zip(one.flat, two.flat, strict=True) if a != 255)
    assert found.counted.confusion.pairs == dict(tally)
    assert found.counted.confusion.ignored == sum(int((each == 255).sum()) for each in truth)
    ious, left_out, over = [], [], []
    for each in (0, 1, 2, 3, 7):
        hit = tally[each, each]
        true = sum(count for (a, _), count in tally.items() if a == each)
        claimed = sum(count for (_, b), count in tally.items() if b == each)
        ious.append(hit / (true + claimed - hit))
        left_out.append(hit / (true - tally[each, -1] + claimed - hit))
        if claimed:
            over.append(1 - hit / claimed)
    assert found.totals.miou == pytest.approx(np.mean(ious), abs=1e-12)
    assert found.totals.miou_left_out == pytest.approx(np.mean(left_out), abs=1e-12)
    assert found.totals.miou_foreground == pytest.approx(np.mean(ious[1:]), abs=1e-12)
    assert found.totals.over == pytest.approx(np.mean(over), abs=1e-12)
    hits, pixels = sum(tally[each, each] for each in range(4)), sum(tally.values())
    assert found.totals.accuracy == pytest.approx(hits / pixels, abs=1e-12)
    missed = sum(count for (_, b), count in tally.items() if b == -1)
    assert found.totals.accuracy_left_out == pytest.approx(hits / (pixels - missed), abs=1e-12)
    document = found.document()
    assert document["pixels"] == pixels and document["pixels_ignored_by_labels"] == missed
    assert f"{found.totals.miou:.4f}" in "\n".join(found.lines())
    files = found.files()
    (tmp_path / "m.parquet").write_bytes(files["confusion.parquet"])
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert {(row["true_id"], row["label_id"]): row["pixels"] for row in rows} == dict(tally)


def test_figures_by_hand() -> None:
    confusion = Confusion()
    confusion.add(np.array([[0, 0, 1, 1, 1, 2, -1]]), np.array([[0, 1, 1, -1, 0, 1, 2]]))
    background, one, two = class_results(confusion.pairs, str)
    assert (one.true_positives, one.false_positives, one.false_negatives, one.left_out) == (1, 2, 1, 1)
    assert (one.iou, one.iou_left_out, one.precision, one.recall) == (1 / 5, 1 / 4, 1 / 3, 1 / 3)
    assert (two.iou, two.precision, two.recall) == (0.0, None, 0.0)
    assert background.iou == 1 / 3 and confusion.ignored == 1
    assert totals([background, one, two]).miou == pytest.approx((1 / 3 + 1 / 5 + 0) / 3)


def test_parts_merge_to_the_whole() -> None:
    truth, labels = drawn(2, [0, 1, 5]), drawn(3, [0, 1, 5])
    whole, halves = Confusion(), [Confusion(), Confusion()]
    for number, (one, two) in enumerate(zip(truth, labels, strict=True)):
        for each in (whole, halves[number % 2]):
            each.add(one.astype(np.int32), two.astype(np.int32))
    halves[1].merge(halves[0])
    assert halves[1] == whole


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels", [np.array([[0, 1, 2, 2]], np.uint8)], {1: "Cat", 2: "dog"})
    truth = write(tmp_path / "truth", [np.array([[0, 9, 4, 6]], np.uint8)], {4: "dog", 9: "cat", 6: "cow"})
    found = compared(labels, truth)
    assert found.counted.confusion.pairs == {(0, 0): 1, (1, 1): 1, (2, 2): 1, (FOREIGN + 6, 2): 1}
    assert [each.name for each in found.classes] == ["background", "Cat", "dog", "cow"]
    found = compared(labels, truth, unknown="ignore")
    assert found.counted.confusion.pairs == {(0, 0): 1, (1, 1): 1, (2, 2): 1}
    assert found.counted.confusion.ignored == 1
    (truth / "classes.json").write_text('{"4": "horse", "6": "cow"}')
    with pytest.raises(
        InputError, match=r"no class of .* \(horse, cow, \.\.\.\) has the name of a class of the labels"
    ):
        compared(labels, truth)
    (truth / "classes.json").write_text('{"4": "dog"}')
    with pytest.raises(InputError, match=r"sub/0.png' has pixels of 9, which the truth's classes.json does not name"):
        compared(labels, truth)


def test_wide_ids_and_other_ignore_values(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels", [np.array([[0, 300, 255, 65535]], np.uint16)])
    truth = write(tmp_path / "truth", [np.array([[0, 300, 255, 7]], np.uint16)])
    pairs = compared(labels, truth).counted.confusion.pairs
    assert pairs == {(0, 0): 1, (300, 300): 1, (255, 255): 1, (7, IGNORED): 1}
    assert compared(labels, truth, ignore=7).counted.confusion.ignored == 1


def test_images_of_one_side(tmp_path: Path) -> None:
    images = drawn(4, [0, 1])
    labels, truth = write(tmp_path / "labels", images[:4]), write(tmp_path / "truth", images)
    with pytest.raises(InputError, match=r"0 images have labels and no true mask, 1 a true mask .* \(such as sub/4\)"):
        compared(labels, truth)
    found = compared(labels, truth, missing="skip")
    assert (found.counted.images, found.coverage.without_labels, found.totals.miou) == (4, 1, 1.0)
    (truth / "sub" / "0.png").unlink()
    with pytest.raises(InputError, match=r"1 images have labels and no true mask, 1 a .* \(such as sub/0\); .* the 3"):
        compared(labels, truth)
    write(truth, [np.zeros((5, 5), np.uint8)])
    with pytest.raises(InputError, match=r"'sub/0' .* are of 17 x 11 pixels, and its true mask .* of 5 x 5"):
        compared(labels, truth, missing="skip")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no index images"):
        compared(labels, tmp_path / "none")
    (tmp_path / "none" / "x.png").write_bytes(encode_index(images[0]))
    with pytest.raises(InputError, match=r"none of its 1 masks is of an image of .* \(such as sub/"):
        compared(labels, tmp_path / "none")
    with pytest.raises(InputError, match="neither a lake of labels nor index images"):
        open_labels(str(tmp_path / "nowhere"))
    (labels / "sub" / "0.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"sub/0.png' is no index image"):
        compared(labels, truth, missing="skip")


def test_truth_of_the_last_part_of_the_name(tmp_path: Path) -> None:
    labels = write(tmp_path / "labels", drawn(5, [0, 1]))
    truth = tmp_path / "truth"
    truth.mkdir()
    for path in (labels / "sub").iterdir():
        (truth / path.name).write_bytes(path.read_bytes())
    assert compared(labels, truth).totals.miou == 1.0
    (labels / "other").mkdir()
    (labels / "other" / "1.png").write_bytes((truth / "1.png").read_bytes())
    with pytest.raises(InputError, match="'1' is the true mask of two images"):
        compared(labels, truth)


def test_coco_is_drawn_as_pycocotools_draws_it(tmp_path: Path) -> None:
    height, width = 40, 50
    square = [[5.0, 5.0, 35.0, 5.0, 35.0, 30.0, 5.0, 30.0]]
    triangle = [[10.2, 8.1, 30.7, 12.4, 14.9, 27.8]]
    small = np.zeros((height, width), np.uint8, order="F")
    small[33:38, 40:48] = 1
    code = coco.encode(small)
    document = {
        "images": [{"id": 1, "file_name": "train/a.jpg", "width": width, "height": height}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "segmentation": triangle, "bbox": [10, 8, 21, 20]},
            {"id": 2, "image_id": 1, "category_id": 3, "segmentation": square, "bbox": [5, 5, 30, 25]},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 3,
                "iscrowd": 1,
                "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
            },
        ],
    }
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(document))
    expected = np.zeros((height, width), np.uint8)
    for category, segmentation in ((3, square), (18, triangle)):
        merged = coco.merge(coco.frPyObjects(segmentation, height, width))
        with pytest.warns(DeprecationWarning):  # of pycocotools with NumPy 2
            expected[coco.decode(merged).astype(bool)] = category
    expected[small > 0] = 3
    labels = tmp_path / "labels"
    labels.mkdir()
    Image.fromarray(expected).save(labels / "a.png")
    assert compared(labels, truth).counted.confusion.pairs == {
        (0, 0): int((expected == 0).sum()),
        (3, 3): int((expected == 3).sum()),
        (18, 18): int((expected == 18).sum()),
    }
    (labels / "classes.json").write_text('{"18": "car", "3": "dog"}')
    assert set(compared(labels, truth).counted.confusion.pairs) == {(0, 0), (18, 3), (3, 18)}
    del document["annotations"][0]["segmentation"]
    truth.write_text(json.dumps(document))
    with pytest.raises(InputError, match="no category or no segmentation"):
        compared(labels, truth)
    with pytest.raises(InputError, match="a COCO file has none"):
        compared(labels, truth, ignore=3)


def test_sweep_is_every_threshold_by_argmax() -> None:
    rng = np.random.default_rng(7)
    truth = rng.integers(-1, 3, (9, 14)).astype(np.int32)
    scores = rng.random((2, 9, 14), np.float32)
    scores[0, :2] = np.float32(0.15)  # equal to a threshold: background
    scores[1, :2] = 0
    halves = [Sweep(), Sweep()]
    halves[0].add(truth[:4], scores[:, :4], (1, 2))
    halves[1].add(truth[4:], scores[:, 4:], (1, 2))
    halves[0].merge(halves[1])
    points = {(point.rule, point.value): point.totals for point in halves[0].points(str)}
    assert len(points) == len(THRESHOLDS) + len(POWERS) == 92
    best = scores.max(0)
    for (rule, value), found in points.items():
        background = np.full_like(best, value) if rule == "constant" else (1 - best) ** np.float32(value)
        confusion = Confusion()
        confusion.add(truth, np.concatenate([background[None], scores]).argmax(0).astype(np.int32))
        assert found == totals(class_results(confusion.pairs, str)), (rule, value)
    top = best_of(halves[0].points(str))
    assert top is not None and top.totals.miou == max(each.miou or 0 for each in points.values())
    for power in (1.0, 4.0, 32.0):
        assert threshold_of(power) == pytest.approx((1 - threshold_of(power)) ** power, abs=1e-14)


def test_image_without_classes_is_background() -> None:
    sweep = Sweep()
    sweep.add(np.array([[0, 1]], np.int32), np.empty((0, 1, 2), np.float32), ())
    assert sweep.at(0.0) == {(0, 0): 1, (1, 0): 1}


def test_ray_counts_the_same(tmp_path: Path, local_ray: None) -> None:
    labels = open_labels(str(write(tmp_path / "labels", drawn(0, [0, 1, 255]))))
    truth = open_truth(str(write(tmp_path / "truth", drawn(1, [0, 1]))), labels)
    parts = [[pair] for part in pairs_of(labels, truth, "error", Coverage()) for pair in part]
    here, there = (
        spread(Counter(labels, truth, False), parts, Counted(), workers=workers, threads=2) for workers in (0, 2)
    )
    assert here == there and here.images == len(SIZES)
    LakeStore(str(tmp_path / "truth")).put("sub/3.png", b"damaged")
    with pytest.raises(InputError, match=r"sub/3.png' is no index image"):
        spread(Counter(labels, truth, False), parts, Counted(), workers=2, threads=2)


def test_object_stores(tmp_path: Path, s3_store: S3Store) -> None:
    images = drawn(4, [0, 1, 2])
    for name in ("labels/masks", "truth"):
        for number, index in enumerate(images):
            s3_store.put(f"{name}/sub/{number}.png", encode_index(index))
    # Beside the masks, and in their folder.
    s3_store.put("labels/classes.json", b'{"1": "cat", "2": "dog"}')
    s3_store.put("truth/classes.json", b'{"2": "cat", "1": "dog"}')
    labels = open_labels(s3_store.url("labels/masks"), s3_store.storage_options)
    truth = open_truth(s3_store.url("truth"), labels, s3_store.storage_options)
    found = evaluate(labels, truth, "truth", missing="error")
    assert found.counted.images == len(SIZES) and set(found.counted.confusion.pairs) == {(0, 0), (1, 2), (2, 1)}


def test_nothing_is_labelled_yet(labels: Lake, tmp_path: Path) -> None:
    lake = LabelLake(labels)
    lake.lake.commits.clear()
    truth = open_truth(str(write(tmp_path / "truth", drawn(4, [0, 1]))), lake)
    with pytest.raises(InputError, match=r"holds no labelled image \(yet\)"):
        evaluate(lake, truth, "truth", missing="error")
    with pytest.raises(LakeError, match=r"holds no labelled image \(yet\)"):
        export_trainset(lake, tmp_path / "set")
    labels.refresh()
