"""Training of the demo's network: two short courses, then a report on held-out scenes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs.demo.digits import CLASS_NAMES
from jobs.demo.evaluate import (
    MEAN,
    STD,
    Accuracy,
    StickerEffect,
    measure_accuracy,
    measure_sticker,
    normalise,
    to_tensors,
)
from jobs.demo.network import DigitNet, digit_net
from jobs.demo.scenes import Scene, SceneSpec, make_scenes

#: Called with (what is being done, steps done, steps in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Course:
    """A part of the training: ``scenes`` drawn after ``spec``, seen ``epochs`` times, in one learning-rate cycle."""

    name: str
    spec: SceneSpec
    scenes: int
    epochs: float
    learning_rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A trained network (in evaluation mode) with its report.

    ``losses``: of each step, by course. ``seconds``: wall time in all, scenes and report too.
    """

    model: DigitNet
    spec: SceneSpec
    losses: dict[str, list[float]]
    accuracy: Accuracy
    effect: StickerEffect
    seconds: float


def default_courses(spec: SceneSpec) -> tuple[Course, ...]:
    """Return the courses for scenes of ``spec``.

    Behind global average pooling one digit among three is a faint signal, so the network begins with close-ups:
    scenes of one digit each, cut so small that it fills them. Without them, a minute of training learns next to
    nothing.
    """
    return (
        Course("close-ups", spec.close_up(), scenes=7000, epochs=3, learning_rate=4e-3),
        Course("scenes", spec, scenes=6000, epochs=3.3, learning_rate=6e-3),
    )


def train(
    test_scenes: Sequence[Scene],
    spec: SceneSpec | None = None,
    *,
    seed: int = 0,
    courses: Sequence[Course] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a network on scenes made for it, and report on ``test_scenes``.

    The same arguments give the same network on the same machine with the same number of torch threads.

    Args:
        test_scenes: held-out scenes, made with ``split="test"``.
        spec: what the training scenes look like, the sticker too.
        seed: of the scenes, the first weights and the order of the images.
        courses: Default: :func:`default_courses`.
        progress: called as the work goes on.

    Raises:
        InputError: no test scene suits the check of the sticker, or scikit-learn is not installed.
    """
    began = time.perf_counter()
    spec = spec or SceneSpec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digit_net().to(memory_format=torch.channels_last)
    # One class in five is there: begin with that, not with a half (Karpathy, "A recipe for training", 2019).
    nn.init.constant_(model.head.bias, -1.4)
    losses: dict[str, list[float]] = {}
    for number, course in enumerate(default_courses(spec) if courses is None else courses):
        scenes = _make(course, seed=1000 * number + seed, progress=progress)
        losses[course.name] = fit(
            model,
            *to_tensors(scenes),
            epochs=course.epochs,
            learning_rate=course.learning_rate,
            seed=seed,
            progress=None if progress is None else _named(progress, f"training on {course.name}"),
        )
    model = model.to(memory_format=torch.contiguous_format)
    accuracy = measure_accuracy(model, test_scenes)
    effect = measure_sticker(model, test_scenes, spec, seed=seed)
    return Trained(model, spec, losses, accuracy, effect, time.perf_counter() - began)


def _named(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _make(course: Course, *, seed: int, progress: Progress | None) -> list[Scene]:
    done = 0

    def tell(scenes: int) -> None:
        nonlocal done
        done += scenes
        if progress is not None:
            progress(f"drawing {course.name}", done, course.scenes)

    return make_scenes(course.scenes, split="train", seed=seed, spec=course.spec, progress=tell)


def fit(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train ``model`` in place: binary cross-entropy, AdamW, one cycle of the learning rate (Smith and Topin, 2018).

    Args:
        model: the network; left in evaluation mode.
        pixels: (n, 3, H, W) uint8.
        labels: (n, classes) float32, 0 or 1.
        epochs: passes over the images; need not be whole.
        learning_rate: the cycle's highest.
        batch_size: images per step, n at most.
        seed: of the order of the images.
        progress: called with (steps done, steps in all).

    Returns:
        The loss of each step.
    """
    batch_size = min(batch_size, len(pixels))
    steps = max(1, round(epochs * len(pixels) / batch_size))
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps + 1, pct_start=0.2)
    losses: list[float] = []
    left = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(steps):
        if len(left) < batch_size:
            left = torch.randperm(len(pixels), generator=generator)
        batch, left = left[:batch_size], left[batch_size:]
        loss = F.binary_cross_entropy_with_logits(model(normalise(pixels[batch])), labels[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps)
    model.eval()
    return losses


def save_weights(model: DigitNet, path: Path, size: int) -> None:
    """Write the weights as safetensors whose metadata let the job file leave out preprocessing and class names.

    ``preprocess`` (the members of :class:`schemas.job.Preprocess`) and ``class_names`` are JSON. ``size`` is the side
    of the scenes in pixels. The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    preprocess = {"resize": size, "crop": size, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bilinear"}
    metadata = {"preprocess": json.dumps(preprocess), "class_names": json.dumps(list(CLASS_NAMES))}
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata=metadata)
