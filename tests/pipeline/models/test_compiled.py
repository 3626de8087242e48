"""Compiled forwards: the same values, the same bits in any row, and the network itself where it cannot be compiled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pipeline.models.compiled as module
from pipeline.attributor import Attributor
from pipeline.models.compiled import compiled
from tests.pipeline.cam import nets

pytestmark = [
    # The compiler's own: it asks for a faster precision, and for features that a newer Python deprecates.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


def test_values_are_the_network_s_and_bits_do_not_depend_on_the_row(caplog: pytest.LogCaptureFixture) -> None:
    network = nets.make("gap").eval().to(memory_format=torch.channels_last)
    images = nets.images(8).contiguous(memory_format=torch.channels_last)
    with caplog.at_level(logging.WARNING, module.__name__):
        fast = compiled(network, images)
    assert [record for record in caplog.records if record.name == module.__name__] == []
    assert fast is not network
    with torch.no_grad():
        expected = network(images)
    found = fast(images)
    assert torch.allclose(found, expected, atol=1e-5)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.equal(fast(images[order].contiguous(memory_format=torch.channels_last)), found[order])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


class Python(nn.Module):
    """Code that the compiler does not follow."""

    def forward(self, images: Tensor) -> Tensor:
        print("", end="")
        return images.mean((2, 3)) * float(images.numpy().shape[0])


def test_what_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    network = Python()
    with caplog.at_level(logging.WARNING, module.__name__):
        assert compiled(network, nets.images(2)) is network
    assert "runs without torch.compile" in caplog.text


def test_one_form_too_many_runs_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Linear(4, 2).eval()
    monkeypatch.setattr(module, "_MOST_FORMS", 1)
    with torch._dynamo.config.patch(recompile_limit=1), caplog.at_level(logging.WARNING, module.__name__):
        assert compiled(network, torch.ones(2, 4)) is not network
        assert compiled(network, torch.ones(3, 4)) is network
    assert "runs without torch.compile" in caplog.text


def test_other_values_are_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    network = nets.make("gap").eval()

    def wrong(model: nn.Module, **_: Any) -> Any:
        return lambda images: model(images) * 1.01

    monkeypatch.setattr(torch, "compile", wrong)
    with caplog.at_level(logging.WARNING, module.__name__):
        assert compiled(network, nets.images(2)) is network
    assert "gives other values" in caplog.text


@pytest.mark.parametrize("kind", ["gap", "inplace"])
def test_the_clean_pass_is_compiled_where_no_gradient_is_asked_for(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = nets.make(kind).to(memory_format=torch.channels_last)
    methods = ["cam", "grad_cam", "xgrad_cam"] if kind == "gap" else ["eigen_cam"]
    options: dict[str, Any] = {"head": model.head(), "layers": nets.target_layers(model)[1:]} if kind == "gap" else {}
    options.setdefault("layers", nets.target_layers(model))
    fast = Attributor(model, methods, compile=True, batch_size=4, **options)
    plain = Attributor(model, methods, batch_size=4, **options)
    images = nets.images(7)
    expected = plain(images)
    with caplog.at_level(logging.WARNING, module.__name__):
        fast(images)
    assert [record for record in caplog.records if record.name == module.__name__] == []
    # From here on, nothing but the compiled form runs.
    monkeypatch.setattr(type(model), "forward", None)
    found = fast(images)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    for method, maps in expected.maps.items():
        for layer, each in maps.items():
            assert torch.allclose(found[method, layer], each, atol=1e-5), (method, layer)


@pytest.mark.parametrize("stem", [False, True])
def test_maps_are_the_same_up_to_rounding(stem: bool) -> None:
    model = nets.make("gap").to(memory_format=torch.channels_last)
    layers = nets.target_layers(model)
    options: dict[str, Any] = {"layers": layers, "head": model.head(), "batch_size": 4, "mask_batch": 8}
    methods = ["cam", "grad_cam", "score_cam", {"name": "smooth_grad_cam_pp", "samples": 2}]
    fast = Attributor(model, methods, compile=True, stem=stem, **options)
    plain = Attributor(model, methods, **options)
    images, seeds = nets.images(6), range(6)
    found, expected = fast(images, image_seeds=seeds), plain(images, image_seeds=seeds)
    for method, maps in expected.maps.items():
        for layer, each in maps.items():
            assert torch.allclose(found[method, layer], each, atol=1e-5), (method, layer)


def test_weights_are_constants() -> None:
    network = nn.Conv2d(3, 8, 3).eval()
    images = nets.images(2)
    fast = compiled(network, images)
    with torch.no_grad():
        before = network(images)
        network.weight.zero_()
    assert torch.allclose(fast(images), before, atol=1e-5)


@pytest.mark.parametrize("columns", [3, 5, 10])
def test_rows_of_few_columns_have_the_same_bits_in_any_place(columns: int) -> None:
    network, rows = nn.Linear(64, columns).eval(), torch.randn(16, 64)
    fast = compiled(network, rows)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(fast(rows[order]), fast(rows)[order])
