"""The first convolution of masked images, without the masked images.

A convolution is linear, and a mask is a sum of bilinear hats, one per cell of its grid: with ``B_p`` the hat of cell p,
``conv(X * U(m)) = bias + sum_p m_p conv_without_bias(X * B_p)``. The responses to the hats are made once per image.
Only few hats reach a given output pixel, so the convolution of many masks is a product of small matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Most bytes of one image's responses.
MEMORY_LIMIT = 192 * 2**20
#: The direct convolution must cost so many times the products' multiply-adds. 3 x 3 kernels do not (1.6 to 2 times);
#: with their weights laid out by the compiler they are faster as they are, masked images and all.
MIN_GAIN = 3.0
#: Terms below which writing the output takes longer than the arithmetic, so that fewer would save nothing.
FREE_TERMS = 16
#: What one more product costs, in output elements per term and image. Measured at 32 masks on one core.
PRODUCT_COST = 7000


@dataclass(frozen=True)
class _Axis:
    """Convolution and enlargement along one axis."""

    pixels: int
    cells: int
    kernel: int
    stride: int
    padding: int
    align_corners: bool

    @property
    def outputs(self) -> int:
        return (self.pixels + 2 * self.padding - self.kernel) // self.stride + 1

    def hats(self) -> Tensor:
        """Return the weight of each cell at each pixel, (cells, pixels) float32; zero in the padding."""
        eye = torch.eye(self.cells)[None]
        hats = functional.interpolate(eye, self.pixels, mode="linear", align_corners=self.align_corners)[0]
        return functional.pad(hats, (self.padding, self.padding))

    def reached(self) -> list[tuple[int, int]]:
        """Return the range of cells whose hats reach each output."""
        reach = self.hats().ne(0).unfold(1, self.kernel, self.stride).any(2)
        cells = [reach[:, output].nonzero()[:, 0].tolist() for output in range(self.outputs)]
        return [(each[0], each[-1] + 1) if each else (0, 0) for each in cells]

    def inputs(self, outputs: tuple[int, int]) -> slice:
        """Return the padded pixels that a range of outputs is made of."""
        return slice(outputs[0] * self.stride, (outputs[1] - 1) * self.stride + self.kernel)


@dataclass(frozen=True)
class _Block:
    """A rectangle of the output and the cells whose hats reach it; each a range."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    cell_rows: tuple[int, int]
    cell_columns: tuple[int, int]

    @property
    def terms(self) -> int:
        """Factors of one output element: its cells and the bias."""
        return _length(self.cell_rows) * _length(self.cell_columns) + 1


@dataclass(frozen=True)
class _Layout:
    """How the output is divided into blocks.

    ``elements`` is the size of the responses per output channel, which is also the multiply-adds per mask and output
    channel. ``merged`` says that blocks are as wide as the output: their rows are adjacent, so one product does all.
    """

    rows: _Axis
    columns: _Axis
    blocks: tuple[_Block, ...]
    elements: int
    merged: bool


def worthwhile(conv: nn.Conv2d, size: tuple[int, int], grid: tuple[int, int], align_corners: bool = False) -> bool:
    """Tell whether :class:`StemResponses` saves enough work, in bounded memory, to be used.

    Args:
        conv: groups 1, dilation 1, zero padding in pixels.
        size: (H, W) of the images.
        grid: (h, w) of the masks.
        align_corners: how masks are enlarged.
    """
    if conv.weight.dtype != torch.float32:
        return False
    rows, columns = _axes(conv, size, grid, align_corners)
    if rows.outputs < 1 or columns.outputs < 1:
        return False
    layout, outputs = _layout(rows, columns, conv.out_channels), rows.outputs * columns.outputs
    return (
        conv.weight[0].numel() * outputs >= MIN_GAIN * layout.elements
        and 4 * layout.elements * conv.out_channels <= MEMORY_LIMIT
    )


class StemResponses:
    """The responses of a convolution to one image under each hat.

    Args:
        conv: float32, O output channels; groups 1, dilation 1, zero padding in pixels.
        image: (3, H, W) float32, normalised and finite, on the convolution's device.
        grid: (h, w) of the masks.
        align_corners: how masks are enlarged, as in ``torch.nn.functional.interpolate``.
    """

    @torch.no_grad()
    def __init__(self, conv: nn.Conv2d, image: Tensor, grid: tuple[int, int], align_corners: bool) -> None:
        rows, columns = _axes(conv, (image.shape[1], image.shape[2]), grid, align_corners)
        layout = _layout(rows, columns, conv.out_channels)
        cells = torch.arange(grid[0] * grid[1]).view(grid)
        terms: list[Tensor] = []
        for block in layout.blocks:
            terms += [
                cells[slice(*block.cell_rows), slice(*block.cell_columns)].flatten(),
                torch.tensor([cells.numel()]),
            ]
        self._blocks = layout.blocks
        self._terms = torch.cat(terms).to(image.device)
        self._matrices = _responses(conv, image, layout)

    @property
    def bytes(self) -> int:
        """Memory that the responses take."""
        return sum(matrix.numel() * matrix.element_size() for matrix in self._matrices)

    def add(self, masks: Tensor, first: bool, active: Tensor, out: Tensor) -> None:
        """Write (``first``), or add to, the convolution of this image under each mask.

        A chunk that holds masks of several images is filled by one call for each image, over all rows: so a mask's
        bits do not depend on which masks are beside it.

        Args:
            masks: (B, h, w) float32, finite; zero in the rows of other images.
            first: overwrite all of ``out``.
            active: (B,) float32, 1 in the rows of this image and 0 elsewhere.
            out: (B, O, Ho, Wo) float32, channels-last.
        """
        weights = torch.cat([masks.flatten(1), active[:, None]], 1).index_select(1, self._terms)
        rows = out.permute(0, 2, 3, 1).view(out.shape[0], -1)
        channels, width = out.shape[1], out.shape[3]
        done = 0
        for block, matrix in zip(self._blocks, self._matrices, strict=True):
            factors = weights[:, done : done + block.terms]
            done += block.terms
            for row, responses in enumerate(matrix.unbind(), block.rows[0]):
                start = (row * width + block.columns[0]) * channels
                target = rows[:, start : start + responses.shape[1]]
                if first:
                    torch.mm(factors, responses, out=target)
                else:
                    target.addmm_(factors, responses)


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _responses(conv: nn.Conv2d, image: Tensor, layout: _Layout) -> list[Tensor]:
    """Return for each block its responses (products, terms, columns * O): one product, or one per row."""
    rows, columns = layout.rows, layout.columns
    padded = functional.pad(image, (columns.padding, columns.padding, rows.padding, rows.padding))
    row_hats, column_hats = rows.hats().to(image.device), columns.hats().to(image.device)
    bias = image.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    matrices = []
    for block in layout.blocks:
        y, x = rows.inputs(block.rows), columns.inputs(block.columns)
        height, width, terms = _length(block.rows), _length(block.columns), block.terms
        down = row_hats[slice(*block.cell_rows), y][:, None, None, :, None]
        across = column_hats[slice(*block.cell_columns), x][None, :, None, None, :]
        strips = (down * (padded[:, y, x] * across)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        shape = (1, terms, height * width) if layout.merged else (height, terms, width)
        matrix = image.new_empty((*shape, conv.out_channels))
        by_row = matrix.view(terms, height, width, -1) if layout.merged else matrix.transpose(0, 1)
        if terms > 1:
            by_row[:-1] = functional.conv2d(strips, conv.weight, None, conv.stride).permute(0, 2, 3, 1)
        by_row[-1] = bias
        matrices.append(matrix.flatten(2))
    return matrices


def _axes(conv: nn.Conv2d, size: tuple[int, int], grid: tuple[int, int], align_corners: bool) -> tuple[_Axis, _Axis]:
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    assert not isinstance(padding, str)
    rows = _Axis(size[0], grid[0], kernel[0], stride[0], padding[0], align_corners)
    return rows, _Axis(size[1], grid[1], kernel[1], stride[1], padding[1], align_corners)


@lru_cache(maxsize=64)
def _layout(rows: _Axis, columns: _Axis, channels: int) -> _Layout:
    """Return the layout with that number of equal tiles along a row which costs the least time."""
    by_row, by_column = rows.reached(), columns.reached()
    runs = [(cells, list(run)) for cells, run in groupby(range(rows.outputs), by_row.__getitem__)]
    row_terms, outputs = sum(map(_length, by_row)), rows.outputs * columns.outputs

    def tiled(tiles: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        bounds = [round(tile * columns.outputs / tiles) for tile in range(tiles + 1)]
        return [(span, _hull(by_column[slice(*span)])) for span in pairwise(bounds)]

    def elements(tiles: int) -> int:
        return row_terms * sum(_length(span) * _length(cells) for span, cells in tiled(tiles)) + outputs

    def cost(tiles: int) -> int:
        products = len(runs) if tiles == 1 else rows.outputs * tiles
        return max(elements(tiles), FREE_TERMS * outputs) * channels + PRODUCT_COST * products

    best = min(range(1, min(columns.cells, columns.outputs) + 1), key=cost)
    blocks = tuple(
        _Block((run[0], run[-1] + 1), span, cell_rows, cell_columns)
        for cell_rows, run in runs
        for span, cell_columns in tiled(best)
    )
    return _Layout(rows, columns, blocks, elements(best), best == 1)


def _hull(spans: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the range that holds all of these; empty ones do not count."""
    spans = [span for span in spans if _length(span)] or [(0, 0)]
    return min(span[0] for span in spans), max(span[1] for span in spans)
