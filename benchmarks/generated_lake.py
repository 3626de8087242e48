"""Large lakes without a model: generated maps, written by the lake's own writer as a job would write them.

Every class has a blob at a place of its own, which wanders from image to image. Some of it is amiss, so that an audit
has something to find and to draw: every fiftieth class has a mark in the corner of some images of one site, and every
hundredth one lies elsewhere at another site.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.cam.statistics import statistics
from pipeline.lake import LakeStore, MapSet, MapTargets, UnitResult, create_or_resume, finalize, freeze
from pipeline.lake.writer import LakeSink, now
from schemas.documents import LayerInfo, Manifest, MethodInfo, ModelInfo
from schemas.job import Job
from schemas.layout import unit_id
from schemas.unit import Unit

METHOD, LAYER = "grad_cam", "layer4"
#: The columns by which groups are told: as many sites as are asked for, and so many cameras.
SITE, CAMERA = "site", "camera"
CAMERAS = 4
#: Images of a unit.
UNIT_IMAGES = 4096
_ACCURACY = 0.8
_MARKED, _MOVED = 50, 100
_ATTRIBUTES = {SITE: "string", CAMERA: "string"}

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Spec:
    """What a lake holds.

    ``maps`` of as many images, each of its predicted class; ``classes`` of the model; ``groups`` values of the column
    ``site``; ``grid`` cells (h, w) of each map; ``seed`` of everything.
    """

    maps: int
    classes: int = 1000
    groups: int = 30
    grid: tuple[int, int] = (7, 7)
    seed: int = 0

    @property
    def units(self) -> int:
        """Units, all but the last of :data:`UNIT_IMAGES` images."""
        return -(-self.maps // UNIT_IMAGES)


def write_lake(folder: Path, spec: Spec) -> str:
    """Write a lake, or go on with one that is not whole, and return its URI."""
    store = LakeStore(str(folder))
    job = Job.model_validate(
        {
            "source": {"uri": "generated-{000..999}.tar", "format": "webdataset", "attributes": list(_ATTRIBUTES)},
            "model": {"name": "torchvision:resnet50", "weights": "random"},
            "targets": {"predicted": True},
            "methods": [METHOD],
            "output": {"uri": store.uri},
        }
    )
    plan = freeze(
        Unit(unit_id(number, "generated"), number, f"generated-{number:06d}.tar", byte_size=1 << 28)
        for number in range(spec.units)
    )
    manifest = create_or_resume(store, _manifest(job, plan.digest, spec), plan).manifest
    sink = LakeSink(job.output, manifest, store)
    for number in range(spec.units):
        sink.write(unit_result(number, spec))
    finalize(store)
    return store.uri


def _manifest(job: Job, inputs: str, spec: Spec) -> Manifest:
    height, width = spec.grid
    model = ModelInfo(
        name=job.model.name,
        weights=job.model.weights,
        digest="00" * 32,
        num_classes=spec.classes,
        class_names=[f"class {number:05d}" for number in range(spec.classes)],
        preprocess={"resize": 256, "crop": 224},
        input_size=(224, 224),
        layers=[LayerInfo(name=LAYER, channels=2048, height=height, width=width)],
        precision="float32",
    )
    return Manifest(
        created=now(),
        run_id=f"generated-{spec.maps}",
        job=job.model_dump(mode="json", exclude={"workers"}),
        job_digest=job.digest(),
        inputs_digest=inputs,
        units=spec.units,
        model=model,
        methods=[MethodInfo(key=METHOD, name=METHOD, layers=[LAYER], signed=False, parameters={})],
        attributes=_ATTRIBUTES,
        versions={},
    )


def unit_result(number: int, spec: Spec) -> UnitResult:
    """Return one unit, which depends on the specification and its number only."""
    rng = np.random.default_rng([spec.seed, number])
    count = min(UNIT_IMAGES, spec.maps - number * UNIT_IMAGES)
    unit = unit_id(number, "generated")
    label = rng.integers(0, spec.classes, count)
    wrong = (label + rng.integers(1, max(2, spec.classes), count)) % spec.classes
    predicted = np.where(rng.random(count) < _ACCURACY, label, wrong)
    site, camera = rng.integers(0, spec.groups, count), rng.integers(0, CAMERAS, count)
    maps = _maps(rng, predicted, site, spec)
    probability = np.where(predicted == label, rng.beta(8, 2, count), rng.beta(4, 4, count)).astype(np.float32)
    names = [f"class {each:05d}" for each in predicted.tolist()]
    right = (predicted == label).tolist()
    targets = MapTargets(
        image_index=np.arange(count),
        target_class=predicted.astype(np.int32),
        target_name=names,
        target_kind=["label" if each else "predicted" for each in right],
        target_rank=np.zeros(count, np.int32),
        is_label=right,
        is_predicted=np.ones(count, np.bool_),
        logit=np.log(probability / (1 - probability)),
        probability=probability,
    )
    found = statistics(torch.from_numpy(maps))
    images = _images(rng, unit, f"generated-{number:06d}.tar", label, predicted, probability, site, camera)
    return UnitResult(unit, "a1", "generated", images, [MapSet(METHOD, LAYER, False, targets, maps, found)])


def _maps(rng: np.random.Generator, target: npt.NDArray[np.int64], site: npt.NDArray[np.int64], spec: Spec) -> Maps:
    height, width = spec.grid
    y, x = (np.arange(height) + 0.5)[:, None] / height, (np.arange(width) + 0.5)[None, :] / width
    # Multiples of irrational numbers lie evenly: no two classes have the same place.
    turn, far = target * 0.61803399 % 1.0 * 2 * np.pi, 0.05 + 0.25 * (target * 0.41421356 % 1.0)
    moved = (target % _MOVED == 1) & (site == 1 % spec.groups)
    turn = np.where(moved, turn + np.pi, turn)
    middle = np.stack([0.5 + far * np.sin(turn), 0.5 + far * np.cos(turn)], 1) + rng.normal(0, 0.08, (len(target), 2))
    distance = (y - middle[:, :1, None]) ** 2 + (x - middle[:, 1:, None]) ** 2
    maps = np.exp(-distance / 0.04) * rng.gamma(6.0, 1 / 6, (len(target), height, width))
    marked = (target % _MARKED == 0) & (site == 0) & (rng.random(len(target)) < 0.8)
    maps[marked, : max(1, height // 6), : max(1, width // 6)] += 1.5
    return (maps * rng.uniform(1e-5, 1e-3, (len(target), 1, 1))).astype(np.float32)


def _images(
    rng: np.random.Generator,
    unit: str,
    uri: str,
    label: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    probability: npt.NDArray[np.float32],
    site: npt.NDArray[np.int64],
    camera: npt.NDArray[np.int64],
) -> list[dict[str, Any]]:
    count = len(label)
    width, height = rng.integers(320, 641, count), rng.integers(240, 513, count)
    size = (width * height * rng.uniform(0.3, 0.9, count)).astype(np.int64)
    offset = np.cumsum(size + 512) - size
    digests = rng.bytes(32 * count)
    short = np.minimum(width, height) * 0.875
    left, top = (width - short) / 2, (height - short) / 2
    of_label = np.where(predicted == label, probability, (1 - probability) * 0.6)
    columns: dict[str, list[Any]] = {
        "image_id": [f"{unit}/{row:05d}.jpg" for row in range(count)],
        "uri": [uri] * count,
        "byte_offset": offset.tolist(),
        "byte_size": size.tolist(),
        "sha256": [digests[32 * row : 32 * row + 32] for row in range(count)],
        "width": width.tolist(),
        "height": height.tolist(),
        "decoder": ["torchvision"] * count,
        "label": label.tolist(),
        "label_name": [f"class {each:05d}" for each in label.tolist()],
        "label_probability": of_label.tolist(),
        "predicted_class": predicted.tolist(),
        "predicted_name": [f"class {each:05d}" for each in predicted.tolist()],
        "predicted_probability": probability.tolist(),
        "view_x0": left.tolist(),
        "view_y0": top.tolist(),
        "view_x1": (left + short).tolist(),
        "view_y1": (top + short).tolist(),
        "status": ["ok"] * count,
        SITE: [f"site {each:03d}" for each in site.tolist()],
        CAMERA: [f"camera {each}" for each in camera.tolist()],
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
