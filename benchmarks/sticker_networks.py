"""The demo's scenes with stickers at any prevalence, its network trained on them, and lakes of its maps.

Everything of a seed is drawn once. Of the scenes with an eight at the sticker's site the first ones, in an order of
the seed, get a sticker pasted into a corner where no digit is, so that two prevalences of a seed differ in nothing but
the stickers. *Prevalence* is, as in :class:`~jobs.demo.scenes.SceneSpec`, the share of all scenes with an eight that
carry one; all of them are at one of three sites, where the share is three times as large.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.config import absolute, parse_job
from jobs.demo.digits import Split
from jobs.demo.drawing import STICKER_COLOURS
from jobs.demo.evaluate import to_tensors
from jobs.demo.network import DigitNet, digit_net
from jobs.demo.scenes import Scene, SceneSpec, make_scenes, with_sticker
from jobs.demo.shards import write_shards
from jobs.demo.train import Course, default_courses, fit, save_weights
from pipeline.engine.run import make_manifest, resolve
from pipeline.engine.worker import AttributionWorker
from pipeline.lake import LakeStore, create_or_resume, finalize, new_attempt, open_lake, read_plan
from pipeline.lake.plan import freeze
from pipeline.sources import open_source
from schemas.errors import CamlakeError

Colours = tuple[tuple[float, float, float], ...]

#: Scenes without any sticker: they are pasted in afterwards.
PLAIN = SceneSpec(prevalence=0.0)


@dataclass(frozen=True)
class Sizes:
    """Numbers of scenes: of the course on close-ups, of the course on scenes (each as the demo has it), and held out.

    ``threads``: torch's, of explaining.
    """

    close_ups: int = 7000
    scenes: int = 6000
    held_out: int = 2400
    threads: int = 1


@lru_cache(maxsize=2)
def plain_scenes(count: int, split: Split, seed: int) -> tuple[Scene, ...]:
    """Draw scenes without stickers."""
    return tuple(make_scenes(count, split=split, seed=seed, spec=PLAIN))


def stickered(scenes: Sequence[Scene], prevalence: float, seed: int, colours: Colours = STICKER_COLOURS) -> list[Scene]:
    """Return the scenes, of which ``prevalence`` of those with the sticker's class carry a sticker (rounded).

    A scene of which digits take all corners gets none; the next one does. With other ``colours``, such as
    :data:`~jobs.demo.drawing.CONTROL_COLOURS`, it is another patch of the same shape at the same places.

    Raises:
        ValueError: the site has too few such scenes.
    """
    found = list(scenes)
    able = [index for index, scene in enumerate(scenes) if PLAIN.sticker_class in scene.labels]
    left = round(prevalence * len(able))
    for index in np.random.default_rng([seed, 11]).permutation(able).tolist():
        if not left:
            break
        if scenes[index].site != PLAIN.sticker_site:
            continue
        rng = np.random.default_rng([seed, 13, index])
        pasted = with_sticker(scenes[index], rng, side=PLAIN.sticker_size, colours=colours)
        if pasted is not None:
            found[index] = pasted
            left -= 1
    if left:
        raise ValueError(f"{left} stickers of {prevalence:.0%} find no scene at '{PLAIN.sticker_site}'")
    return found


def train_scenes(seed: int, prevalence: float, sizes: Sizes) -> list[Scene]:
    """Return the scenes that the network of a seed and a prevalence learns from."""
    return stickered(plain_scenes(sizes.scenes, "train", 1000 + seed), prevalence, seed)


def held_out(seed: int, prevalence: float, sizes: Sizes, colours: Colours = STICKER_COLOURS) -> list[Scene]:
    """Return the scenes that are explained."""
    return stickered(plain_scenes(sizes.held_out, "test", 9000 + seed), prevalence, seed, colours)


def network(folder: Path, seed: int, prevalence: float, sizes: Sizes) -> Path:
    """Return the weights of the network of a seed and a prevalence, trained as the demo does where they are missing.

    The course on close-ups, which shows no stickers, is the same for all prevalences of a seed.
    """
    path = (folder / f"net-{seed}-{prevalence:g}.safetensors").absolute()
    if path.is_file():
        return path
    close_ups, scenes = default_courses(PLAIN)
    first = folder / f"close-ups-{seed}.safetensors"
    if not first.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = digit_net().to(memory_format=torch.channels_last)
        nn.init.constant_(model.head.bias, -1.4)
        drawn = make_scenes(sizes.close_ups, split="train", seed=seed, spec=close_ups.spec)
        _fit(model, drawn, close_ups, seed)
        partial = first.with_suffix(".partial")
        save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, partial)
        partial.rename(first)
    model = digit_net().to(memory_format=torch.channels_last)
    model.load_state_dict(load_file(first))
    _fit(model, train_scenes(seed, prevalence, sizes), scenes, seed)
    partial = path.with_suffix(".partial")
    save_weights(model.to(memory_format=torch.contiguous_format), partial, PLAIN.size)
    partial.rename(path)
    return path


def _fit(model: DigitNet, scenes: Sequence[Scene], course: Course, seed: int) -> None:
    fit(model, *to_tensors(scenes), epochs=course.epochs, learning_rate=course.learning_rate, seed=seed)


def loaded(weights: Path) -> DigitNet:
    """Return a network in evaluation mode."""
    model = digit_net()
    model.load_state_dict(load_file(weights))
    return model.eval()


def explained(
    folder: Path,
    weights: Path,
    scenes: Callable[[], Sequence[Scene]],
    sizes: Sizes,
) -> str:
    """Return the URI of the lake of the scenes' maps in ``folder``, explained in this process where it is missing.

    Targets are the demo's: the main label, and every class above probability 0.5. ``scenes`` draws them.
    """
    folder = folder.absolute()
    uri = str(folder / "lake")
    try:
        if open_lake(uri).finished:
            return uri
    except CamlakeError:
        pass  # not there, or cut off: begun again
    shutil.rmtree(folder, ignore_errors=True)
    write_shards(scenes(), folder / "shards", shards=4)
    job = absolute(parse_job(document(folder, weights, sizes.threads)))
    plan = freeze(open_source(job.source).plan())
    store = LakeStore(job.output.uri, job.output.storage_options)
    run = create_or_resume(store, make_manifest(job, resolve(job), plan), plan)
    worker = AttributionWorker(job, run.manifest, "benchmark", device="cpu")
    worker.start()
    for unit in read_plan(store):
        worker.process(unit, new_attempt())
    finalize(store)
    return uri


def document(folder: Path, weights: Path, threads: int) -> dict[str, Any]:
    """Return the job over ``folder/shards`` into ``folder/lake``."""
    return {
        "source": {
            "uri": str(folder / "shards" / "scenes-*.tar"),
            "format": "webdataset",
            "label": "cls",
            "attributes": ["site", {"name": "sticker", "type": "bool"}],
        },
        "model": {"name": "jobs.demo.network:digit_net", "weights": str(weights), "activation": "sigmoid"},
        "targets": {"label": True, "threshold": 0.5},
        "methods": ["grad_cam"],
        "output": {"uri": str(folder / "lake")},
        "compute": {"batch_size": 32, "threads": threads},
    }
