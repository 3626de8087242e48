"""Numbers that describe a raw map: the columns ``schemas.tables.STATISTICS``."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.tables import STATISTICS

_BORDER = 0.1
_CORNER = 0.2
_FLAGS = ("all_zero", "constant", "not_finite")


def _inner_coverage(cells: int, low: float, high: float, device: torch.device) -> Tensor:
    """Return the share of each of ``cells`` equal cells of [0, 1] that lies in [low, high], (cells,) float64."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device=device) / cells
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp_min(0) * cells


def statistics(maps: Tensor) -> dict[str, NDArray[np.float32] | NDArray[np.bool_]]:
    """Describe raw maps.

    With p the positive part of a map over its sum, and the view as the unit square with mass at the cells' centres:

    - ``vmax``: largest absolute value; ``mass``: sum of the positive part.
    - ``entropy``: ``-sum p ln p``, nats; ``effective_area``: ``exp(entropy) / cells``.
    - ``gini``: Gini coefficient of the positive part over all cells, ``sum_i (2 i - n - 1) x_i / (n sum x)``, x sorted.
    - ``peak_y``, ``peak_x``: centre of the largest cell, the first in reading order of equals.
    - ``centre_y``, ``centre_x``: centre of mass; ``spread``: root mean square distance from it.
    - ``border_mass``: share of p within 1/10 of an edge; ``corner_mass``: share in the four squares of side 1/5 at the
      corners. Cells count by the share of their area that lies inside.
    - ``all_zero``, ``constant`` (all cells equal), ``not_finite`` (some cell is NaN or infinite).

    Where some cell is not finite, all numbers are NaN. Where the mass is zero, all but ``vmax`` and ``mass`` are NaN.
    The peak is also NaN where several cells exist and all are equal.

    Args:
        maps: (T, h, w) float32, on any device.

    Returns:
        Column -> (T,) numpy array, float32 or bool, in the order of ``STATISTICS``. Sums are taken in float64, and the
        device is waited for once.
    """
    count, height, width = maps.shape
    cells = height * width
    device = maps.device
    flat = maps.detach().flatten(1)
    finite = flat.isfinite()
    not_finite = ~finite.all(1)
    clean = torch.where(finite, flat, 0.0).double()
    positive = clean.clamp_min(0)
    mass = positive.sum(1)
    defined = (mass > 0) & ~not_finite
    share = positive / torch.where(mass > 0, mass, 1.0)[:, None]

    entropy = -torch.special.xlogy(share, share).sum(1)
    order = torch.arange(1, cells + 1, dtype=torch.float64, device=device)
    gini = ((2 * order - cells - 1) * share.sort(1).values).sum(1) / cells
    peak = clean.argmax(1)
    centres_y = (torch.arange(height, dtype=torch.float64, device=device) + 0.5) / height
    centres_x = (torch.arange(width, dtype=torch.float64, device=device) + 0.5) / width
    grid = share.view(count, height, width)
    by_row, by_column = grid.sum(2), grid.sum(1)
    centre_y, centre_x = (by_row * centres_y).sum(1), (by_column * centres_x).sum(1)
    variance = (by_row * (centres_y - centre_y[:, None]) ** 2).sum(1)
    variance = variance + (by_column * (centres_x - centre_x[:, None]) ** 2).sum(1)

    inner_y = _inner_coverage(height, _BORDER, 1 - _BORDER, device)
    inner_x = _inner_coverage(width, _BORDER, 1 - _BORDER, device)
    outer_y = 1 - _inner_coverage(height, _CORNER, 1 - _CORNER, device)
    outer_x = 1 - _inner_coverage(width, _CORNER, 1 - _CORNER, device)
    border = (grid * (1 - inner_y[:, None] * inner_x)).sum((1, 2))
    corner = (grid * (outer_y[:, None] * outer_x)).sum((1, 2))

    constant = (flat == flat[:, :1]).all(1)
    peak_defined = defined & ~constant if cells > 1 else defined
    undefined = torch.full((), torch.nan, dtype=torch.float64, device=device)
    values = {
        "vmax": torch.where(not_finite, undefined, clean.abs().amax(1)),
        "mass": torch.where(not_finite, undefined, mass),
        "entropy": torch.where(defined, entropy, undefined),
        "effective_area": torch.where(defined, entropy.exp() / cells, undefined),
        "gini": torch.where(defined, gini, undefined),
        "peak_y": torch.where(peak_defined, centres_y[peak // width], undefined),
        "peak_x": torch.where(peak_defined, centres_x[peak % width], undefined),
        "centre_y": torch.where(defined, centre_y, undefined),
        "centre_x": torch.where(defined, centre_x, undefined),
        "spread": torch.where(defined, variance.sqrt(), undefined),
        "border_mass": torch.where(defined, border, undefined),
        "corner_mass": torch.where(defined, corner, undefined),
        "all_zero": (flat == 0).all(1).double(),
        "constant": constant.double(),
        "not_finite": not_finite.double(),
    }
    table = torch.stack([values[name] for name in STATISTICS], 1).cpu().numpy()
    return {
        name: table[:, index].astype(bool) if name in _FLAGS else table[:, index].astype(np.float32)
        for index, name in enumerate(STATISTICS)
    }
