"""Grad-CAM: Selvaraju et al., Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017."""

from __future__ import annotations

from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, weighted_sum


class GradCAM(PassMethod):
    """``relu(sum_k a_k A_k)``, ``a_k = mean_ij g_kij`` (eqs. 1 and 2)."""

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert gradient is not None
        return weighted_sum(gradient.mean((2, 3)), signals.activation).relu_()


METHOD = GradCAM
