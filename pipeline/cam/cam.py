"""CAM: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016."""

from __future__ import annotations

from torch import Tensor

from pipeline.cam.base import LayerSignals, LinearHead, PassMethod, weighted_sum


class CAM(PassMethod):
    """``sum_k w_ck A_k`` (eq. 2), with the weights of the linear head behind global average pooling.

    No ReLU: the map is signed, and its mean plus the bias is the class's logit.
    """

    signed = True
    needs_linear_head = True
    needs_gradients = False

    def maps(self, signals: LayerSignals, gradient: Tensor | None, target: Tensor, head: LinearHead | None) -> Tensor:
        """Return the maps (N, h, w)."""
        assert head is not None, "the plan gives every CAM its head"
        return weighted_sum(head.weight[target], signals.activation)


METHOD = CAM
