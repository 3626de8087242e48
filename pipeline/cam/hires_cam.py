"""HiResCAM: Draelos & Carin, Use HiResCAM instead of Grad-CAM for faithful explanations, 2020 (arXiv:2011.08891)."""

from __future__ import annotations

from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, weighted_sum


class HiResCAM(PassMethod):
    """``relu(sum_k g_kij A_kij)``."""

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert gradient is not None
        if gradient.shape[-2:] == (1, 1):
            return weighted_sum(gradient[:, :, 0, 0], signals.activation).relu_()
        return (gradient * signals.activation).sum(1).relu_()


METHOD = HiResCAM
