"""Does a map mark what the model uses? Average drop, increase in confidence, deletion, insertion, ROAD and ADCC.

Each needs forwards of changed images, and none needs ground truth. With Y the class's score of the whole image and O
its score where the image is multiplied with the map, scaled to [0, 1]:

- drop: ``max(0, Y - O) / Y``; its mean over images is the *average drop*, a mean of clipped ratios and not a ratio of
  means (Chattopadhay et al., WACV 2018, sect. 4.1; lower is better);
- increase: ``Y < O``; its rate over images is the *increase in confidence* (ibid.; higher is better);
- deletion: area under the score against the share of pixels that were removed, those with the largest map values first
  (Petsiuk et al., RISE, BMVC 2018, sect. 4.1; lower is better);
- insertion: the same for pixels put into a blurred image (ibid.; higher is better);
- ROAD: pixels are removed so that their neighbours go on in their place, since a hole is seen by its edge alone: the
  mean score over several shares of removed pixels, the most relevant first (MoRF; lower is better) and the least
  relevant first (LeRF; higher is better); combined ``(LeRF - MoRF) / 2``, as grad-cam does
  (Rong et al., ICML 2022);
- coherency: is the map of the explained image the same map? ``(1 + Pearson's correlation) / 2`` (Poppi et al., CVPR
  workshops 2021; higher is better); ADCC: the harmonic mean of coherency, ``1 - kept`` (``kept``, see below, is their
  complexity) and ``1 - drop`` (ibid.).

Drop and increase reward a map for keeping much: a map of ones has drop 0. So ``kept``, the mean of the scaled map,
belongs beside them. Deletion, insertion and ROAD see the order of the pixels only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.cam.imputation import NOISE, linear_imputation

# RISE's blur: a kernel of 11 pixels, sigma 5.
_BLUR_RADIUS = 5
_BLUR_SIGMA = 5.0

#: Shares of the pixels that ROAD removes.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)

#: Images (B, C, H, W) to the explained class's score (B,), a probability.
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Faithfulness:
    """The measures of T maps of one image and class, each (T,) float64 on the CPU.

    ``drop`` in [0, 1], ``increase`` 0 or 1, ``deletion`` and ``insertion`` in the score's unit, ``kept`` in [0, 1]: the
    mean of the scaled map. All are NaN where a map holds NaN or infinity; ``drop`` also where the whole image's
    score is 0. ``full`` is the score of the whole image.
    """

    drop: Tensor
    increase: Tensor
    deletion: Tensor
    insertion: Tensor
    kept: Tensor
    full: float


@dataclass(frozen=True)
class Road:
    """ROAD of T maps of one image and class, each (T,) float64 on the CPU, in the score's unit.

    ``most_first`` (MoRF): the mean score over the shares, the most relevant pixels removed; ``least_first`` (LeRF): the
    least relevant ones. NaN where a map holds NaN or infinity.
    """

    most_first: Tensor
    least_first: Tensor

    @property
    def combined(self) -> Tensor:
        """``(LeRF - MoRF) / 2``, higher is better."""
        return (self.least_first - self.most_first) / 2


def scaled_masks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale maps (T, h, w) to [0, 1] by their own minimum and maximum and enlarge them bilinearly to (T, H, W).

    A constant map marks nothing: it becomes zero everywhere. A map that is not finite becomes NaN everywhere. Signed
    maps are scaled as they are, so their zero lies somewhere inside [0, 1].
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = torch.where(high > low, (maps - low) / torch.where(high > low, high - low, 1.0), 0.0)
    finite = maps.isfinite().flatten(1).all(1)[:, None, None]
    enlarged = functional.interpolate(
        torch.where(finite, scaled, 0.0)[:, None], size, mode="bilinear", align_corners=False
    )[:, 0]
    return torch.where(finite, enlarged, torch.nan)


def confidence_drop(full: Tensor, explained: Tensor) -> Tensor:
    """Return ``max(0, Y - O) / Y``, element by element; NaN where Y is 0 or either is NaN."""
    return (full - explained).clamp_min(0) / full


def confidence_increase(full: Tensor, explained: Tensor) -> Tensor:
    """Return 1 where ``Y < O``, else 0, in the scores' dtype; NaN where either is NaN."""
    increase = (full < explained).to(explained.dtype)
    return torch.where(full.isnan() | explained.isnan(), torch.nan, increase)


def blurred(images: Tensor) -> Tensor:
    """Blur images (B, C, H, W) with a normalised Gaussian of sigma 5 pixels, cut at 11; edges are repeated outwards."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = functional.pad(images, [_BLUR_RADIUS] * 4, mode="replicate")
    across = functional.conv2d(padded, kernel, groups=images.shape[1])
    return functional.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])


def replaced_counts(pixels: int, steps: int) -> list[int]:
    """Return how many pixels are replaced after 0, 1, ..., ``steps`` steps: from 0 to all, in equal parts, rounded."""
    return [(2 * step * pixels + steps) // (2 * steps) for step in range(steps + 1)]


def replaced(start: Tensor, end: Tensor, mask: Tensor, counts: list[int]) -> Tensor:
    """Return images (S, C, H, W): ``start`` with its ``counts[s]`` pixels of largest mask value taken from ``end``.

    Args:
        start: (C, H, W).
        end: (C, H, W).
        mask: (H, W) finite. Pixels of equal value, such as the zeros behind a ReLU, go in reading order.
        counts: S numbers of pixels.
    """
    taken = _ranks(mask) < torch.tensor(counts, device=mask.device)[:, None, None]
    return torch.where(taken[:, None], end, start)


def _ranks(mask: Tensor) -> Tensor:
    """Return the place (H, W) of each pixel where the largest is 0th; equal ones are in reading order."""
    order = mask.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank.view(mask.shape)


def area_under_curve(scores: Tensor, counts: list[int]) -> Tensor:
    """Return the area (T,) under scores (T, S + 1) against the share of replaced pixels, by the trapezoidal rule."""
    share = torch.tensor(counts, dtype=scores.dtype, device=scores.device) / counts[-1]
    return torch.trapezoid(scores, share, dim=1)


def faithfulness(score: Score, image: Tensor, masks: Tensor, *, steps: int = 16, batch: int = 32) -> Faithfulness:
    """Measure T maps of one image and class.

    What a mask or a deletion removes becomes the zero of the normalised tensor: the dataset's mean colour, not black.
    Forwards: 3 + T (1 + 2 (steps - 1)).

    Args:
        score: the class's probability of images (B, C, H, W), B at most ``batch``.
        image: (C, H, W), normalised.
        masks: (T, H, W) in [0, 1], as ``scaled_masks`` returns them; NaN throughout for a map that is not finite.
        steps: parts in which the pixels are removed and inserted.
        batch: images per forward.

    Raises:
        ValueError: ``steps`` or ``batch`` is less than 1, or the masks are not of the image's size.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps is {steps} and batch is {batch}; both must be 1 or more")
    _check_sizes(image, masks)

    def scores(images: Tensor) -> Tensor:
        return _scores(score, images, batch)

    blank, blur = torch.zeros_like(image), blurred(image[None])[0]
    full, nothing, vague = scores(torch.stack([image, blank, blur])).tolist()
    counts = replaced_counts(image.shape[1] * image.shape[2], steps)
    finite = masks.isfinite().flatten(1).all(1)
    explained, deletion, insertion = [], [], []
    for mask in torch.where(finite[:, None, None], masks, 0.0):
        frames = [(image * mask)[None], replaced(image, blank, mask, counts[1:-1])]
        row = scores(torch.cat([*frames, replaced(blur, image, mask, counts[1:-1])])).tolist()
        explained.append(row[0])
        deletion.append([full, *row[1:steps], nothing])
        insertion.append([vague, *row[steps:], full])

    def column(values: Tensor) -> Tensor:
        return torch.where(finite.cpu(), values, torch.nan)

    outcome = torch.tensor(explained, dtype=torch.float64)
    whole = torch.full_like(outcome, full)
    shape = (len(masks), steps + 1)
    return Faithfulness(
        drop=column(confidence_drop(whole, outcome)),
        increase=column(confidence_increase(whole, outcome)),
        deletion=column(area_under_curve(torch.tensor(deletion, dtype=torch.float64).view(shape), counts)),
        insertion=column(area_under_curve(torch.tensor(insertion, dtype=torch.float64).view(shape), counts)),
        kept=column(masks.double().mean((1, 2)).cpu()),
        full=full,
    )


def road(
    score: Score, image: Tensor, masks: Tensor, *, seed: int = 0, shares: Sequence[float] = SHARES, batch: int = 32
) -> Road:
    """Remove pixels so that no trace of them is left, the most and the least relevant first.

    Removed pixels are imputed (:func:`pipeline.cam.imputation.linear_imputation`) and get normal noise of 0.01, the
    same at the same pixel for all maps. The least relevant are the last of the order of :func:`replaced`. Per map
    2 x shares forwards, and as many sparse systems: for 224 x 224 pixels about 0.2 s of a core each.

    Args:
        score: the class's probability of images (B, C, H, W), B at most ``batch``.
        image: (C, H, W), normalised.
        masks: (T, H, W), of which only the order of pixels counts; NaN throughout for a map that is not finite.
        seed: of the noise.
        shares: of the pixels that are removed, in (0, 1).
        batch: images per forward.

    Raises:
        InputError: scipy is not installed.
        ValueError: there are no shares, or such that leave nothing or everything, or the sizes do not fit.
    """
    _check_sizes(image, masks)
    pixels = image.shape[1] * image.shape[2]
    counts = [round(share * pixels) for share in shares]
    if not counts or not all(0 < count < pixels for count in counts):
        raise ValueError(f"shares of {pixels} pixels are {tuple(shares)}; each must remove some and leave some")
    whole = image.detach().cpu().double().numpy()
    noise = np.random.default_rng(seed).normal(0, NOISE, whole.shape)

    def removed(missing: npt.NDArray[np.bool_]) -> Tensor:
        frame = whole.copy()
        frame[:, missing] = linear_imputation(whole, missing).T + noise[:, missing]
        return torch.from_numpy(frame)

    found = np.full((2, len(masks)), np.nan)
    # The solver is most of the work; it uses one core, and lets go of the interpreter.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for place, mask in enumerate(masks):
            if not bool(mask.isfinite().all()):
                continue
            rank = _ranks(mask).cpu().numpy()
            parts = [*(rank < count for count in counts), *(rank >= pixels - count for count in counts)]
            row = _scores(score, torch.stack(list(pool.map(removed, parts))).to(image), batch)
            found[:, place] = row.view(2, len(counts)).mean(1).numpy()
    return Road(torch.from_numpy(found[0]), torch.from_numpy(found[1]))


def coherency(masks: Tensor, again: Tensor) -> Tensor:
    """Return ``(1 + r) / 2`` (T,) float64 on the CPU, r the correlation of a map with that of its explained image.

    Pearson's correlation. 0 where either map is constant, so that r is not defined: the authors' code counts it so. NaN
    where either is not finite.

    Args:
        masks: (T, H, W), as :func:`scaled_masks` returns them.
        again: the same of the maps, by the same method and for the same class, of the image times each mask.
    """
    one, two = (each.double().cpu().flatten(1) for each in (masks, again))
    one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
    size = (one.square().sum(1) * two.square().sum(1)).sqrt()
    correlation = (one * two).sum(1) / torch.where(size > 0, size, 1.0)
    return torch.where(size == 0, 0.0, (1 + correlation.clamp(-1, 1)) / 2)


def adcc(drop: Tensor, coherency: Tensor, kept: Tensor) -> Tensor:
    """Return ``3 / (1 / coherency + 1 / (1 - kept) + 1 / (1 - drop))``, element by element, in [0, 1].

    0 where one of the three parts is 0; NaN where one of them is NaN.
    """
    parts = torch.stack([coherency, 1 - kept, 1 - drop])
    return 3 / (1 / parts).sum(0)


def _check_sizes(image: Tensor, masks: Tensor) -> None:
    if masks.shape[1:] != image.shape[1:]:
        raise ValueError(f"masks are {tuple(masks.shape)} and the image is {tuple(image.shape)}; enlarge them to it")


def _scores(score: Score, images: Tensor, batch: int) -> Tensor:
    return torch.cat([score(part).detach().double().cpu() for part in torch.split(images, batch)])
