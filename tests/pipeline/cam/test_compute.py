"""The network's precision, layout and static shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.attributor import Attributor
from pipeline.cam.network import network_layout
from tests.pipeline.cam import nets


def test_precision_and_layout_are_the_networks() -> None:
    model = nets.make("gap")
    assert network_layout(model) == (torch.float32, torch.contiguous_format)
    assert network_layout(model.to(memory_format=torch.channels_last)) == (torch.float32, torch.channels_last)
    assert network_layout(model.bfloat16()) == (torch.bfloat16, torch.channels_last)
    assert network_layout(torch.nn.Conv2d(1, 8, 1)) == (torch.float32, torch.contiguous_format)  # ambiguous


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_forward_has_one_shape_precision_and_layout(
    memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    seen: set[tuple[object, ...]] = set()

    def record(module: object, args: tuple[Tensor]) -> None:
        seen.add((tuple(args[0].shape), args[0].dtype, args[0].is_contiguous(memory_format=memory_format)))

    model = nets.make("inplace").to(dtype=dtype, memory_format=memory_format)
    model.register_forward_pre_hook(record)
    attributor = Attributor(
        model,
        ["grad_cam", {"name": "smooth_grad_cam_pp", "samples": 3}, "score_cam"],
        layers=nets.target_layers(model)[1:],
        batch_size=4,
        mask_batch=4,
        stem=False,
    )
    attributor(nets.images(6).contiguous(memory_format=torch.channels_last), [0] * 6)
    assert seen == {((4, 3, 20, 24), dtype, True)}
