"""Grad-CAM++: Chattopadhay et al., Generalized Gradient-Based Visual Explanations, WACV 2018."""

from __future__ import annotations

from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, cell_sum, weighted_sum


class GradCAMpp(PassMethod):
    """``relu(sum_k w_k A_k)``, ``w_k = sum_ij alpha_kij relu(g_kij)``, ``alpha = g^2 / (2 g^2 + s_k g^3)`` (eq. 19).

    ``s_k = sum_ab A_kab``. Only cells with g > 0 contribute, and there ``alpha = 1 / (2 + s_k g)``: so
    ``w_k = sum_ij relu(g) / (2 + s_k relu(g))``, without powers and without an epsilon. The positive factor
    ``exp(S)`` of the paper's derivation is the same for all cells of a map and is left out (it overflows).

    The derivation supposes activations behind a ReLU, s_k >= 0. Where s_k < 0 (GELU, or a layer before its ReLU) the
    formula has a pole at g = -2 / s_k and changes sign behind it; s_k is taken as 0 there, so alpha is 1/2, its
    largest regular value, and the weight is continuous in s_k.
    """

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert gradient is not None
        positive = gradient.relu()
        denominator = (positive * signals.total.clamp_min(0)[:, :, None, None]).add_(2)
        weight = cell_sum(positive.div_(denominator), signals.cells)
        return weighted_sum(weight, signals.activation).relu_()


METHOD = GradCAMpp
