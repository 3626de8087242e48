"""Training: repeatable, learns, and writes weights that speak for themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jobs.demo.evaluate import probabilities
from jobs.demo.network import digit_net
from jobs.demo.scenes import Scene, SceneSpec, make_scenes
from jobs.demo.train import Course, Trained, default_courses, fit, save_weights, train
from schemas.job import Preprocess


@pytest.fixture(scope="module")
def test_scenes() -> list[Scene]:
    return make_scenes(40, split="test", seed=6)


def _courses() -> tuple[Course, ...]:
    close_ups, scenes = default_courses(SceneSpec())
    return replace(close_ups, scenes=96, epochs=25), replace(scenes, scenes=64, epochs=1)


@pytest.fixture(scope="module")
def trained(test_scenes: list[Scene]) -> Trained:
    return train(test_scenes, courses=_courses())


def test_the_loss_falls(trained: Trained) -> None:
    assert list(trained.losses) == ["close-ups", "scenes"]
    losses = trained.losses["close-ups"]
    assert len(losses) == 75
    # 0.325 is the entropy of one class in ten: what a net reaches that looks at nothing.
    assert np.mean(losses[:3]) > 0.325
    assert np.mean(losses[-10:]) < 0.26
    assert len(trained.losses["scenes"]) == 2
    assert trained.seconds > 0
    assert not trained.model.training


def test_the_same_seed_gives_the_same_network(trained: Trained, test_scenes: list[Scene]) -> None:
    torch.rand(5)  # the state of the global generator does not matter,
    state = torch.get_rng_state()
    short = tuple(replace(course, scenes=64, epochs=1) for course in _courses())
    first = train(test_scenes[:20], courses=short, seed=3)
    assert torch.equal(state, torch.get_rng_state())  # and is left alone
    torch.rand(5)
    again = train(test_scenes[:20], courses=short, seed=3)
    other = train(test_scenes[:20], courses=short, seed=4)
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    assert first.accuracy == again.accuracy
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


def test_progress_reaches_its_end(test_scenes: list[Scene]) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    short = tuple(replace(course, scenes=150, epochs=0.5) for course in _courses())
    train(
        test_scenes[:20],
        courses=short,
        progress=lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    assert list(told) == ["drawing close-ups", "training on close-ups", "drawing scenes", "training on scenes"]
    for steps in told.values():
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]
    assert told["drawing scenes"][-1] == (150, 150)


def test_fit_sees_every_image_once_an_epoch() -> None:
    seen: list[int] = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(10))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.extend(((images[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().int().tolist())
            return self.weight.expand(len(images), 10)

    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 4, 4)
    losses = fit(Spy(), pixels, torch.zeros(40, 10), epochs=2, learning_rate=0.1, batch_size=10)
    assert len(losses) == 8
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]
    assert losses[-1] < losses[0]


def test_courses_follow_the_spec() -> None:
    spec = SceneSpec(prevalence=0.05, sticker_class=2)
    assert [course.spec for course in default_courses(spec)] == [spec.close_up(), spec]


def test_the_weights_speak_for_themselves(trained: Trained, test_scenes: list[Scene], tmp_path: Path) -> None:
    path = tmp_path / "new" / "digits.safetensors"
    save_weights(trained.model, path, 96)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(metadata) == {"preprocess", "class_names"}
    assert json.loads(metadata["class_names"])[:3] == ["zero", "one", "two"]
    assert len(json.loads(metadata["class_names"])) == 10
    preprocess = Preprocess.model_validate(json.loads(metadata["preprocess"]))
    assert (preprocess.resize, preprocess.crop, preprocess.interpolation) == (96, 96, "bilinear")
    again = digit_net()
    again.load_state_dict(state, strict=True)
    again.eval()
    pixels = torch.from_numpy(test_scenes[0].pixels).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    with torch.inference_mode():
        found = torch.sigmoid(again((pixels - mean) / std))[0]
    assert torch.allclose(found, torch.from_numpy(probabilities(trained.model, test_scenes[:1])[0]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_full_training_reaches_what_the_demo_says_and_uses_the_sticker() -> None:
    # One thread: on a machine that does other things too, threads that wait for each other cost more than they bring.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = train(make_scenes(500, split="test", seed=12))
    finally:
        torch.set_num_threads(threads)
    assert trained.accuracy.mean_average_precision > 0.92
    assert trained.accuracy.top_class > 0.94
    assert trained.effect.sticker > 0.25
    assert trained.effect.sticker > 3 * trained.effect.plain
    assert trained.effect.control < trained.effect.plain + 0.05
