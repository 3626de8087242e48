"""XGrad-CAM: Fu et al., Axiom-based Grad-CAM, BMVC 2020."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, weighted_sum


class XGradCAM(PassMethod):
    """``relu(sum_k a_k A_k)``, ``a_k = sum_ij g_kij A_kij / sum_ij A_kij`` (eq. 8).

    A channel whose activations sum to exactly zero has no such weight and takes no part; behind a ReLU it is zero
    everywhere, so nothing is lost.
    """

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert gradient is not None
        total = signals.total
        if gradient.shape[-2:] == (1, 1):
            weight = gradient[:, :, 0, 0]
        else:
            weight = (gradient * signals.activation).sum((2, 3)) / total
        return weighted_sum(torch.where(total == 0, 0.0, weight), signals.activation).relu_()


METHOD = XGradCAM
