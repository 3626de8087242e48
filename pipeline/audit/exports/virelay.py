"""A ViRelAy project: HDF5 files of images, maps and their analysis, and the YAML file that names them.

The layout is that which ViRelAy's reader takes. It calls an image's model input a sample, a map an attribution, and
a set of maps (here those that explain one class) a category with embeddings and clusters.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from PIL import Image

from pipeline.audit.exports.base import About, Export, Item
from pipeline.audit.parts import find_parts
from pipeline.lake.enlarge import resize
from schemas import layout
from schemas.audit import GRID, OUTCOMES
from schemas.errors import InputError
from schemas.view import View

DATASET, ATTRIBUTION, ANALYSIS = "dataset.h5", "attribution.h5", "analysis.h5"
LABELS, PROJECT = "label-map.json", "project.yaml"
#: The category of all maps.
ALL = "all"
#: Most pixels of a sample's longer side, which otherwise is the model's input.
SIDE = 256
#: Attributes of at most so many values are clusters too.
MOST_VALUES = 24

_COMPONENTS = 8

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class _Seen:
    """What the analysis needs of the items."""

    target: list[int] = field(default_factory=list)
    outcome: list[int] = field(default_factory=list)
    density: list[npt.NDArray[np.float32]] = field(default_factory=list)
    loadings: list[npt.NDArray[np.float32]] = field(default_factory=list)
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, item: Item, about: About) -> None:
        """Keep some numbers of an item."""
        self.target.append(item.row["target_class"])
        self.outcome.append(OUTCOMES.index(item.outcome))
        self.density.append(item.density.ravel())
        self.loadings.append(item.loadings)
        for attribute in about.columns:
            self.attributes.setdefault(attribute, []).append(str(item.image[attribute]))


class ViRelAy(Export):
    """Writes ``project.yaml``, ``label-map.json``, ``dataset.h5``, ``attribution.h5`` and ``analysis.h5``."""

    def write(self, items: Iterable[Item], about: About, folder: Path) -> None:
        """Write the project.

        A sample is the image's view at the size of the model's input; a map is enlarged to the same size. Of the
        model's output only the probabilities are there that the lake holds: of the label, the predicted and the
        explained class; the others are 0.
        """
        h5py = _h5py()
        height, width = _size(about.manifest.model.input_size)
        classes = about.manifest.model.num_classes
        seen = _Seen()
        with h5py.File(folder / DATASET, "w") as dataset, h5py.File(folder / ATTRIBUTION, "w") as attribution:
            data = _growing(dataset, "data", (height, width, 3), "uint8")
            names = dataset.create_dataset("image_id", (0,), h5py.string_dtype(), maxshape=(None,))
            maps = _growing(attribution, "attribution", (height, width, 3), "float32")
            prediction = _growing(attribution, "prediction", (classes,), "float32")
            labels = [_growing(file, "label", (), "uint32") for file in (dataset, attribution)]
            for item in items:
                label = item.image["label"]
                _append(data, seen_pixels(item.picture, item.view, height, width))
                # Colours are summed, and a single one is not taken: each gets its share.
                _append(maps, resize(item.heat, height, width)[..., None] / np.full(3, 3, np.float32))
                _append(prediction, _probabilities(item, classes))
                _append(names, item.image["image_id"])
                for each in labels:
                    # There is no null; the label map has an entry for it.
                    _append(each, classes if label is None else label)
                seen.add(item, about)
        with h5py.File(folder / ANALYSIS, "w") as analysis:
            categories = _analyse(analysis, seen, about)
        (folder / LABELS).write_text(json.dumps(_label_map(about, classes), indent=1), encoding="utf-8")
        project = yaml.safe_dump(_project(about, width, height, categories > 0), sort_keys=False, allow_unicode=True)
        (folder / PROJECT).write_text(project, encoding="utf-8")

    def how_to_open(self, folder: Path) -> str:
        """Return a command."""
        return shlex.join(["virelay", str(folder.absolute() / PROJECT)])


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError("--to virelay needs h5py; pip install 'camlake[audit]'") from None
    return h5py


def _size(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, SIDE / max(size))
    return max(8, round(size[0] * factor)), max(8, round(size[1] * factor))


def _growing(file: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Return a data set that takes one entry after another; large entries are compressed one by one."""
    big = math.prod(shape) > 256
    options: dict[str, Any] = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 4} if big else {}
    if not big:
        options["chunks"] = (256, *shape)
    return file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), **options)


def _append(dataset: Any, value: Any) -> None:
    dataset.resize(len(dataset) + 1, axis=0)
    dataset[-1] = value


def seen_pixels(picture: Image.Image, view: View, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the view of a picture (height, width, 3) uint8; black where it reaches beyond the picture."""
    x0, y0, x1, y1 = max(view.x0, 0.0), max(view.y0, 0.0), min(view.x1, picture.width), min(view.y1, picture.height)
    found = Image.new("RGB", (width, height))
    if x1 <= x0 or y1 <= y0:
        return np.asarray(found)
    across, down = width / (view.x1 - view.x0), height / (view.y1 - view.y0)
    left, top = round((x0 - view.x0) * across), round((y0 - view.y0) * down)
    right, bottom = round((x1 - view.x0) * across), round((y1 - view.y0) * down)
    size = max(1, right - left), max(1, bottom - top)
    found.paste(picture.resize(size, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)), (left, top))
    return np.asarray(found)


def _probabilities(item: Item, classes: int) -> npt.NDArray[np.float32]:
    found = np.zeros(classes, np.float32)
    known = [
        (item.image["label"], item.image["label_probability"]),
        (item.row["target_class"], item.row["probability"]),
        (item.image["predicted_class"], item.image["predicted_probability"]),
    ]
    for index, probability in known:
        if index is not None and probability is not None and 0 <= index < classes and math.isfinite(probability):
            found[index] = probability
    return found


def _analyse(file: Any, seen: _Seen, about: About) -> int:
    """Write a category for each explained class and one for all, of the maps that have mass; return how many."""
    target, density = np.array(seen.target), np.stack(seen.density).astype(np.float64)
    sound = np.asarray(np.isfinite(density).all(axis=1), np.bool_)
    loadings = _loadings(seen, density, sound, target, about)
    clusters = _clusters(seen, loadings)
    categories = {ALL: sound} | {category(each): sound & (target == each) for each in np.unique(target).tolist()}
    for name, chosen in categories.items():
        rows = np.flatnonzero(chosen)
        if not len(rows):
            continue
        group = file.create_group(name)
        group["index"] = rows
        embeddings, eigenvalues = principal(density[rows])
        # Every category must have the same embeddings and clusters: names are taken from the first.
        group["embedding/pca"] = embeddings
        group["embedding/pca"].attrs["eigenvalue"] = eigenvalues
        if loadings.shape[1] > 1:
            group["embedding/parts"] = loadings[rows]
        for cluster, (numbers, meaning) in clusters.items():
            group[f"cluster/{cluster}"] = numbers[rows]
            group[f"cluster/{cluster}"].attrs["names"] = json.dumps(meaning)
    return len(file)


def category(target_class: int) -> str:
    """Return the name of a class's category, which is its id in the label map too."""
    return f"class-{target_class:05d}"


def _loadings(seen: _Seen, density: Floats, sound: Bools, target: Integers, about: About) -> Floats:
    """Return the loadings (n, K) on the audit's parts, or on parts that are learnt from these maps."""
    if about.parts is not None:
        return np.stack(seen.loadings).astype(np.float64)
    flat = pa.array(density[sound].astype(np.float32).ravel())
    sample = pa.table(
        {
            "target_class": target[sound],
            "half": np.zeros(int(sound.sum()), np.int8),
            "map": pa.FixedSizeListArray.from_arrays(flat, GRID**2),
        }
    )
    learnt = find_parts(sample, min(about.frame.settings.parts, len(sample) // 2), about.frame.settings.seed).loadings
    found = np.zeros((len(density), learnt.shape[1]))
    found[sound] = learnt
    return found


def _clusters(seen: _Seen, loadings: Floats) -> dict[str, tuple[Integers, list[str]]]:
    """Return numbers (n,) and what they mean, by name."""
    found: dict[str, tuple[Integers, list[str]]] = {"outcome": (np.array(seen.outcome, np.int64), list(OUTCOMES))}
    if loadings.shape[1] > 1:
        strongest = np.where(loadings.any(1), loadings.argmax(1), loadings.shape[1])
        found["part"] = strongest, [*(f"part {number}" for number in range(loadings.shape[1])), "none"]
    for attribute, values in seen.attributes.items():
        names, numbers = np.unique(np.array(values), return_inverse=True)
        key = layout.safe(attribute)
        if 1 < len(names) <= MOST_VALUES and f"by {key}" not in found:
            found[f"by {key}"] = numbers.astype(np.int64), names.tolist()
    return found


def principal(density: Floats) -> tuple[Floats, Floats]:
    """Return principal components (n, c), c at least 2 and at most 8, and their variances (c,)."""
    centred = density - density.mean(0)
    left, size, axes = np.linalg.svd(centred, full_matrices=False)
    count = min(_COMPONENTS, len(size))
    # The sign of an axis is arbitrary; its largest entry is made positive, so that exports are the same anywhere.
    sign = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:count]
    found = np.zeros((len(density), max(2, count)))
    found[:, :count] = left[:, :count] * size[:count] * np.where(sign == 0, 1, sign)
    variance = np.zeros(max(2, count))
    variance[:count] = size[:count] ** 2 / len(density)
    return found, variance


def _label_map(about: About, classes: int) -> list[dict[str, Any]]:
    found = [
        {"index": index, "word_net_id": category(index), "name": about.frame.name(index)} for index in range(classes)
    ]
    return [*found, {"index": classes, "word_net_id": "no-label", "name": "(no label)"}]


def _project(about: About, width: int, height: int, analysed: bool) -> Mapping[str, Any]:
    return {
        "project": {
            "name": about.name,
            "model": about.manifest.model.name,
            "label_map": LABELS,
            "dataset": {
                "name": about.manifest.run_id,
                "type": "hdf5",
                "path": DATASET,
                "input_width": width,
                "input_height": height,
                "down_sampling_method": "none",
                "up_sampling_method": "none",
            },
            "attributions": {
                "attribution_method": f"{about.series.method} at {about.series.layer}",
                "attribution_strategy": "true_label" if about.frame.settings.targets == "label" else "predicted_label",
                "sources": [ATTRIBUTION],
            },
            "analyses": [{"analysis_method": "camlake", "sources": [ANALYSIS]}] if analysed else [],
        }
    }


EXPORT = ViRelAy
