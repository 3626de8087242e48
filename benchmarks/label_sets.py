"""The sets of images with true masks that labels are measured on, each as a source of a job and a folder of masks."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.coco_imagenet import groups
from jobs.demo.digits import CLASS_NAMES
from jobs.demo.scenes import STICKER_ID, Scene, make_scenes
from jobs.demo.shards import write_shards
from jobs.demo.train import save_weights, train
from pipeline.models.replica import load_replica
from pipeline.pseudolabels.png import encode_index
from pipeline.sources.decode import decode
from schemas.errors import InputError
from schemas.job import Model

Bytes = npt.NDArray[np.uint8]

#: Of masks: pixels that no label is measured on.
IGNORED = 255
#: Classes that an image is labelled with cover this share of its pixels at least.
_LEAST_SHARE = 0.005


@dataclass(frozen=True)
class LabelledSet:
    """Images with image-level labels and true masks.

    ``source``, ``model`` and ``targets`` are parts of a job file, ``classes`` its ``pseudo_labels.classes`` (None: the
    model's own). ``truth`` is a folder of masks, ``main`` gives pixels and main class of each image by mask.
    """

    name: str
    source: dict[str, Any]
    model: dict[str, Any]
    classes: list[dict[str, Any]] | None
    truth: Path
    main: dict[str, tuple[Path | Bytes, int]]


def scene_masks(scene: Scene) -> Bytes:
    """Return the true labels (H, W): 0, the background and the sticker, or the digit's class + 1."""
    ids = np.zeros(256, np.uint8)
    ids[1 : 1 + len(scene.labels)] = np.array(scene.labels) + 1
    ids[STICKER_ID] = 0
    return np.asarray(ids[scene.masks])


def network(folder: Path) -> dict[str, Any]:
    """Return the demo's network as a job names it, trained where it is not there yet."""
    weights = folder / "net.safetensors"
    if not weights.exists():
        trained = train(make_scenes(200, split="test", seed=20), seed=0)
        save_weights(trained.model, weights, trained.spec.size)
    return {"name": "jobs.demo.network:digit_net", "weights": str(weights), "activation": "sigmoid"}


def scene_set(folder: Path, name: str, count: int, split: Any, seed: int) -> LabelledSet:
    """Return a set of the demo's scenes, written where it is not there yet."""
    place = folder / name
    scenes = make_scenes(count, split=split, seed=seed)
    if not (place / "truth").exists():
        write_shards(scenes, place / "shards", shards=1, prefix="scenes")
        for number, scene in enumerate(scenes):
            _write(place / "truth.partial" / f"scene-{number:06d}.png", encode_index(scene_masks(scene)))
        (place / "truth.partial" / "classes.json").write_text(
            json.dumps({str(number + 1): name for number, name in enumerate(CLASS_NAMES)})
        )
        (place / "truth.partial").rename(place / "truth")
    return LabelledSet(
        name,
        {"uri": str(place / "shards" / "scenes-000000.tar"), "format": "webdataset", "label": "json.labels"},
        network(folder),
        None,
        place / "truth",
        {f"scene-{number:06d}": (scene.pixels, scene.labels[0] + 1) for number, scene in enumerate(scenes)},
    )


def coco_set(
    folder: Path, images: Path, model: dict[str, Any], names: Sequence[str], most: int | None = None
) -> LabelledSet:
    """Return COCO images with masks of those classes that ImageNet has.

    An image is labelled with the COCO classes that its mask shows; the model explains, of the ImageNet classes that a
    COCO class is made of, the one that it scores highest (the weak label is COCO's, and none of ImageNet's is known).
    Pixels without a label in the masks are not measured; all other classes are background.

    Args:
        folder: of the benchmark.
        images: with ``images/``, ``masks/`` and ``classes.json``.
        model: as a job names it.
        names: of the model's classes.
        most: images, the first by name; None: all.
    """
    table = {int(number): name for number, name in json.loads((images / "classes.json").read_text()).items()}
    of_imagenet = groups(names)
    known = {number: of_imagenet[name] for number, name in table.items() if name in of_imagenet}
    place = folder / f"coco-{Path(str(model['weights'])).name.partition('.')[0]}"
    replica = load_replica(Model.model_validate(model), device="cpu")
    rows: list[dict[str, Any]] = []
    main: dict[str, tuple[Path | Bytes, int]] = {}
    for path in sorted((images / "masks").glob("*.png")):
        if len(rows) == most:
            break
        mask = np.asarray(Image.open(path))
        shares = {number: float((mask == number).mean()) for number in np.unique(mask).tolist() if number in known}
        shown = {number: share for number, share in shares.items() if share >= _LEAST_SHARE}
        if not shown:
            continue
        picture = images / "images" / f"{path.stem}.jpg"
        pixels = decode(picture.read_bytes()).pixels
        with torch.inference_mode():
            scores = replica.model(replica.preprocess(pixels)[0][None])[0]
        labels = [max(known[number], key=lambda index: float(scores[index])) for number in shown]
        rows.append({"uri": str(picture), "id": path.stem, "labels": labels})
        truth = np.where(np.isin(mask, list(known)), mask, 0).astype(np.uint8)
        truth[mask == 0] = IGNORED
        _write(place / "truth" / f"{path.stem}.png", encode_index(truth))
        main[path.stem] = (picture, max(shown, key=lambda number: shown[number]))
    if not rows:
        raise InputError(f"--coco {images}: no image shows a class that ImageNet has; give the folder of COCO masks")
    (place / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = [{"id": number, "name": table[number], "classes": indices} for number, indices in known.items()]
    source = {"uri": str(place / "list.jsonl"), "format": "list", "label": "labels", "id": "id"}
    return LabelledSet("coco", source, model, classes, place / "truth", main)


def box_set(folder: Path, shards: Path, model: dict[str, Any], names: Sequence[str]) -> LabelledSet:
    """Return ImageNet's validation images with their boxes drawn as masks of one class, ``object``.

    A box is more than its object, so that no mask can agree with it wholly; what it tells is which of two is nearer.

    Args:
        folder: of the benchmark.
        shards: a folder of tars with ``.jpg``, ``.cls`` and ``.json`` (``boxes``).
        model: as a job names it.
        names: of the model's classes.
    """
    place = folder / "boxes"
    main: dict[str, tuple[Path | Bytes, int]] = {}
    paths = sorted(shards.glob("shard-*.tar"))
    for path in paths:
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name in sorted(each for each in members if each.endswith(".json")):
                stem = name.removesuffix(".json")
                boxes = json.loads(_bytes(tar, members[name]))["boxes"]
                pixels = decode(_bytes(tar, members[f"{stem}.jpg"])).pixels.permute(1, 2, 0).numpy()
                mask = np.zeros(pixels.shape[:2], np.uint8)
                for x0, y0, x1, y1 in boxes:
                    mask[round(y0) : round(y1), round(x0) : round(x1)] = 1
                _write(place / "truth" / f"{stem}.png", encode_index(mask))
                main[stem] = (np.ascontiguousarray(pixels), 1)
    if not paths:
        raise InputError(f"--boxes {shards}: there is no shard-*.tar; give the folder of images with boxes")
    classes = [{"id": 1, "name": "object", "classes": list(range(len(names)))}]
    source = {"uri": str(shards / "shard-*.tar"), "format": "webdataset", "label": "cls"}
    return LabelledSet("boxes", source, model, classes, place / "truth", main)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
