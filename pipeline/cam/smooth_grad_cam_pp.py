"""Smooth Grad-CAM++: Omeiza et al., An Enhanced Inference Level Visualization Technique, 2019 (arXiv:1908.01224)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.cam.base import LayerSignals, Moments, NoiseMethod, cell_sum, weighted_sum
from schemas.methods import SmoothGradCAMppSpec


class SmoothGradCAMpp(NoiseMethod):
    """Grad-CAM++ with ``D1 = g``, ``D2 = g^2``, ``D3 = g^3`` each averaged over noised copies of the image (eq. 7).

    ``relu(sum_k w_k A_k)``, ``w_k = sum_ij alpha relu(D1)``, ``alpha = D2 / (2 D2 + s_k D3)``, ``s_k = sum_ab A_kab``,
    A from the clean image. With ``numerator: first`` alpha's numerator is D1, as the paper prints it.

    The noise is normal, ``sigma = noise_level * (max - min)`` of each input. s_k < 0 is taken as 0, as in Grad-CAM++.
    Where alpha's denominator is exactly zero (in particular where every sample's gradient is), the cell takes no
    part. Averages may have D1 > 0 and D3 < 0, and alpha then has a pole that Grad-CAM++ lacks: at a ReLU network's
    last layers this hardly occurs, but at shallow layers single cells can dominate a map; that is the method's.

    Behind global average pooling and a linear head the gradient does not depend on the input, so at that layer the
    method equals Grad-CAM++ (``numerator: second``) exactly; no noised forward is run for it.
    """

    def __init__(self, spec: SmoothGradCAMppSpec) -> None:
        super().__init__(spec)
        self.samples = spec.samples
        self.noise_level = spec.noise_level
        self.numerator = spec.numerator

    def maps(self, signals: LayerSignals, moments: Moments) -> Tensor:
        """Return the maps (N, h, w)."""
        numerator = moments.second if self.numerator == "second" else moments.first
        denominator = torch.addcmul(2 * moments.second, signals.total.clamp_min(0)[:, :, None, None], moments.third)
        alpha = torch.where(denominator == 0, 0.0, numerator / denominator)
        weight = cell_sum(alpha.mul_(moments.first.relu()), signals.cells)
        return weighted_sum(weight, signals.activation).relu_()


METHOD = SmoothGradCAMpp
