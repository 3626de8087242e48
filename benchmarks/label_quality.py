"""How good pseudo-labels are: mIoU of seeds and of refined labels, by method, and of a network trained on them.

    python -m benchmarks.label_quality FOLDER [--methods cam grad_cam ...] [--only scenes|train|coco|boxes]
        [--coco FOLDER] [--boxes FOLDER] [--weights FILE] [--class-names FILE] [--model torchvision:resnet50]

On each set a job of pseudo-labels runs without refinement and keeps its scores, once with one scale and once with four
scales and mirror images. From the scores all thresholds follow, with and without PAMR. A threshold is chosen on a fifth
of the images, by hash, and every figure is of the others: at IRNet's threshold of 0.15, and at the chosen one.

``scenes``: the demo's scenes, whose masks are known. ``train``: a small U-Net is trained on the labels of scenes that
nothing was chosen on, and on their true masks, and measured on further scenes. ``coco`` and ``boxes``: real images,
where they are given. Trivial baselines are given each image's main class.

Results are kept in FOLDER as they come (rows.jsonl), so that the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.inputs import positive, say
from benchmarks.label_baselines import BASELINES
from benchmarks.label_intervals import ImageCounts, interval
from benchmarks.label_rows import Rows, table
from benchmarks.label_sets import LabelledSet, box_set, coco_set, scene_set
from benchmarks.small_unet import fit_unet, segment
from pipeline.engine.run import make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, committed, create_or_resume, finalize, new_attempt, open_lake, read_plan
from pipeline.lake.plan import freeze
from pipeline.pseudolabels.collection import LabelLake
from pipeline.pseudolabels.confusion import Confusion, class_results, totals
from pipeline.pseudolabels.evaluate import Coverage, pairs_of
from pipeline.pseudolabels.png import decode_index
from pipeline.pseudolabels.split import is_drawn
from pipeline.pseudolabels.sweep import Sweep, best_of
from pipeline.pseudolabels.truth import open_truth
from pipeline.pseudolabels.tune import Candidate, Tuned, Tuner
from pipeline.sources import open_source
from schemas.errors import CamlakeError
from schemas.label_job import LabelJob

METHODS = ("cam", "grad_cam", "grad_cam_pp", "smooth_grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "eigen_cam")
SCALES: dict[str, dict[str, Any]] = {
    "one scale": {"scales": [1.0], "flip": False},
    "four scales, mirrored": {"scales": [1.0, 0.5, 1.5, 2.0], "flip": True},
}
#: Images of the demo: to choose and report on, to train the U-Net on, and to measure it on.
COUNTS = {"scenes": 300, "train": 600, "test": 200}
FRACTION, SEED = 0.2, 0
PLAIN = 0.15
#: Settings of SCALES by the word of the command line.
MAPS = dict(zip(("one", "four"), SCALES, strict=True))
_REFINED: dict[Candidate, str] = {"stored": "none", "pamr": "pamr"}


def make_labels(data: LabelledSet, output: Path, method: Any, max_pixels: int, settings: dict[str, Any]) -> LabelLake:
    """Run a job in this process, or go on with it, and return its lake."""
    section = {"classes": data.classes, "max_pixels": max_pixels, **settings}
    job = LabelJob.model_validate(
        {
            "source": data.source,
            "model": data.model,
            "targets": "label",
            "methods": [method],
            "output": {"uri": str(output)},
            "pseudo_labels": section,
            "compute": {"threads": torch.get_num_threads()},
        }
    )
    plan = freeze(open_source(job.source).plan())
    store = LakeStore(job.output.uri)
    run = create_or_resume(store, make_manifest(job, resolve(job), plan), plan)
    worker = AttributionWorker(job, run.manifest, "benchmark", device="cpu")
    worker.start()
    for unit in read_plan(store):
        if unit.unit_id not in committed(store):
            worker.process(unit, new_attempt())
    finalize(store)
    return LabelLake(open_lake(store.uri))


def measure(
    rows: Rows, data: LabelledSet, folder: Path, methods: Sequence[Any], max_pixels: int, maps: Sequence[str]
) -> None:
    """Measure seeds and refined labels of all methods on a set, and the baselines."""
    for method in methods:
        name = method if isinstance(method, str) else method.get("label") or method["name"]
        for scales in maps:
            settings = SCALES[scales]
            keys = {each: f"{data.name}|{name}|{scales}|{_REFINED[each]}" for each in _REFINED}
            if all(key in rows.found for key in keys.values()):
                continue
            began = time.process_time()
            seeds = {**settings, "refine": {"method": "none"}, "files": {"soft": True, "rle": "none"}}
            place = folder / "lakes" / f"{data.name}-{name}-{len(settings['scales'])}"
            labels = make_labels(data, place, method, max_pixels, seeds)
            seconds = time.process_time() - began
            tuned, each = swept(labels, data)
            for candidate, key in keys.items():
                values = figures(tuned, candidate)
                counts = ImageCounts.of([sweep[candidate].at(values["threshold"]) for sweep in each])
                counts.save(rows.counts(key))
                values["interval"] = interval(counts)
                rows.add(key, images=tuned.images[1], seconds_per_image=seconds / sum(tuned.images), **values)
            shutil.rmtree(place)
    for name, baseline in BASELINES.items():
        key = f"{data.name}|{name}"
        if key not in rows.found:
            confusion = Confusion()
            for pixels, label, truth in reported(data):
                confusion.add(truth, baseline(pixels, label).astype(np.int32))
            rows.add(key, miou=totals(class_results(confusion.pairs, str)).miou)


def swept(labels: LabelLake, data: LabelledSet) -> tuple[Tuned, list[dict[Candidate, Sweep]]]:
    """Return all thresholds of a lake's scores, with and without PAMR, on either split, and of each image reported."""
    truth = open_truth(str(data.truth), labels)
    tuner = Tuner(labels, truth, FRACTION, SEED, tuple(_REFINED))
    tuned, each = Tuned(), []
    for pair in chain.from_iterable(pairs_of(labels, truth, "skip", Coverage())):
        found = tuner([pair])
        if found.reported_on:
            each.append(found.reported_on)
        tuned.merge(found)
    return tuned, each


def figures(tuned: Tuned, candidate: Candidate) -> dict[str, Any]:
    """Return the threshold chosen on one split, and the mIoU of it, and of the plain one, on the other."""
    best = best_of(tuned.chosen_on[candidate].points(str, ("constant",)))
    assert best is not None
    points = {point.value: point.totals for point in tuned.reported_on[candidate].points(str, ("constant",))}
    return {"plain": points[PLAIN].miou, "threshold": best.value, "chosen": points[best.value].miou}


def reported(data: LabelledSet) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Yield pixels (H, W, 3), main class and true ids of the images that figures are of."""
    for path in sorted(data.truth.glob("*.png")):
        # The ids of the lake's images end in the mask's name; a shard's stands before it.
        source, label = data.main[path.stem]
        if is_drawn(image_id(data, path.stem), FRACTION, SEED):
            continue
        pixels = np.asarray(Image.open(source).convert("RGB")) if isinstance(source, Path) else source
        truth = decode_index(path.read_bytes()).astype(np.int32)
        truth[truth == 255] = -1
        yield pixels, label, truth


def image_id(data: LabelledSet, stem: str) -> str:
    """Return the id of an image by the name of its mask."""
    if data.name != "boxes":
        return f"scenes-000000/{stem}" if data.source["format"] == "webdataset" else stem
    return next(f"{shard}/{stem}" for shard, stems in _shards(data).items() if stem in stems)


_known: dict[str, dict[str, set[str]]] = {}


def _shards(data: LabelledSet) -> dict[str, set[str]]:
    import tarfile

    pattern = Path(data.source["uri"])
    if str(pattern) not in _known:
        found = {}
        for path in sorted(pattern.parent.glob(pattern.name)):
            with tarfile.open(path) as tar:
                found[path.stem] = {Path(name).stem for name in tar.getnames() if name.endswith(".jpg")}
        _known[str(pattern)] = found
    return _known[str(pattern)]


def measure_training(rows: Rows, folder: Path, methods: Sequence[str], epochs: int, seeds: int) -> None:
    """Train U-Nets on true masks, and on seeds and refined labels of each method at its chosen threshold."""
    train_set = scene_set(folder, "train", COUNTS["train"], "train", 22)
    test_set = scene_set(folder, "test", COUNTS["test"], "test", 23)
    images, masks = tensors(train_set, lambda stem: train_set.truth / f"{stem}.png")
    shown, truth = tensors(test_set, lambda stem: test_set.truth / f"{stem}.png")

    def trained(name: str, labels: torch.Tensor, seed: int) -> None:
        quality = miou(masks, labels)
        began = time.process_time()
        model = fit_unet(images, labels, 11, epochs=epochs, seed=seed, say=say)
        seconds = time.process_time() - began
        rows.add(f"{name}|{seed}", labels=quality, network=miou(truth, segment(model, shown)), seconds=seconds)

    for seed in left(rows, "train|true masks", seeds):
        trained("train|true masks", masks, seed)
    for method in methods:
        for refine in ("pamr", "none"):
            name, wanted = f"train|{method}|{refine}", left(rows, f"train|{method}|{refine}", seeds)
            chosen = rows.found.get(f"scenes|{method}|four scales, mirrored|{refine}")
            if chosen is None or not wanted:
                continue
            place = folder / "lakes" / f"train-{method}-{refine}"
            settings = {
                **SCALES["four scales, mirrored"],
                "refine": {"method": refine},
                "background": {"threshold": chosen["threshold"]},
                "files": {"rle": "none"},
            }
            make_labels(train_set, place, method, 1_000_000, settings)
            labels = tensors(train_set, lambda stem, place=place: place / "masks" / "scenes-000000" / f"{stem}.png")[1]
            for seed in wanted:
                trained(name, labels, seed)


def left(rows: Rows, name: str, seeds: int) -> list[int]:
    """Return the seeds that a network is not trained with yet."""
    return [seed for seed in range(seeds) if f"{name}|{seed}" not in rows.found]


def tensors(data: LabelledSet, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels (n, 3, H, W) uint8 and masks (n, H, W) uint8."""
    stems = sorted(data.main)
    pixels = torch.from_numpy(np.stack([np.asarray(data.main[stem][0]) for stem in stems])).permute(0, 3, 1, 2)
    masks = np.stack([decode_index(Path(mask(stem)).read_bytes()) for stem in stems])
    return pixels, torch.from_numpy(masks)


def miou(truth: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean IoU over the classes, of one matrix over all images."""
    confusion = Confusion()
    for one, two in zip(truth.numpy().astype(np.int32), labels.numpy().astype(np.int32), strict=True):
        confusion.add(one, two)
    found = totals(class_results(confusion.pairs, str)).miou
    assert found is not None
    return found


def parser() -> argparse.ArgumentParser:
    """Return the command line's."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.label_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("folder", type=Path)
    found.add_argument("--only", nargs="+", choices=("scenes", "train", "coco", "boxes", "table"))
    found.add_argument(
        "--methods",
        nargs="+",
        type=yaml.safe_load,
        default=METHODS,
        metavar="METHOD",
        help="as in a job file: a name, or {name: ..., label: ...} (default: all but Score-CAM)",
    )
    found.add_argument("--train-methods", nargs="+", default=["grad_cam"], help="whose labels a U-Net is trained on")
    found.add_argument("--epochs", type=positive, default=20, help="of the U-Net (default: %(default)s)")
    found.add_argument("--seeds", type=positive, default=3, help="U-Nets per kind of labels (default: %(default)s)")
    found.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS), help="scales of the maps (default: both)")
    found.add_argument("--coco-images", type=positive, metavar="N", help="the first N that show a class (default: all)")
    found.add_argument("--coco", type=Path, metavar="FOLDER", help="images/, masks/ (PNG) and classes.json")
    found.add_argument("--boxes", type=Path, metavar="FOLDER", help="shard-*.tar with .jpg, .cls and .json (boxes)")
    found.add_argument("--model", default="torchvision:resnet50", help="of real images (default: %(default)s)")
    found.add_argument("--weights", help="its weights, of ImageNet")
    found.add_argument(
        "--class-names", type=Path, help="JSON: ImageNet's names, or objects with 'name', in their order"
    )
    found.add_argument("--max-pixels", type=positive, default=250_000, help="of real images (default: %(default)s)")
    found.add_argument("--threads", type=positive, default=1)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 2 for wrong input."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows, folder = Rows(options.folder), options.folder.absolute()
    wanted = options.only or ("scenes", "train", "coco", "boxes")
    maps = [MAPS[word] for word in options.maps]
    try:
        if "scenes" in wanted:
            data = scene_set(folder, "scenes", COUNTS["scenes"], "test", 21)
            measure(rows, data, folder, options.methods, 1_000_000, maps)
        if "train" in wanted:
            measure_training(rows, folder, options.train_methods, options.epochs, options.seeds)
        if options.weights and options.class_names:
            given = json.loads(options.class_names.read_text())
            names = [each if isinstance(each, str) else each["name"] for each in given]
            model = {"name": options.model, "weights": options.weights, "strict": False, "class_names": names}
            if "coco" in wanted and options.coco:
                data = coco_set(folder, options.coco, model, names, options.coco_images)
                measure(rows, data, folder, options.methods, options.max_pixels, maps)
            if "boxes" in wanted and options.boxes:
                data = box_set(folder, options.boxes, model, names)
                measure(rows, data, folder, options.methods, options.max_pixels, maps)
    except CamlakeError as error:
        print(f"label_quality: {error}", file=sys.stderr)
        return 2
    deque(map(print, table(rows)), maxlen=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
