"""The arithmetic that the methods share."""

from __future__ import annotations

import pytest
import torch

from pipeline.cam.base import cell_sum, weighted_sum


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(512, 7, 7), (48, 3, 5), (1001, 3, 3), (13, 2, 2), (16, 1, 1)])
def test_weighted_sum_has_the_same_bits_anywhere_in_the_batch(shape: tuple[int, int, int], channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    grid, weight = torch.randn(shape, generator=generator).relu(), torch.randn(shape[0], generator=generator)
    found = []
    for place in range(8):
        grids = torch.randn((8, *shape), generator=generator)
        weights = torch.randn((8, shape[0]), generator=generator)
        grids[place], weights[place] = grid, weight
        found.append(weighted_sum(weights, grids.contiguous(memory_format=memory_format))[place])
    expected = torch.einsum("k,kij->ij", weight.double(), grid.double())
    assert torch.allclose(found[0].double(), expected, rtol=1e-4, atol=1e-4)
    for other in found[1:]:
        assert torch.equal(other, found[0])


def test_cell_sum_of_a_value_that_stands_for_all_cells() -> None:
    values = torch.tensor([[[[2.0]], [[3.0]]]])
    assert cell_sum(values, 6).tolist() == [[12, 18]]
    assert cell_sum(values.expand(1, 2, 2, 3), 6).tolist() == [[12, 18]]
