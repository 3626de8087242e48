"""Winograd convolutions take the residual sum and the ReLU behind them along, in a graph that is being compiled."""

from __future__ import annotations

import torch
from torch import fx

import pipeline.models.winograd  # noqa: F401 (registers the operator)


def fuse_winograd(graph: fx.Graph) -> None:
    """Turn ``relu(winograd(x) + y)`` and ``relu(winograd(x))`` into one operation each, in place.

    The sum is taken along only with a ReLU behind it, and only of tensors of one shape and precision.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.relu.default:
            _fuse(graph, node)
    graph.eliminate_dead_code()


def _fuse(graph: fx.Graph, relu: fx.Node) -> None:
    source, residual = relu.args[0], None
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return
    if source.target is torch.ops.aten.add.Tensor and len(source.args) == 2 and not source.kwargs:
        source, residual = _summands(source)
    if source is None or not _plain(source) or len(source.users) != 1:
        return
    images, points, bias, _, padding, _ = source.args
    # Where the ReLU stands, since the residual may be computed after the convolution.
    with graph.inserting_before(relu):
        fused = graph.call_function(torch.ops.camlake.winograd.default, (images, points, bias, residual, padding, True))
    fused.meta = dict(relu.meta)
    relu.replace_all_uses_with(fused)


def _summands(add: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
    """Return the convolution among two summands, and the other."""
    for source, other in (add.args, add.args[::-1]):
        if not isinstance(source, fx.Node) or not isinstance(other, fx.Node) or source is other:
            continue
        mine, theirs = source.meta["val"], other.meta["val"]
        if _plain(source) and mine.shape == theirs.shape and mine.dtype == theirs.dtype:
            return source, other
    return None, None


def _plain(node: fx.Node) -> bool:
    """Tell whether a node is a Winograd convolution without a residual and a ReLU."""
    return (
        node.op == "call_function"
        and node.target is torch.ops.camlake.winograd.default
        and node.args[3] is None
        and node.args[5] is False
    )
