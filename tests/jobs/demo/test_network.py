"""The network: its grid, its linear head behind global average pooling, its layers' names."""

from __future__ import annotations

import torch

from jobs.demo.network import digit_net


def test_grids_and_logits() -> None:
    model = digit_net().eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("stage1", "stage2", "stage3", "stage4"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: seen.update({name: tuple(output.shape)})
        )
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 10)
    assert seen == {
        "stage1": (2, 16, 48, 48),
        "stage2": (2, 32, 24, 24),
        "stage3": (2, 64, 12, 12),
        "stage4": (2, 96, 12, 12),
    }
    assert digit_net(num_classes=3, widths=(4, 4, 8, 8))(torch.zeros(1, 3, 56, 56)).shape == (1, 3)


def test_cam_applies() -> None:
    torch.manual_seed(0)
    model = digit_net().eval()
    images = torch.randn(3, 3, 96, 96)
    with torch.inference_mode():
        grid = model.stage4(model.stage3(model.stage2(model.stage1(images))))
        expected = grid.mean((2, 3)) @ model.head.weight.T + model.head.bias
        assert torch.allclose(model(images), expected, atol=1e-5)
    assert grid.min() == 0
