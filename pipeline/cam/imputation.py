"""Missing pixels from those around them: what noisy linear imputation is, without its noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.errors import InputError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

#: Standard deviation of the noise that is added to imputed values, in the unit of the normalised image.
NOISE = 0.01
#: Neighbours (down, across) and their weights: Rong et al., ICML 2022 (ROAD), section 4.
_NEIGHBOURS = [
    (down, across, 1 / 6 if 0 in (down, across) else 1 / 12)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if (down, across) != (0, 0)
]


def linear_imputation(values: Floats, missing: Bools) -> Floats:
    """Return the missing pixels (N, C) of values (C, H, W), in reading order.

    Each is the mean of its neighbours, the four at its sides weighted by 1/6 and the four at its corners by 1/12, for
    all missing pixels at once: a sparse linear system. Beyond the image's edge there are no neighbours, and the weights
    of the others make up for them.

    Args:
        values: (C, H, W) float64; what it holds at missing pixels has no influence.
        missing: (H, W), one pixel or more, and not all.

    Raises:
        InputError: scipy is not installed.
        ValueError: nothing is left to go by.
    """
    try:
        from scipy.sparse import csc_array
        from scipy.sparse.linalg import splu
    except ImportError:
        raise InputError("filling in parts of images needs scipy; pip install 'camlake[audit]'") from None
    if missing.all():
        raise ValueError("the mask covers the whole image")
    height, width = missing.shape
    y, x = np.nonzero(missing)
    number = np.full(missing.shape, -1)
    number[y, x] = np.arange(len(y))
    total, known = np.zeros(len(y)), np.zeros((len(y), len(values)))
    rows, columns, weights = [], [], []
    for down, across, weight in _NEIGHBOURS:
        there_y, there_x = y + down, x + across
        inside = (there_y >= 0) & (there_y < height) & (there_x >= 0) & (there_x < width)
        here = np.flatnonzero(inside)
        total[here] += weight
        other = number[there_y[here], there_x[here]]
        unknown = other >= 0
        rows.append(here[unknown])
        columns.append(other[unknown])
        weights.append(np.full(int(unknown.sum()), -weight))
        fixed = here[~unknown]
        known[fixed] += weight * values[:, there_y[fixed], there_x[fixed]].T
    diagonal = np.arange(len(y))
    matrix = csc_array(
        (
            np.concatenate([total, *weights]),
            (np.concatenate([diagonal, *rows]), np.concatenate([diagonal, *columns])),
        ),
        shape=(len(y), len(y)),
    )
    return np.asarray(splu(matrix).solve(known), np.float64)
