"""Eigen-CAM: Muhammad & Yeasin, Class Activation Map using Principal Components, IJCNN 2020 (arXiv:2008.00299)."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod


class EigenCAM(PassMethod):
    """``M v_1``: the (cells, channels) activation matrix M on its first right singular vector, as the paper has it.

    The same for all classes, so it is computed once per image. M is not centred, which the paper does not do either
    (the package ``grad-cam`` does). A singular vector's sign is arbitrary: the map's sum is made non-negative, which
    behind a ReLU makes the whole map non-negative (Perron and Frobenius); where the sum is zero, the entry largest
    in magnitude is made positive. Without a ReLU in the network the map may be negative in part, so it is signed.
    """

    signed = True
    needs_gradients = False
    class_independent = True

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        batch, channels, height, width = signals.activation.shape
        # The Gram matrix squares the condition number; in float64 nothing of float32's precision is lost by it.
        matrix = signals.activation.flatten(2).transpose(1, 2).double()
        finite = matrix.isfinite().flatten(1).all(1)[:, None, None]
        matrix = torch.where(finite, matrix, 0.0)
        if height * width <= channels:
            values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
            projection = vectors[:, :, -1] * values[:, -1:].clamp_min(0).sqrt()
        else:
            vectors = torch.linalg.eigh(matrix.mT @ matrix).eigenvectors
            projection = (matrix @ vectors[:, :, -1:]).squeeze(2)
        total = projection.sum(1, keepdim=True)
        largest = projection.gather(1, projection.abs().argmax(1, keepdim=True))
        projection = torch.where(torch.where(total == 0, largest, total) < 0, -projection, projection)
        projection = torch.where(finite.squeeze(2), projection, torch.nan)
        return projection.float().view(batch, height, width)


METHOD = EigenCAM
