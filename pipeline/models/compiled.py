"""torch.compile for one static shape, with the weights frozen into the code."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, fx, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.custom_graph_pass import CustomGraphPass

from pipeline.models.fusion import fuse_winograd
from pipeline.models.products import keep_products

_log = logging.getLogger(__name__)

#: Largest difference that compiling may make, relative to the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}

#: Forms of one network's code in a process: each shape is one or two. PyTorch's own limit is soon reached, by sizes
#: that were halved where the memory did not suffice, or in a notebook.
_MOST_FORMS = 64


def compiled(network: nn.Module, example: Tensor) -> Callable[[Tensor], Any]:
    """Return the network compiled for inputs like ``example``, or the network itself where that cannot be done.

    Convolutions, biases, activations and residual sums become fused kernels, with the weights laid out for them. They
    are constants there: what changes in the network later does not reach the compiled one. What cannot be compiled (no
    C++ compiler on a CPU, code that the compiler does not follow), or gives other values, runs as it is; the log says
    so.

    Args:
        network: in evaluation mode; takes (N, ...) and returns a tensor or several.
        example: an input; its shape, precision and memory format are the only ones that may follow.
    """
    example = example.clone()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_FORMS)
    with _frozen():
        expected = network(example.clone())
        options: dict[str, Any] = {"freezing": True, "joint_custom_pre_pass": _Passes()}
        candidate = torch.compile(network, dynamic=False, fullgraph=True, options=options)
        try:
            found = candidate(example.clone())
        except (TorchDynamoException, FailOnRecompileLimitHit, RuntimeError, OSError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _log.warning("the network runs without torch.compile: %s", str(error).splitlines()[0])
            return network
    if not _agree(found, expected, TOLERANCE.get(example.dtype, TOLERANCE[torch.float32])):
        _log.warning("the network runs without torch.compile: its compiled form gives other values")
        return network

    def run(images: Tensor) -> Any:
        with _frozen():
            return candidate(images)

    return run


class _Passes(CustomGraphPass):
    """What is changed in a network before the compiler's own passes."""

    def __call__(self, graph: fx.Graph) -> None:
        fuse_winograd(graph)
        keep_products(graph)

    def uuid(self) -> str:
        """Return what a graph that the compiler has kept depends on."""
        sources = (Path(inspect.getfile(each)).read_bytes() for each in (fuse_winograd, keep_products))
        return hashlib.sha256(b"".join(sources)).hexdigest()


@contextmanager
def _frozen() -> Iterator[None]:
    """Have weights become constants.

    They do only while no gradient can be asked for, and only if the setting is on where the compiler reads the
    network, at a first call: as an option of ``torch.compile`` alone it comes too late for that.
    """
    with torch.no_grad(), torch._inductor.config.patch(freezing=True):
        yield


def _agree(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, Tensor):
        found, expected = (found,), (expected,)
    return all(
        bool((mine - theirs).abs().max() <= tolerance * theirs.abs().max())
        for mine, theirs in zip(found, expected, strict=True)
    )
