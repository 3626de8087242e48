"""Fusing the maps of several layers."""

from __future__ import annotations

import pytest
import torch

from pipeline.attributor import Attributor
from pipeline.cam.fusion import fuse, scaled_by_maximum
from tests.pipeline.cam import nets, reference


def test_by_hand() -> None:
    deep = torch.tensor([[[4.0]]])
    shallow = torch.tensor([[[1.0, 2.0]]])
    mean = fuse([shallow, deep], "mean", 1)
    assert torch.equal(mean, torch.tensor([[[0.75, 1.0]]]))
    assert torch.equal(fuse([shallow, deep * 0], "max", 1), torch.tensor([[[0.5, 1.0]]]))
    tanh = fuse([shallow, deep * 0], "tanh_max", 1)
    assert tanh.flatten().tolist() == pytest.approx([0.761594, 0.964028], abs=1e-6)
    assert fuse([shallow * 0, deep], "tanh_max", 1).flatten().tolist() == [1, 1]


def test_signed_maps_are_scaled_by_their_largest_absolute_value() -> None:
    maps = torch.tensor([[[-4.0, 2.0]], [[0.0, 0.0]], [[torch.nan, 1.0]]])
    scaled = scaled_by_maximum(maps)
    assert scaled[:2].tolist() == [[[-1, 0.5]], [[0, 0]]]
    assert scaled[2].isnan().all()


@pytest.mark.parametrize("how", ["mean", "max", "tanh_max"])
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "smooth_grad_cam_pp", "eigen_cam"])
def test_methods_are_fused_as_their_layers_say(name: str, how: str) -> None:
    model = nets.make("gap")
    images = nets.images(2)
    # Named in an order that is not the network's: the deepest is the one that runs last, not the last named.
    spec = {"name": name, "label": "fused", "layers": ["features", "stem"], "fuse": how}
    result = Attributor(model, [name, spec], layers=nets.target_layers(model), head=model.head())(images, [[1, 3], [2]])
    assert list(result.maps["fused"]) == ["features+stem"]
    assert result["fused"].shape == (3, 10, 12)
    for row in range(3):
        parts = [result[name, layer][row].double() for layer in ("features", "stem")]
        assert torch.allclose(result["fused"][row].double(), reference.fused(parts, how, 0), atol=1e-6)
