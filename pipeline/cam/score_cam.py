"""Score-CAM: Wang et al., Score-Weighted Visual Explanations for CNNs, CVPR Workshops 2020."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.cam.base import Budget, ChannelScores, MaskGroup, MaskMethod, weighted_sum
from schemas.methods import ScoreCAMSpec

#: Masks that a budget has scored before it looks again; fewer fit the masks better, more fill larger chunks.
ROUND = 32


class Switches(NamedTuple):
    """The four choices in which Score-CAM implementations differ."""

    score: str
    weight: str
    normalise: str
    align_corners: bool


CONVENTIONS = {
    "authors": Switches("probability", "raw", "after", False),
    "grad_cam": Switches("logit", "softmax", "after", True),
    "torchcam": Switches("logit", "softmax", "before", False),
    "paper": Switches("probability", "softmax", "after", False),
}


class ScoreCAM(MaskMethod):
    """``relu(sum_k a_k A_k)``, with ``a_k`` from the score of ``M_k = X * H_k``, the image under channel k's mask.

    ``H_k`` is A_k scaled to [0, 1] by its own minimum and maximum, before or after it is enlarged to the input. X is
    the normalised tensor, so what a mask removes becomes the dataset's mean colour. The switches:

    ==========  ===========  =======  =========  =============
    convention  score        weight   normalise  align_corners
    ==========  ===========  =======  =========  =============
    authors     probability  raw      after      false
    grad_cam    logit        softmax  after      true
    torchcam    logit        softmax  before     false
    paper       probability  softmax  after      false
    ==========  ===========  =======  =========  =============

    The paper subtracts the score of a baseline (the zero normalised image), torchcam the clean logit: the same number
    for every channel, which the softmax over channels cancels, so neither is computed. With raw weights the score
    itself is the weight, nothing subtracted.

    A constant channel has no mask of its own: min-max scaling gives 0/0. With softmax weights it is taken as the null
    mask (the image is removed entirely), as grad-cam and torchcam do by their epsilon, and enters the softmax and the
    sum; with raw weights it is skipped, as the authors' code does. A channel that is not finite makes the map NaN.

    With a budget only some masks are scored and the other scores are predicted, see :mod:`pipeline.cam.mask_budget`.

    "probability" is softmax over classes, or sigmoid for multi-label models. The authors' code enlarges the weighted
    maps before its ReLU; behind a ReLU layer that is the same map, at the layer's resolution.
    """

    def __init__(self, spec: ScoreCAMSpec) -> None:
        super().__init__(spec)
        preset = CONVENTIONS[spec.convention]
        self.switches = Switches(
            spec.score or preset.score,
            spec.weight or preset.weight,
            spec.normalise or preset.normalise,
            preset.align_corners if spec.align_corners is None else spec.align_corners,
        )
        self.needs_probability = self.switches.score == "probability"
        self.needs_null = self.switches.weight == "softmax"
        self.budget = None
        if spec.budget is not None:
            self.budget = Budget(
                first=spec.budget,
                correlation=spec.expected_correlation,
                round=ROUND,
                probability=self.needs_probability,
                exponential=self.needs_null,
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with the convention's choices written out."""
        return super().parameters | self.switches._asdict()

    def group(self, layer: str) -> MaskGroup:
        """Return what the masks of ``layer`` depend on."""
        return MaskGroup(layer, self.switches.normalise, self.switches.align_corners, self.budget)

    def maps(self, activation: Tensor, scores: ChannelScores) -> Tensor:
        """Return the maps (T, h, w)."""
        score = scores.probability if self.needs_probability else scores.logit
        assert score is not None
        if self.switches.weight == "softmax":
            weight = torch.softmax(score, 1)
        else:
            weight = torch.where(scores.constant, 0.0, score)
        weight = torch.where(scores.not_finite, torch.nan, weight)
        # One target at a time: a product over all targets at once might choose another kernel, and other bits, for
        # another number of targets.
        grid = activation.unsqueeze(0)
        return torch.cat([weighted_sum(row.unsqueeze(0), grid) for row in weight]).relu_()


METHOD = ScoreCAM
