"""LayerCAM: Jiang et al., Exploring Hierarchical Class Activation Maps for Localization, TIP 2021."""

from __future__ import annotations

from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, weighted_sum


class LayerCAM(PassMethod):
    """``relu(sum_k relu(g_kij) A_kij)`` (eqs. 6 to 8)."""

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert gradient is not None
        positive = gradient.relu()
        if positive.shape[-2:] == (1, 1):
            return weighted_sum(positive[:, :, 0, 0], signals.activation).relu_()
        return positive.mul_(signals.activation).sum(1).relu_()


METHOD = LayerCAM
