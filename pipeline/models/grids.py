"""From the output of a layer to its (N, C, h, w) grid: channels first, channels last, or tokens.

Every conversion here is a rearrangement (slice, permute, reshape), so that the gradient of a grid is the same
conversion of the gradient of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from pipeline.cam.base import identity_grid
from schemas.errors import InputError

#: Most tokens in front of the patches (class, distillation, registers) that are looked for.
MAX_PREFIX = 16

# A grid has the aspect of the image up to the rounding of its strides; beyond e^0.4 = 1.5 it is taken for no grid.
_ASPECT_TOLERANCE = 0.4

ToGrid = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChannelsLastGrid:
    """(N, h, w, C) to (N, C, h, w), as in Swin transformers."""

    def __call__(self, output: Tensor) -> Tensor:
        """Return the grid."""
        return output.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class TokenGrid:
    """(N, prefix + height * width, C) tokens, row by row, to (N, C, height, width)."""

    prefix: int
    height: int
    width: int

    def __call__(self, output: Tensor) -> Tensor:
        """Return the grid.

        Raises:
            InputError: another number of tokens, so the image is of another size than the layer was found with.
        """
        if output.shape[1] != self.prefix + self.height * self.width:
            raise InputError(
                f"the layer returns {output.shape[1]} tokens, not {self.prefix} + {self.height} x {self.width}; give "
                f"images of the size that the model's target layers were found with"
            )
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.height, self.width)


def _aspect_error(height: int, width: int, image: tuple[int, int]) -> float:
    return abs(math.log((height / image[0]) / (width / image[1])))


def spatial_grid(output: Tensor, image: tuple[int, int]) -> ToGrid | None:
    """Tell which axes of a 4-d output are space, by the aspect of the image; None where it holds no grid.

    A single cell is no grid. Where both readings fit, channels come first.
    """
    if output.dim() != 4:
        return None
    readings: list[tuple[float, ToGrid]] = []
    choices: tuple[ToGrid, ToGrid] = (identity_grid, ChannelsLastGrid())
    for (height, width), to_grid in zip((output.shape[2:], output.shape[1:3]), choices, strict=True):
        # A strided layer is never larger than its image; and one cell has no place.
        if height * width > 1 and height <= image[0] and width <= image[1]:
            readings.append((_aspect_error(height, width, image), to_grid))
    best = min(readings, key=lambda reading: reading[0], default=None)
    return best[1] if best is not None and best[0] <= _ASPECT_TOLERANCE else None


def token_grid(output: Tensor, patches: Iterable[tuple[int, int, int]]) -> TokenGrid | None:
    """Tell whether (N, T, C) output holds the tokens of one of the patch grids (C, h, w), after some prefix tokens."""
    if output.dim() != 3:
        return None
    for channels, height, width in patches:
        prefix = output.shape[1] - height * width
        if output.shape[2] == channels and 0 <= prefix <= MAX_PREFIX:
            return TokenGrid(prefix, height, width)
    return None


def guessed_token_grid(output: Tensor, image: tuple[int, int]) -> TokenGrid | None:
    """Find a grid of the image's aspect in (N, T, C) tokens with the fewest prefix tokens that allow one."""
    if output.dim() != 3:
        return None
    for prefix in range(MAX_PREFIX + 1):
        cells = output.shape[1] - prefix
        if cells < 2:
            return None
        height = max(1, round(math.sqrt(cells * image[0] / image[1])))
        width = cells // height
        if height * width == cells and _aspect_error(height, width, image) < 0.1:
            return TokenGrid(prefix, height, width)
    return None
