"""Lakes for the tests of the audit: generated maps, written by the lake's own writer, with their true statistics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.audit.regions.base import Region, RegionSource
from pipeline.cam.statistics import statistics
from pipeline.lake import LakeStore, MapSet, MapTargets, UnitResult, create_or_resume, finalize
from schemas.documents import LayerInfo, MethodInfo, ModelInfo
from tests.pipeline.lake.helpers import make_manifest, make_plan, sink_for, unit_id

LAYER = "layer4"
#: Pixels of every image, and what the model saw of it.
WIDTH, HEIGHT = 64, 48
VIEW = (8.0, 0.0, 56.0, 48.0)
ATTRIBUTES = {"site": "string", "camera": "string", "patient": "string", "boxes": "string"}
SITES = ("east", "north", "south")

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """The images of a unit, as arrays of N: what :data:`Paint` may go by, or change in place.

    ``site`` index into :data:`SITES`, ``camera`` 0 or 1 (-1: null), ``patient`` a number; ``label`` and ``predicted``.
    """

    label: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    site: npt.NDArray[np.int64]
    camera: npt.NDArray[np.int64]
    patient: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]


#: Changes the maps (T, h, w) of a unit's first method in place; ``image`` (T,) are rows of :class:`Rows`, ``target``
#: (T,) classes.
Paint = Callable[[Maps, Rows, npt.NDArray[np.int64], npt.NDArray[np.int64], np.random.Generator], None]


def nothing(
    maps: Maps,
    rows: Rows,
    image: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Leave the maps as they are."""


def make_lake(
    path: Path | str,
    *,
    units: int = 4,
    images: int = 40,
    classes: int = 4,
    grid: tuple[int, int] = (7, 7),
    methods: Sequence[str] = ("grad_cam",),
    accuracy: float = 0.8,
    flagged: bool = True,
    failed: bool = True,
    labelled: bool = True,
    boxes: bool = False,
    paint: Paint = nothing,
    seed: int = 0,
    finish: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Write a lake and return its URI.

    Each class has a blob at a place of its own. Each unit has ``images`` images; the predicted class of each and, where
    it differs, the label are explained by each of ``methods`` on ``grid``.

    Args:
        path: folder, or any URI.
        units: of the lake.
        images: of each unit.
        classes: of the model.
        grid: (h, w) of the maps.
        methods: their keys; the maps of the second and later ones are the first's with noise.
        accuracy: share of right predictions.
        flagged: the first map of each unit is zero, the second is not finite, the third constant.
        failed: the last image of each unit could not be decoded.
        labelled: images have labels.
        boxes: the column ``boxes`` holds a box around the label's blob, as JSON [[x0, y0, x1, y1]] in pixels.
        paint: changes the maps.
        seed: of everything.
        finish: write ``_SUCCESS.json``.
        storage_options: of the lake's file system.
    """
    store = LakeStore(str(path), storage_options)
    plan = make_plan(units)
    model = ModelInfo(
        name="torchvision:resnet18",
        weights="random",
        digest="ab" * 32,
        num_classes=classes,
        class_names=[f"name-{number}" for number in range(classes)],
        preprocess={"resize": 48},
        input_size=(48, 48),
        layers=[LayerInfo(name=LAYER, channels=8, height=grid[0], width=grid[1])],
        precision="float32",
    )
    infos = [MethodInfo(key=key, name=key, layers=[LAYER], signed=False, parameters={}) for key in methods]
    manifest = make_manifest(plan, model=model, methods=infos, attributes=ATTRIBUTES)
    manifest = create_or_resume(store, manifest, plan).manifest
    sink = sink_for(store, manifest)
    for number in range(units):
        rng = np.random.default_rng([seed, number])
        result = _unit(number, rng, images, classes, grid, methods, accuracy, flagged, failed, labelled, boxes, paint)
        assert sink.write(result).ours
    if finish:
        finalize(store)
    return store.uri


def centres(classes: int) -> npt.NDArray[np.float64]:
    """(C, 2): centre (y, x) of each class's blob, in shares of the view."""
    angle = 2 * np.pi * np.arange(classes) / classes
    return np.stack([0.5 + 0.25 * np.sin(angle), 0.5 + 0.25 * np.cos(angle)], 1)


def _unit(
    number: int,
    rng: np.random.Generator,
    images: int,
    classes: int,
    grid: tuple[int, int],
    methods: Sequence[str],
    accuracy: float,
    flagged: bool,
    failed: bool,
    labelled: bool,
    boxes: bool,
    paint: Paint,
) -> UnitResult:
    unit = unit_id(number)
    label = rng.integers(0, classes, images)
    wrong = (label + rng.integers(1, max(2, classes), images)) % classes
    rows = Rows(
        label=label,
        predicted=np.where(rng.random(images) < accuracy, label, wrong),
        site=rng.integers(0, len(SITES), images),
        camera=rng.integers(-1, 2, images),
        patient=rng.integers(0, max(1, images // 3), images) + 1000 * number,
        confidence=rng.uniform(0.4, 1.0, images),
    )
    sound = np.arange(images - 1 if failed else images)
    second = sound[rows.predicted[sound] != label[sound]] if labelled else sound[:0]
    image = np.concatenate([sound, second])
    target = np.concatenate([rows.predicted[sound], label[second]])
    order = np.argsort(image, kind="stable")
    image, target = image[order], target[order]
    maps = _maps(rng, target, classes, grid)
    paint(maps, rows, image, target, rng)
    if flagged and len(maps) > 2:
        maps[0], maps[1, 0, 0], maps[2] = 0, np.nan, 1e-3
    predicted = target == rows.predicted[image]
    probability = np.where(predicted, rows.confidence[image], (1 - rows.confidence[image]) / 2)
    targets = MapTargets(
        image_index=image,
        target_class=target.astype(np.int32),
        target_name=[f"name-{each}" for each in target.tolist()],
        target_kind=["predicted" if each else "label" for each in predicted.tolist()],
        target_rank=np.where(predicted, 0, 1).astype(np.int32),
        is_label=(target == label[image]).tolist() if labelled else [None] * len(image),
        is_predicted=predicted,
        logit=np.log(probability).astype(np.float32),
        probability=probability.astype(np.float32),
    )
    sets = []
    for place, method in enumerate(methods):
        mine = maps if not place else maps * rng.uniform(0.3, 1, maps.shape).astype(np.float32)
        sets.append(MapSet(method, LAYER, False, targets, mine, statistics(torch.from_numpy(mine))))
    bad = images - 1 if failed else -1
    found = [_image(unit, i, rows, classes, i == bad, labelled, boxes) for i in range(images)]
    return UnitResult(unit, "a1", "w0", found, sets, {"total": 0.1})


def _maps(rng: np.random.Generator, target: npt.NDArray[np.int64], classes: int, grid: tuple[int, int]) -> Maps:
    y = (np.arange(grid[0]) + 0.5)[:, None] / grid[0]
    x = (np.arange(grid[1]) + 0.5)[None, :] / grid[1]
    middle = centres(classes)[target] + rng.normal(0, 0.04, (len(target), 2))
    distance = (y - middle[:, :1, None]) ** 2 + (x - middle[:, 1:, None]) ** 2
    blobs = np.exp(-distance / 0.03) + rng.uniform(-0.1, 0.1, (len(target), *grid))
    return np.maximum(blobs * 1e-4, 0).astype(np.float32)


def _image(unit: str, i: int, rows: Rows, classes: int, bad: bool, labelled: bool, boxes: bool) -> dict[str, Any]:
    label, predicted = int(rows.label[i]), int(rows.predicted[i])
    name = f"{unit}/{i:05d}"
    row: dict[str, Any] = {
        "image_id": name,
        "uri": f"shards/{unit}.tar",
        "byte_offset": 4096 * i,
        "byte_size": 3000 + 7 * i,
        "sha256": hashlib.sha256(name.encode()).digest(),
        "status": "ok",
        "site": SITES[int(rows.site[i])],
        "camera": None if rows.camera[i] < 0 else f"cam {int(rows.camera[i])}",
        "patient": f"p{int(rows.patient[i])}",
    }
    if labelled:
        row |= {"label": label, "label_name": f"name-{label}"}
    if bad:
        return row | {"status": "decode_error", "error": "not an image"}
    row |= dict(zip(("view_x0", "view_y0", "view_x1", "view_y1"), VIEW, strict=True))
    confidence = float(rows.confidence[i])
    row |= {
        "width": WIDTH,
        "height": HEIGHT,
        "decoder": "pillow",
        "predicted_class": predicted,
        "predicted_name": f"name-{predicted}",
        "predicted_probability": confidence,
    }
    if labelled:
        row["label_probability"] = confidence if label == predicted else (1 - confidence) / 2
    if boxes:
        y, x = centres(classes)[label]
        left, top = VIEW[0] + 48 * (x - 0.15), VIEW[1] + 48 * (y - 0.15)
        row["boxes"] = [[left, top, left + 48 * 0.3, top + 48 * 0.3]]
    return row


def read_parts(output: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The part files of an audit, by path."""
    store = LakeStore(output, storage_options)
    return {entry.path: store.get(entry.path) for entry in store.list("parts")}


class Deadly(RegionSource):
    """Ends the process that asks for the region of an image whose id holds ``word``."""

    def __init__(self, word: str) -> None:
        self._word = word

    def region(self, image: Mapping[str, Any], target_class: int, target_name: str | None) -> Region | None:
        if self._word in image["image_id"]:
            os._exit(7)
        return None

    def names(self, image: Mapping[str, Any]) -> frozenset[str] | None:
        return None

    def about(self) -> str:
        return "nothing good"


def outputs(output: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The objects of an audit by path, without its parts and its manifest, which holds the time."""
    store = LakeStore(output, storage_options)
    paths = [entry.path for entry in store.list() if entry.path != "audit.json"]
    return {path: store.get(path) for path in sorted(paths) if not path.startswith("parts/")}
