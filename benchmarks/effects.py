"""Average drop and increase in confidence of a lake's maps, by several conventions at once.

Published figures differ in what a map's low values become and in which score is compared, and mostly do not say it.
So each map is measured by all of :data:`CONVENTIONS`, from two forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.audit.faithful import first_of_equals
from pipeline.audit.frame import Series
from pipeline.audit.keys import keys_of
from pipeline.audit.localisation import PRIOR_SIGMA
from pipeline.audit.model import LakeModel
from pipeline.cam.faithfulness import confidence_drop, confidence_increase, scaled_masks
from pipeline.cam.selection import probabilities
from pipeline.lake import Lake
from pipeline.lake.originals import Originals

_BATCH = 32


class Convention(NamedTuple):
    """What is compared: ``removed`` is what a map's zeros become, ``score`` what the model says of the class."""

    removed: str
    score: str

    def __str__(self) -> str:
        return f"{self.removed}, {self.score}"


#: The first is the one that docs/methods.md defines.
CONVENTIONS = (
    Convention("mean colour", "probability"),
    Convention("black", "probability"),
    Convention("mean colour", "logit"),
)
BASELINES = ("random map", "random pixels", "centred Gaussian")


class Effect(NamedTuple):
    """An image and class: ``full`` (conventions,), ``explained`` (conventions, rows), ``kept`` (rows,); rows are maps.

    ``sure`` is the class's probability, whatever the convention.
    """

    image_id: str
    target: int
    sure: float
    full: Tensor
    explained: Tensor
    kept: Tensor

    @property
    def drop(self) -> Tensor:
        """``max(0, Y - O) / Y`` (conventions, rows); NaN where Y, a logit, is not positive."""
        full = self.full[:, None]
        return confidence_drop(torch.where(full > 0, full, torch.nan), self.explained)

    @property
    def increase(self) -> Tensor:
        """1 where ``Y < O`` (conventions, rows)."""
        return confidence_increase(self.full[:, None].expand_as(self.explained), self.explained)


def effects(
    lake: Lake, model: LakeModel, series: Sequence[Series], done: Callable[[int], None] = lambda images: None
) -> Iterator[Effect]:
    """Yield the effect of each image and class whose maps the lake holds; rows are the series, then the baselines."""
    originals = Originals(lake)
    for unit in sorted(lake.commits):
        for image_id, maps in _by_image(lake.unit_maps(unit)).items():
            pixels = model.picture(originals, lake.image(image_id, unit))
            for target in sorted(set(maps["target_class"].to_pylist())):
                mine = maps.filter(pc.equal(maps["target_class"], target))
                places = {Series(row["method"], row["layer"]): row for row in mine.to_pylist()}
                stored = {each: torch.from_numpy(lake.heatmap(places[each], scaled=True)) for each in series}
                yield _effect(model, image_id, target, pixels, stored)
            done(1)


def _by_image(maps: pa.Table) -> dict[str, pa.Table]:
    return {name: maps.filter(pc.equal(maps["image_id"], name)) for name in pc.unique(maps["image_id"]).to_pylist()}


def _effect(model: LakeModel, image_id: str, target: int, pixels: Tensor, maps: Mapping[Series, Tensor]) -> Effect:
    size = (pixels.shape[1], pixels.shape[2])
    masks = torch.cat([scaled_masks(each[None], size) for each in [*maps.values(), *_baselines(image_id, maps, size)]])
    first = first_of_equals(masks)
    distinct = sorted(set(first))
    at = torch.tensor([distinct.index(each) for each in first])
    shown = masks[distinct].nan_to_num()[:, None]
    settings = model.replica.preprocess.settings
    dark = (-torch.tensor(settings.mean) / torch.tensor(settings.std)).view(-1, 1, 1)
    logits = _logits(model, torch.cat([pixels[None], shown * pixels, shown * pixels + (1 - shown) * dark]))
    scores = {
        "probability": probabilities(logits, model.job.model.activation)[:, target].double(),
        "logit": logits[:, target],
    }
    mean, black = 1 + at, 1 + len(distinct) + at
    chosen = {"mean colour": mean, "black": black}
    explained = torch.stack([scores[each.score][chosen[each.removed]] for each in CONVENTIONS])
    finite = masks.isfinite().flatten(1).all(1)
    return Effect(
        image_id,
        target,
        float(scores["probability"][0]),
        torch.stack([scores[each.score][0] for each in CONVENTIONS]),
        torch.where(finite, explained, torch.nan),
        masks.double().mean((1, 2)),
    )


def _baselines(image_id: str, maps: Mapping[Series, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return maps that know nothing of the image: noise on the coarsest grid, on pixels, and a central Gaussian."""
    grid = min((tuple(each.shape) for each in maps.values()), key=lambda shape: shape[0] * shape[1])
    rng = np.random.default_rng(int(keys_of([image_id], 0)[0]))
    noise = [torch.from_numpy(rng.random(shape, np.float32)) for shape in (grid, size)]
    down, across = ((torch.arange(side) + 0.5) / side - 0.5 for side in size)
    return *noise, torch.exp(-(down[:, None] ** 2 + across**2) / (2 * PRIOR_SIGMA**2))


def _logits(model: LakeModel, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        parts = [model.replica.model(part.to(model.replica.device)) for part in torch.split(pictures, _BATCH)]
    return torch.cat(parts).double().cpu()


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the first dimension and its standard error; what is NaN does not count."""
    count = (~values.isnan()).sum(0)
    mean = values.nanmean(0)
    squares = (values - mean).square().nansum(0)
    return mean, (squares / (count - 1).clamp_min(1) / count).sqrt()
