"""A faster model with the same outputs: batch norm folded, channels-last memory, precision, Winograd's method."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from pipeline.cam.base import TargetLayer
from pipeline.models.trace import evaluating, forward, hooked, probe_image
from pipeline.models.winograd import WinogradConv2d, available, replaceable
from schemas.errors import InputError

_log = logging.getLogger(__name__)

Precision = Literal["float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Largest difference that folding may make, in logits and target activations, relative to their largest value.
FOLD_TOLERANCE = 1e-4


def prepare(
    model: nn.Module,
    layers: Sequence[TargetLayer],
    precision: Precision = "float32",
    device: str | torch.device = "cpu",
    *,
    input_size: tuple[int, int] | None = None,
    winograd: bool = True,
) -> tuple[nn.Module, list[TargetLayer]]:
    """Return a frozen, folded, channels-last copy on the device, and the same layers in it.

    The copy takes float32 images on the device and returns float32 logits whatever its precision; activations of its
    layers are of its precision. Logits and target activations differ from the model's by at most
    :data:`FOLD_TOLERANCE` of their largest value in float32. Layers keep their names.

    Args:
        model: float32, in evaluation mode; left as it is.
        layers: what is explained; no batch norm is folded into or out of these.
        precision: of parameters and activations.
        device: torch device.
        input_size: (H, W) of the probing forwards.
        winograd: compute 3 x 3 convolutions by Winograd's method, on a CPU in float32
            (:class:`pipeline.models.winograd.WinogradConv2d`). Later changes of their weights are not seen then.

    Raises:
        InputError: there is no such device, or the model does not run at this size.
    """
    target = usable_device(device)
    copied, _ = fold_batch_norms(model, layers, input_size)
    copied.requires_grad_(False)
    copied = copied.to(target).to(memory_format=torch.channels_last)
    if precision != "float32":
        copied = copied.to(DTYPES[precision])
        copied.register_forward_pre_hook(_CastInput(DTYPES[precision]))
        copied.register_forward_hook(_float_logits)
    elif winograd and target.type == "cpu":
        _use_winograd(copied, layers, input_size)
    return copied, [TargetLayer(layer.name, copied.get_submodule(layer.name), layer.to_grid) for layer in layers]


def usable_device(device: str | torch.device) -> torch.device:
    """Return the torch device.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{device}' is not usable on this machine ({str(error).splitlines()[0]}); set workers.gpus: 0 to "
            f"compute on the CPU, or start the workers where there is one"
        ) from error
    return target


def _use_winograd(model: nn.Module, layers: Sequence[TargetLayer], input_size: tuple[int, int] | None) -> None:
    """Replace the convolutions of ``model`` that can be, unless its outputs then differ."""
    found = {name: module for name, module in model.named_modules() if replaceable(module)}
    if not found or not available():
        return
    image = probe_image(model, input_size, batch=1, seed=4)
    before = outputs(model, layers, image)
    for name, module in found.items():
        assert isinstance(module, nn.Conv2d)
        _replace(model, name, WinogradConv2d(module))
    if not _same(before, outputs(model, layers, image)):
        _log.warning("winograd.cpp is not used: the network gives other values with it; please report this machine")
        for name, module in found.items():
            _replace(model, name, module)


class _CastInput:
    """A forward pre-hook that converts the images to the network's precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].to(self.dtype), *args[1:])


def _float_logits(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output.float()


class _Consumers(TorchFunctionMode):
    """Counts by how many operations each tensor is consumed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor | tuple | list):
            return result  # a question about the tensor (its shape, say), no use of its values
        for argument in (*args, *(kwargs or {}).values()):
            for value in argument if isinstance(argument, tuple | list) else (argument,):
                if isinstance(value, Tensor):
                    self.counts[id(value)] += 1
        return result


def fold_batch_norms(
    model: nn.Module, layers: Sequence[TargetLayer] = (), input_size: tuple[int, int] | None = None
) -> tuple[nn.Module, int]:
    """Return a deep copy with batch norms folded into the convolution before them, and how many were.

    A pair is folded where one forward shows that the batch norm's input is the convolution's output and nothing else
    uses that; a convolution whose output is a target layer's, and a batch norm that is a target layer, are left. The
    batch norm's place is taken by what it does besides (timm's activation), or an identity, so that every module keeps
    its name. If the copy's logits or target activations then differ by more than :data:`FOLD_TOLERANCE`, the copy is
    returned unfolded.
    """
    copied = copy.deepcopy(model)
    pairs = _pairs(model, layers, input_size)
    for conv_name, norm_name in pairs:
        conv, norm = copied.get_submodule(conv_name), copied.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        _replace(copied, conv_name, fuse_conv_bn_eval(conv, norm))
        rest = [(key, child) for key in ("drop", "act") if isinstance(child := norm._modules.get(key), nn.Module)]
        replacement = nn.Sequential() if rest else nn.Identity()
        for key, child in rest:
            replacement.add_module(key, child)
        _replace(copied, norm_name, replacement.eval())
    if pairs and not _agree(model, copied, layers, input_size):
        return copy.deepcopy(model), 0
    return copied, len(pairs)


def _pairs(
    model: nn.Module, layers: Sequence[TargetLayer], input_size: tuple[int, int] | None
) -> list[tuple[str, str]]:
    """Return the names of (convolution, batch norm) that can be folded."""
    modules = dict(model.named_modules())
    norms = {
        name
        for name, module in modules.items()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }
    if not norms:
        return []
    targets = {id(layer.module) for layer in layers}
    made_by: dict[int, str] = {}  # id of a convolution's output -> its name
    alive: list[Tensor] = []  # so that no id is given twice
    runs: Counter[str] = Counter()
    found: list[tuple[str, str, Tensor]] = []
    explained: set[int] = set()
    consumers = _Consumers()

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        runs[name] += 1
        if isinstance(module, nn.Conv2d):
            alive.append(output)
            made_by[id(output)] = name
            consumers.counts[id(output)] = 0
        elif name in norms and args and id(args[0]) in made_by:
            found.append((made_by[id(args[0])], name, args[0]))
        if id(module) in targets:
            explained.add(id(output))
            alive.append(output)

    watched = {n: m for n, m in modules.items() if n in norms or isinstance(m, nn.Conv2d) or id(m) in targets}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(hooked(watched, record))
        stack.enter_context(consumers)
        forward(model, probe_image(model, input_size, batch=1))
    return [
        (conv, norm)
        for conv, norm, between in found
        if runs[conv] == runs[norm] == 1
        and consumers.counts[id(between)] == 1
        and id(between) not in explained
        and id(modules[norm]) not in targets
    ]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module


def outputs(model: nn.Module, layers: Sequence[TargetLayer], image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits (N, K) and the target layers' grids by name, without gradients."""
    grids: dict[str, Tensor] = {}
    to_grid = {layer.name: layer.to_grid for layer in layers}

    def record(name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        grids[name] = to_grid[name](output).clone()

    modules = {layer.name: model.get_submodule(layer.name) for layer in layers}
    with evaluating(model), torch.no_grad(), hooked(modules, record):
        return forward(model, image), grids


def _agree(a: nn.Module, b: nn.Module, layers: Sequence[TargetLayer], input_size: tuple[int, int] | None) -> bool:
    image = probe_image(a, input_size, batch=1, seed=4)
    return _same(outputs(a, layers, image), outputs(b, layers, image))


def _same(a: tuple[Tensor, dict[str, Tensor]], b: tuple[Tensor, dict[str, Tensor]]) -> bool:
    (logits_a, grids_a), (logits_b, grids_b) = a, b
    pairs = [(logits_a, logits_b), *((grids_a[name], grids_b[name]) for name in grids_a)]
    return all(bool((x - y).abs().max() <= FOLD_TOLERANCE * x.abs().max()) for x, y in pairs)
