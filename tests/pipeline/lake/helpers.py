"""Small lakes for tests: a job, its plan, and unit results with every kind of map."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.lake.plan import FrozenPlan, freeze
from pipeline.lake.run import create_or_resume, finalize
from pipeline.lake.sink import MapSet, MapTargets, UnitResult
from pipeline.lake.store import Entry, LakeStore, StoreError
from pipeline.lake.writer import LakeSink
from schemas.documents import LayerInfo, Manifest, MethodInfo, ModelInfo
from schemas.job import Job, Output
from schemas.tables import STATISTICS
from schemas.unit import Unit

CLASSES = ["ant", "bee", "cat", "dog"]
GRIDS = {"layer3": (6, 8), "layer4": (3, 4)}
ATTRIBUTES = {"site": "string", "age": "int64"}
WIDTH, HEIGHT = 40, 30
#: The view of every image: the lower right part, reaching beyond the right edge.
VIEW = (10.0, 6.0, 42.0, 30.0)


def statistics(maps: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """The STATISTICS columns: vmax, mass and the flags as defined, a plausible number in the rest."""
    finite = np.isfinite(maps).all(axis=(1, 2))
    clean = np.where(finite[:, None, None], maps, 0)
    vmax = np.where(finite, np.abs(clean).max(axis=(1, 2), initial=0), np.nan).astype(np.float32)
    mass = np.where(finite, np.maximum(clean, 0).sum(axis=(1, 2)), np.nan).astype(np.float32)
    with np.errstate(invalid="ignore"):
        undefined = ~(mass > 0)
    result: dict[str, npt.NDArray[Any]] = {
        name: np.where(undefined, np.nan, 0.25).astype(np.float32) for name in STATISTICS
    }
    return result | {
        "vmax": vmax,
        "mass": mass,
        "all_zero": finite & (vmax == 0),
        "constant": finite & (clean == clean[:, :1, :1]).all(axis=(1, 2)),
        "not_finite": ~finite,
    }


def make_job(uri: str = "lake", **changes: Any) -> Job:
    """A job; ``changes`` replace whole parts."""
    parts: dict[str, Any] = {
        "source": {"uri": "shards/{000..002}.tar", "format": "webdataset", "label": "cls", "attributes": ["site"]},
        "model": {"name": "torchvision:resnet18", "weights": "random"},
        "targets": {"top_k": 2},
        "methods": ["grad_cam", {"name": "layer_cam", "layers": ["layer3", "layer4"], "fuse": "max"}, "xgrad_cam"],
        "output": {"uri": uri},
    }
    return Job.model_validate(parts | changes)


def make_plan(count: int = 3, name: str = "shard") -> FrozenPlan:
    """A plan of ``count`` units."""
    return freeze(
        Unit(unit_id=unit_id(i), unit_index=i, uri=f"shards/{name}-{i:03d}.tar", byte_size=1000 + i, etag=f"e{i}")
        for i in range(count)
    )


def unit_id(index: int) -> str:
    return f"{index:06d}-shard-{index:03d}"


def make_manifest(plan: FrozenPlan, job: Job | None = None, run_id: str = "run-1", **changes: Any) -> Manifest:
    """A manifest of the plan and the job."""
    job = job or make_job()
    parts: dict[str, Any] = {
        "created": "2026-01-02T03:04:05.000+00:00",
        "run_id": run_id,
        "job": job.model_dump(mode="json", exclude={"workers"}),
        "job_digest": job.digest(),
        "inputs_digest": plan.digest,
        "units": plan.units,
        "model": ModelInfo(
            name="torchvision:resnet18",
            weights="random",
            digest="ab" * 32,
            num_classes=len(CLASSES),
            class_names=CLASSES,
            preprocess={"resize": 32},
            input_size=(24, 32),
            layers=[LayerInfo(name=name, channels=8, height=h, width=w) for name, (h, w) in GRIDS.items()],
            precision="float32",
        ),
        "methods": [
            MethodInfo(key="grad_cam", name="grad_cam", layers=["layer4"], signed=False, parameters={}),
            MethodInfo(key="layer_cam", name="layer_cam", layers=["layer3+layer4"], signed=False, parameters={}),
            MethodInfo(key="xgrad_cam", name="xgrad_cam", layers=["layer4"], signed=True, parameters={}),
        ],
        "attributes": ATTRIBUTES,
        "versions": {"zarr": "3"},
    }
    return Manifest(**(parts | changes))


def picture(seed: int) -> bytes:
    """A PNG of WIDTH x HEIGHT noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_rows(unit: str, seed: int, images: int, uri: str = "shards/x.tar") -> list[dict[str, Any]]:
    """Rows of the images table; the second image fails to decode."""
    rows: list[dict[str, Any]] = []
    offset = 0
    for i in range(images):
        data = picture(hash_seed(unit, i))
        row: dict[str, Any] = {
            "image_id": f"{unit}/{i:04d}",
            "uri": uri,
            "byte_offset": offset,
            "byte_size": len(data),
            "sha256": hashlib.sha256(data).digest(),
            "label": i % len(CLASSES),
            "label_name": CLASSES[i % len(CLASSES)],
            "status": "ok",
            "site": "north" if i % 2 else "south",
            "age": str(30 + i),
        }
        offset += len(data)
        if i == 1:
            row |= {"status": "decode_error", "error": "not an image"}
        else:
            row |= dict(zip(("view_x0", "view_y0", "view_x1", "view_y1"), VIEW, strict=True))
            row |= {"width": WIDTH, "height": HEIGHT, "decoder": "pillow", "predicted_class": (i + seed) % len(CLASSES)}
        rows.append(row)
    return rows


def hash_seed(unit: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{unit}/{index}".encode()).digest()[:4], "little")


def make_result(
    unit: str, attempt: str = "a1", *, seed: int = 0, images: int = 5, uri: str = "shards/x.tar", worker: str = "w0"
) -> UnitResult:
    """A unit's result: two targets per good image, three map sets, with a zero and a non-finite map among them."""
    rng = np.random.default_rng([seed, hash_seed(unit, 0)])
    rows = image_rows(unit, seed, images, uri)
    good = [i for i, row in enumerate(rows) if row["status"] == "ok"]
    index = np.repeat(np.array(good, np.int64), 2)
    count = len(index)
    # Descending classes, so that the writer's sort is seen.
    classes = np.array([(len(CLASSES) - 1 - i) % len(CLASSES) for i in range(count)], np.int32)
    targets = MapTargets(
        image_index=index,
        target_class=classes,
        target_name=[CLASSES[c] for c in classes.tolist()],
        target_kind=["top_k"] * count,
        target_rank=np.arange(count, dtype=np.int32) % 2,
        is_label=[rows[i]["label"] == c for i, c in zip(index.tolist(), classes.tolist(), strict=True)],
        is_predicted=np.arange(count) % 2 == 0,
        logit=rng.normal(size=count).astype(np.float32),
        probability=rng.random(count).astype(np.float32),
    )
    sets = []
    for method, layer, signed in (
        ("grad_cam", "layer4", False),
        ("layer_cam", "layer3+layer4", False),
        ("xgrad_cam", "layer4", True),
    ):
        maps = rng.random((count, *GRIDS[layer.split("+")[0]])).astype(np.float32) * np.float32(3e-6)
        if signed:
            maps -= np.float32(1.5e-6)
        if count > 1:
            maps[0] = 0
            maps[1, 1, 1] = np.nan
        sets.append(MapSet(method, layer, signed, targets, maps, statistics(maps)))
    seconds = {"read": 0.1, "compute": 0.5, "total": 0.7}
    return UnitResult(unit, attempt, worker, rows, sets, seconds)


def sink_for(store: LakeStore, manifest: Manifest, dtype: str = "float16") -> LakeSink:
    return LakeSink(Output.model_validate({"uri": store.uri, "dtype": dtype}), manifest, store)


def build(store: LakeStore, units: int = 3, *, finish: bool = True, dtype: str = "float16", **result: Any) -> Manifest:
    """Make a whole lake."""
    plan = make_plan(units)
    manifest = create_or_resume(store, make_manifest(plan), plan).manifest
    sink = sink_for(store, manifest, dtype)
    for i in range(units):
        assert sink.write(make_result(unit_id(i), **result)).ours
    if finish:
        finalize(store)
    return manifest


def local(path: Path) -> LakeStore:
    return LakeStore(str(path))


def contents(store: LakeStore) -> dict[str, bytes]:
    """Every object of a store."""
    return {entry.path: store.get(entry.path) for entry in store.list()}


class WrappedStore(LakeStore):
    """A store that counts its requests and calls a hook before and after each write."""

    def __init__(
        self,
        uri: str,
        before: Callable[[int, str], None] = lambda number, path: None,
        after: Callable[[int, str], None] = lambda number, path: None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(uri, storage_options)
        self.before, self.after = before, after
        self.lock = threading.Lock()
        self.puts = 0
        self.reads: list[tuple[str, int]] = []

    def _number(self) -> int:
        with self.lock:
            self.puts += 1
            return self.puts

    def put(self, path: str, data: bytes) -> None:
        number = self._number()
        self.before(number, path)
        super().put(path, data)
        self.after(number, path)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        number = self._number()
        self.before(number, path)
        done = super().put_if_absent(path, data)
        self.after(number, path)
        return done

    def get(self, path: str, size: int | None = None) -> bytes:
        data = super().get(path, size)
        with self.lock:
            self.reads.append((path, len(data)))
        return data

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        with self.lock:
            self.reads.append((path, stop - start))
        return super().get_range(path, start, stop)

    def list(self, folder: str = "") -> Iterator[Entry]:
        return super().list(folder)


def failing_at(number: int) -> Callable[[int, str], None]:
    """A hook that fails the k-th write."""

    def hook(current: int, path: str) -> None:
        if current == number:
            raise StoreError(f"injected at write {number} ({path})")

    return hook
