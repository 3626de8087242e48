"""Do the methods of a lake mark what the model uses? Measured with the model, on a sample of its images.

For each image and class of the sample the maps of all methods and layers are read from the lake, scaled by their own
minimum and maximum (a signed map as it is), enlarged to the model's input and measured
(:mod:`pipeline.cam.faithfulness`). Beside them stand maps that know nothing: uniform noise on the grid of each layer, a
Gaussian in the middle of the view, and the uniform map, which has no order of pixels and so no deletion, insertion or
ROAD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.attributor import Attributor
from pipeline.audit.faithful_parts import Measured
from pipeline.audit.faithful_table import CENTRE, FAITHFUL_MEASURES, RANDOM, UNIFORM, Row, faithfulness_table
from pipeline.audit.findings.base import Evidence
from pipeline.audit.frame import Series
from pipeline.audit.keys import keys_of, mixed
from pipeline.audit.localisation import PRIOR_SIGMA
from pipeline.audit.model import LakeModel, load_model
from pipeline.audit.progress import Progression
from pipeline.cam.base import MaskMethod
from pipeline.cam.faithfulness import adcc, coherency, faithfulness, road, scaled_masks
from pipeline.lake import LakeStore
from schemas.errors import CamlakeError
from schemas.registries import METHODS, implementation

Floats = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]

_BATCH = 32
#: Maps that differ by less everywhere, as float16 rounds them, are one map: their measures are taken once.
_SAME = 1e-3
_PLACES = {measure.name: place for place, measure in enumerate(FAITHFUL_MEASURES)}


class _Image(NamedTuple):
    """An image of the sample and the class whose maps are measured."""

    image_id: str
    unit_id: str
    target: int


def measure_faithfulness(
    evidence: Evidence,
    images: int,
    *,
    say: Callable[[str], None],
    output: LakeStore | None = None,
    stream: TextIO | None = None,
) -> pa.Table | None:
    """Return :data:`schemas.audit.FAITHFULNESS` of the methods of a lake, or None where the model cannot be had.

    Each image and distinct map costs 41 forwards of changed images and 10 sparse systems; coherency another forward and
    backward. Of methods that mask images, such as Score-CAM, it would cost a map of its own, so they have neither
    coherency nor ADCC.

    Args:
        evidence: of the audit.
        images: most images.
        say: gets a line where model or pictures cannot be had.
        output: the audit's folder, where each image's values are kept and found again.
        stream: where progress goes (default: stderr).

    Raises:
        InputError: scipy is not installed.
        LakeError: the lake's maps, or kept values, are damaged.
    """
    chosen = [
        _Image(**row)
        for row in spread(evidence.sample, images, evidence.frame.settings.seed)
        .select(["image_id", "unit_id", "target_class"])
        .rename_columns(["image_id", "unit_id", "target"])
        .to_pylist()
    ]
    rows = _rows(evidence.frame.series)
    kept = Measured(output, evidence, rows)
    found = {
        image.image_id: values for image in chosen if (values := kept.get(image.image_id, image.target)) is not None
    }
    left = [image for image in chosen if image.image_id not in found]
    trouble: CamlakeError | None = None
    if left:
        try:
            model = load_model(evidence.lake)
        except CamlakeError as error:
            say(f"faithfulness left out: the model cannot be had ({error})")
            return None
        bench = _Bench(evidence, model, rows)
        evidence.originals.hold((image.image_id, image.unit_id) for image in left)
        with Progression(len(chosen) * len(rows), len(found) * len(rows), stream) as progress:
            for image, maps in _with_maps(evidence, left):
                try:
                    row = evidence.lake.image(image.image_id, image.unit_id)
                    pixels = model.picture(evidence.originals, row)
                except CamlakeError as error:
                    trouble = trouble or error
                    continue
                values = bench.measure(pixels, image, maps)
                kept.put(image.image_id, image.target, values)
                found[image.image_id] = values
                progress.done(len(rows))
    if trouble is not None:
        say(f"faithfulness left out for {len(chosen) - len(found)} of {len(chosen)} images ({trouble})")
    # In the order of the choice, whatever was measured when: the same sums to the bit.
    measured = [image for image in chosen if image.image_id in found]
    stacked = np.empty((len(rows), len(FAITHFUL_MEASURES), len(measured)))
    for place, image in enumerate(measured):
        stacked[:, :, place] = found[image.image_id]
    settings = evidence.frame.settings
    keys = keys_of([_cluster(evidence, image) for image in measured], settings.seed)
    return faithfulness_table(rows, stacked, keys, settings)


def spread(sample: pa.Table, images: int, seed: int) -> pa.Table:
    """Return at most ``images`` rows of the sample, of as many classes as there are; no image twice.

    The classes take turns in an order of their own by hash, each with its smallest keys first, so that the choice
    depends on the images and the seed alone.
    """
    classes, keys = sample["target_class"].to_numpy(), sample["key"].to_numpy()
    order = np.lexsort((keys, classes))
    starts = np.searchsorted(classes[order], classes[order])
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order)) - starts
    by_class = mixed(keys_of(["faithfulness"], seed), classes) if len(order) else keys
    ids = sample["image_id"].to_pylist()
    taken: dict[str, int] = {}
    for row in np.lexsort((by_class, turn)).tolist():
        if len(taken) == images:
            break
        taken.setdefault(ids[row], row)
    return sample.take(pa.array(list(taken.values()), pa.int64()))


class _Bench:
    """Measures the maps of one image after the other."""

    def __init__(self, evidence: Evidence, model: LakeModel, rows: Sequence[Row]) -> None:
        self._model, self._series, self._seed = model, evidence.frame.series, evidence.frame.settings.seed
        self._rows = rows
        job = model.job
        repeated = [
            spec
            for spec in job.methods
            if not issubclass(implementation(METHODS, "method", spec.name).METHOD, MaskMethod)
        ]
        keys = {spec.key for spec in repeated}
        self._repeated = [number for number, series in enumerate(self._series) if series.method in keys]
        self._attributor = (
            Attributor(
                model.replica.model,
                repeated,
                layers=model.replica.layers,
                head=model.replica.head,
                find_layer=model.replica.layer,
                seed=job.compute.seed,
                activation=job.model.activation,
                device=model.replica.device,
            )
            if repeated
            else None
        )

    def measure(self, pixels: Tensor, about: _Image, maps: Mapping[Series, Map]) -> Floats:
        """Return the measures (R, M) of the maps of an image (3, H, W); NaN where a row has none."""
        size, target = (pixels.shape[1], pixels.shape[2]), about.target
        image = pixels.to(self._model.replica.device)
        seed = int(keys_of([about.image_id], self._seed)[0])
        masks = torch.cat([scaled_masks(each[None], size) for each in self._maps(maps, size, seed)]).to(image)
        first = first_of_equals(masks)
        distinct = sorted(set(first))

        def score(pictures: Tensor) -> Tensor:
            return self._model.probability(pictures, target)

        plain = faithfulness(score, image, masks[distinct], batch=_BATCH)
        ranked = road(score, image, masks[distinct], seed=seed, batch=_BATCH)
        of = {name: getattr(plain, name) for name in ("drop", "increase", "deletion", "insertion", "kept")}
        of |= {"road": ranked.combined, "road_morf": ranked.most_first, "road_lerf": ranked.least_first}
        at = [distinct.index(each) for each in first]
        values = np.full((len(self._rows), len(FAITHFUL_MEASURES)), np.nan)
        for name, column in of.items():
            values[: len(at), _PLACES[name]] = column[at].numpy()
        # The uniform map keeps the image as it is.
        for name, value in {"drop": 0.0 if plain.full else np.nan, "increase": 0.0, "kept": 1.0}.items():
            values[-1, _PLACES[name]] = value
        if self._attributor is not None:
            again = self._again(self._attributor, image, target, masks[distinct], at)
            coherent = coherency(masks[self._repeated], again)
            whole = adcc(plain.drop[at][self._repeated], coherent, plain.kept[at][self._repeated])
            values[self._repeated, _PLACES["coherency"]] = coherent.numpy()
            values[self._repeated, _PLACES["adcc"]] = whole.numpy()
        return values

    def _maps(self, maps: Mapping[Series, Map], size: tuple[int, int], seed: int) -> Iterator[Tensor]:
        """Yield the maps of the rows, but for the last, in the order of the rows."""
        for series in self._series:
            yield torch.from_numpy(maps[series])
        for number, layer in enumerate(_layers(self._series)):
            grid = next(each.shape for series, each in maps.items() if series.layer == layer)
            yield torch.from_numpy(np.random.default_rng([seed, number]).random(grid, np.float32))
        down, across = ((torch.arange(side) + 0.5) / side - 0.5 for side in size)
        yield torch.exp(-(down[:, None] ** 2 + across**2) / (2 * PRIOR_SIGMA**2))

    def _again(self, attributor: Attributor, image: Tensor, target: int, masks: Tensor, at: Sequence[int]) -> Tensor:
        """Return the scaled maps (S, H, W) of the image times its map, of the methods that are repeated."""
        wanted = sorted({at[number] for number in self._repeated})
        # A map that is not finite has no explained image; its coherency is NaN by itself.
        explained = image * masks[wanted].nan_to_num()[:, None]
        maps = attributor(explained, [target] * len(wanted)).maps
        found = []
        for number in self._repeated:
            method, layer = self._series[number]
            place = wanted.index(at[number])
            found.append(scaled_masks(maps[method][layer][place : place + 1], (image.shape[1], image.shape[2])))
        return torch.cat(found)


def _layers(series: Sequence[Series]) -> list[str]:
    return list(dict.fromkeys(each.layer for each in series))


def _rows(series: Sequence[Series]) -> list[Row]:
    """Return what is measured: the methods, then what knows nothing."""
    return [
        *(Row(each.method, each.layer) for each in series),
        *(Row(RANDOM, layer, True) for layer in _layers(series)),
        Row(CENTRE, None, True),
        Row(UNIFORM, None, True),
    ]


def first_of_equals(masks: Tensor) -> list[int]:
    """Return for each mask of (T, H, W) the position of the first that equals it but for rounding."""
    positions: list[int] = []
    for place, mask in enumerate(masks):
        earlier = (
            other
            for other in range(place)
            if positions[other] == other and bool((masks[other] - mask).abs().max() < _SAME)
        )
        positions.append(next(earlier, place))
    return positions


def _with_maps(evidence: Evidence, images: Sequence[_Image]) -> Iterator[tuple[_Image, dict[Series, Map]]]:
    """Yield images with the maps (h, w) of their class, of every method and layer; unit by unit."""
    lake = evidence.lake
    for unit in dict.fromkeys(image.unit_id for image in images):
        mine = [image for image in images if image.unit_id == unit]
        ids = pa.array([image.image_id for image in mine], pa.string())
        table = lake.unit_maps(unit)
        places: dict[tuple[str, int], dict[Series, dict[str, Any]]] = {}
        for each in table.filter(pc.is_in(table["image_id"], ids)).to_pylist():
            where = places.setdefault((each["image_id"], each["target_class"]), {})
            where[Series(each["method"], each["layer"])] = each
        for image in mine:
            found = places[image.image_id, image.target]
            yield image, {series: lake.heatmap(found[series], scaled=True) for series in evidence.frame.series}


def _cluster(evidence: Evidence, image: _Image) -> str:
    """Return what an image depends on: its cluster, or itself; as the audit's pass does."""
    column = evidence.frame.settings.cluster
    if column is None:
        return image.image_id
    value = evidence.lake.image(image.image_id, image.unit_id)[column]
    return f"id {image.image_id}" if value is None else f"in {value}"
