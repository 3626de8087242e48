"""One forward with a hook on every module: what runs, in which order, and what it returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import InputError

#: What a network raises when it is given an input of a size that it was not made for.
FORWARD_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError)


@dataclass(frozen=True)
class Call:
    """One call of a module, in the order in which calls end: children before the module that holds them.

    ``source`` is its first positional argument and ``output`` what it returned, None where these are no tensors.
    """

    name: str
    module: nn.Module
    source: Tensor | None
    output: Tensor | None


@dataclass(frozen=True)
class Trace:
    """A forward of ``image`` (N, 3, H, W); ``logits`` (N, K); the tensors are still attached to the graph."""

    calls: list[Call]
    image: Tensor
    logits: Tensor

    @property
    def counts(self) -> Counter[int]:
        """How often each module ran, by id."""
        return Counter(id(call.module) for call in self.calls)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[[str, nn.Module, Any, Any], Any]) -> Iterator[None]:
    """Call ``hook(name, module, args, output)`` after each of ``modules`` runs; a value it returns is the output."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def call(module: nn.Module, args: Any, output: Any, name: str = name) -> Any:
                return hook(name, module, args, output)

            stack.callback(module.register_forward_hook(call).remove)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back as it was; gradients are on whatever the caller's mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def probe_image(model: nn.Module, size: tuple[int, int] | None, *, batch: int, seed: int = 0) -> Tensor:
    """Return a fixed random image (batch, 3, H, W) on the model's device, like a normalised one."""
    height, width = size or guess_input_size(model)
    parameter = next(model.parameters(), None)
    with torch.inference_mode(False):  # else it could not require a gradient
        image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
        return image if parameter is None else image.to(parameter.device)


def guess_input_size(model: nn.Module) -> tuple[int, int]:
    """Return (height, width) that the model says it was made for, else (224, 224)."""
    patch_embed = getattr(model, "patch_embed", None)
    for value in (getattr(patch_embed, "img_size", None), getattr(model, "image_size", None)):
        if isinstance(value, int):
            return value, value
        if isinstance(value, tuple | list) and len(value) == 2:
            return int(value[0]), int(value[1])
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        _, height, width = config["input_size"]
        return int(height), int(width)
    return 224, 224


def forward(model: nn.Module, image: Tensor) -> Tensor:
    """Return the logits (N, K).

    Raises:
        InputError: the model does not take images of this size, or does not return one row of logits per image.
    """
    height, width = image.shape[-2:]
    try:
        logits = model(image)
    except FORWARD_ERRORS as error:
        raise InputError(
            f"the model does not run on a {height} x {width} RGB image ({first_line(error)}); set "
            f"model.preprocess.crop to the size it was made for (or its image size in model.options)"
        ) from error
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the model returns {type(logits).__name__}, not a tensor of logits; let the factory of model.name return "
            f"a module whose forward gives the logits alone"
        )
    if logits.dim() != 2 or logits.shape[0] != image.shape[0]:
        raise InputError(
            f"the model returns a tensor of shape {tuple(logits.shape)} for {image.shape[0]} images, not (images, "
            f"classes); camlake explains image classifiers only"
        )
    return logits


def trace(
    model: nn.Module,
    size: tuple[int, int] | None = None,
    *,
    batch: int = 2,
    modules: Mapping[str, nn.Module] | None = None,
) -> Trace:
    """Run one forward and record the calls of ``modules`` (default: all but the model itself).

    Hooks, modes and ``param.grad`` are as they were afterwards.
    """
    if modules is None:
        modules = {name: module for name, module in model.named_modules() if name}
    calls: list[Call] = []

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        source = args[0] if args and isinstance(args[0], Tensor) else None
        calls.append(Call(name, module, source, output if isinstance(output, Tensor) else None))

    image = probe_image(model, size, batch=batch)
    with evaluating(model), hooked(modules, record):
        # Not the leaf itself: a model may normalise its input in place.
        logits = forward(model, image.requires_grad_() * 1)
    return Trace(calls, image, logits)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's words, cut at 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__
