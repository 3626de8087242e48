"""A small lake of labels, made by the worker itself of a folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.config import absolute, parse_job, parse_label_job
from jobs.demo.network import DigitNet
from jobs.demo.scenes import make_scenes
from jobs.demo.train import save_weights
from pipeline.engine.run import make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import Lake, LakeStore, create_or_resume, finalize, new_attempt, open_lake, read_plan, verify
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.job import Job

WIDTHS = [4, 6, 8, 8]
CLASSES = ("one", "two")


def run_inline(job: Job) -> Lake:
    """Run a job of any kind to its end, in this process, and verify its lake."""
    plan = freeze(open_source(job.source).plan())
    store = LakeStore(job.output.uri)
    run = create_or_resume(store, make_manifest(job, resolve(job), plan), plan)
    worker = AttributionWorker(job, run.manifest, "inline", device="cpu")
    worker.start()
    for unit in read_plan(store):
        worker.process(unit, new_attempt())
    finalize(store)
    verified = verify(store)
    assert verified.ok, verified.problems
    return open_lake(store.uri)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``images`` of seven pictures of two classes, of several sizes and formats, and untrained weights.

    ``two/turned.jpg`` says by EXIF that it lies on its side.
    """
    folder = tmp_path_factory.mktemp("pictures")
    scenes = make_scenes(7, split="test", seed=5)
    for number, scene in enumerate(scenes):
        picture = Image.fromarray(scene.pixels).resize((96 - 8 * (number % 3), 80 + 8 * (number % 2)))
        name, suffix = f"{CLASSES[number % 2]}/{number}", "png" if number == 2 else "jpg"
        options: dict[str, Any] = {}
        if number == 5:
            name = f"{CLASSES[1]}/turned"
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        path = folder / "images" / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)
    torch.manual_seed(3)
    save_weights(DigitNet(10, WIDTHS), folder / "net.safetensors", 96)
    return folder


def document(pictures: Path, output: Path) -> dict[str, Any]:
    """A job file on these pictures."""
    return {
        "source": {"uri": str(pictures / "images"), "format": "folder", "unit_images": 4},
        "model": {
            "name": "jobs.demo.network:digit_net",
            "weights": str(pictures / "net.safetensors"),
            "options": {"widths": WIDTHS},
        },
        "targets": "label",
        "methods": ["grad_cam"],
        "output": {"uri": str(output)},
    }


def label_lake(pictures: Path, output: Path, **settings: Any) -> Lake:
    """Run a pseudo-label job with these settings."""
    return run_inline(absolute(parse_label_job(document(pictures, output) | {"pseudo_labels": settings})))


def heatmap_lake(pictures: Path, output: Path, **changes: Any) -> Lake:
    """Run an attribution job."""
    return run_inline(absolute(parse_job(document(pictures, output) | changes)))


SETTINGS: dict[str, Any] = {
    "scales": [1.0],
    "flip": False,
    "refine": {"method": "none"},
    "background": {"threshold": 0.3},
    "classes": [{"id": 3, "name": "eins", "classes": ["one"]}, {"id": 7, "name": "zwei", "classes": ["two"]}],
    "files": {"soft": True, "confidence": True},
}


@pytest.fixture(scope="session")
def labels(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Labels of all pictures: seeds of one scale, with soft scores."""
    return label_lake(pictures, tmp_path_factory.mktemp("labels") / "lake", **SETTINGS)


def index_of(lake: Lake, name: str) -> np.ndarray:
    """An index image of a lake, as Pillow reads it."""
    with Image.open(Path(lake.store.uri) / "masks" / f"{name}.png") as image:
        return np.asarray(image)


def table_of(lake: Lake) -> dict[str, Any]:
    """The class table."""
    found: dict[str, Any] = json.loads((Path(lake.store.uri) / "classes.json").read_text())
    return found
