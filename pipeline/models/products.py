"""Matrix products whose rows do not depend on each other, in a graph that is being compiled.

The compiler gives products with constant weights to MKL in a packed form, where a row's last bits depend on its place
in the batch if there are few columns. A plain product does not do that, for batches divisible by 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx


@torch.library.custom_op("camlake::product", mutates_args=(), device_types="cpu")
def product(bias: Tensor | None, rows: Tensor, weight: Tensor) -> Tensor:
    """Return ``rows @ weight + bias``: rows (N, C), weight (C, K), bias (K,) or None."""
    return rows @ weight if bias is None else torch.addmm(bias, rows, weight)


@product.register_fake
def _shaped(bias: Tensor | None, rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], weight.shape[1]))


def keep_products(graph: fx.Graph) -> None:
    """Have float32 products on a CPU computed as they are outside of compiled code, in place."""
    for node in graph.nodes:
        if node.op != "call_function" or node.kwargs:
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.device.type != "cpu":
            continue
        if node.target is torch.ops.aten.addmm.default:
            node.target = torch.ops.camlake.product.default
        elif node.target is torch.ops.aten.mm.default:
            node.target = torch.ops.camlake.product.default
            node.args = (None, *node.args)
