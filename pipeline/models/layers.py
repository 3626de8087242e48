"""Target layers: the automatic choice, and layers by name.

The automatic choice is read off one traced forward, not off a table of names: of the modules that run before the
classifier, the last whose output is a grid and reaches the classifier. A grid that pooling made is passed over, so the
finest of the last grids is taken: ``layer4`` (ResNet), ``features.29``, the ReLU before the last max-pool (VGG-16),
``features`` (MobileNet, EfficientNet, ConvNeXt), ``Mixed_7c`` (Inception). In a vision transformer that classifies by
its class token the last block's patch tokens no longer reach the classifier; the last that do are those of its first
norm (``blocks.11.norm1``). Where tokens are averaged, the final norm is the last (``norm`` in Swin).

A DenseNet applies a ReLU as a function after ``features``: the layer is its input, as it is in the literature, and no
linear head follows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.cam.base import TargetLayer
from pipeline.models.grids import ToGrid, TokenGrid, guessed_token_grid, spatial_grid, token_grid
from pipeline.models.head import find_linear_head
from pipeline.models.trace import Call, Trace, trace
from schemas.errors import InputError, did_you_mean

__all__ = ["find_linear_head", "find_target_layers", "named_target_layer"]


def find_target_layers(model: nn.Module, example_input_size: tuple[int, int] | None = None) -> list[TargetLayer]:
    """Return the target layer of a classifier: one, the last spatial layer before pooling and head.

    Args:
        model: takes (N, 3, H, W), returns (N, classes). Its hooks, modes and gradients are left as they are.
        example_input_size: (H, W) of the one probing forward; default: what the model says, or 224 x 224.

    Raises:
        InputError: the model does not run at this size, or has no spatial layer.
    """
    traced = trace(model, example_input_size)
    for call, to_grid in _candidates(traced):
        if _reaches_classifier(call, to_grid, traced):
            return [TargetLayer(call.name, call.module, to_grid)]
    raise InputError(
        "no layer of the model has a spatial grid that reaches the classifier; name one in model.layers, or give a "
        "convolutional network or a vision transformer"
    )


def named_target_layer(
    model: nn.Module, name: str, example_input_size: tuple[int, int] | None = None, field: str = "model.layers"
) -> TargetLayer:
    """Return the layer of this module path, e.g. ``layer4.1.conv2``.

    Raises:
        InputError: no such layer (the near ones and some valid ones are listed), it does not run exactly once in a
            forward, or its output is no grid.
    """
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    if name not in modules:
        valid = ", ".join(_examples(trace(model, example_input_size)))
        raise InputError(
            f"{field}: the model has no layer '{name}'{did_you_mean(name, modules)}; layers are e.g. {valid}"
        )
    convolutions = {path: module for path, module in modules.items() if isinstance(module, nn.Conv2d)}
    traced = trace(model, example_input_size, modules={**convolutions, name: modules[name]})
    calls = [call for call in traced.calls if call.name == name]
    if not calls:
        raise InputError(f"{field}: layer '{name}' does not run when the model is evaluated; name another layer")
    if len(calls) > 1:
        holder = name.rpartition(".")[0]
        remedy = f"name the block that holds it: '{holder}'" if holder else "name a layer that runs once"
        raise InputError(f"{field}: layer '{name}' runs {len(calls)} times in one forward; {remedy}")
    output = calls[0].output
    if output is None:
        raise InputError(f"{field}: layer '{name}' does not return one tensor; name a layer that does")
    image = _size(traced.image)
    to_grid = (
        spatial_grid(output, image) or token_grid(output, _patch_grids(traced)) or guessed_token_grid(output, image)
    )
    if to_grid is None:
        raise InputError(
            f"{field}: layer '{name}' returns {tuple(output.shape)[1:]} per image, which is no grid of more than one "
            f"cell; name a layer before the pooling"
        )
    return TargetLayer(name, modules[name], to_grid)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[3]


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower() and next(module.parameters(), None) is None


def _is_pass_through(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout)


def _patch_grids(traced: Trace) -> list[tuple[int, int, int]]:
    """Return (C, h, w) of each convolution's output: tokens are made by one."""
    outputs = [call.output for call in traced.calls if isinstance(call.module, nn.Conv2d)]
    return [
        (o.shape[1], o.shape[2], o.shape[3]) for o in outputs if o is not None and o.dim() == 4 and o[0, 0].numel() > 1
    ]


def _classifier(traced: Trace) -> int | None:
    """Return the position of the call of the last weighted layer, if what it returns are the classes."""
    for position in range(len(traced.calls) - 1, -1, -1):
        call = traced.calls[position]
        weight = call.module._parameters.get("weight")
        if weight is not None and weight.dim() >= 2:
            classes = traced.logits.shape[1]
            # (N, classes), or class maps (N, classes, h, w); a model without a head ends with something else.
            output = call.output
            return position if output is not None and output.dim() in (2, 4) and output.shape[1] == classes else None
    return None


def _spatial_calls(traced: Trace) -> list[tuple[Call, ToGrid]]:
    """Return the calls before the classifier whose output is a grid of its own, and how it is read, in order."""
    image, batch = _size(traced.image), len(traced.image)
    patches = _patch_grids(traced)
    pooled: set[int] = set()  # ids of tensors that pooling made, or that only passed through it
    found: list[tuple[Call, ToGrid]] = []
    later: list[tuple[Call, ToGrid]] = []  # tokens that no convolution made, after the last of found
    for call in traced.calls[: _classifier(traced)]:
        output = call.output
        if output is None or output.shape[:1] != (batch,) or not output.is_floating_point():
            continue
        if _is_pooling(call.module) or (_is_pass_through(call.module) and id(call.source) in pooled):
            pooled.add(id(output))
        if id(output) in pooled or _is_pass_through(call.module):
            continue
        # A linear layer is a part of an attention or of a token mixer, no layer in the sense of the literature.
        if isinstance(call.module, nn.Linear):
            continue
        if (to_grid := spatial_grid(output, image) or token_grid(output, patches)) is not None:
            found.append((call, to_grid))
            later.clear()
        elif (guessed := guessed_token_grid(output, image)) is not None and not _same_cells(guessed, found):
            later.append((call, guessed))
    return found + later


def _same_cells(guessed: TokenGrid, found: list[tuple[Call, ToGrid]]) -> bool:
    """Tell whether tokens are those of the last grid: then they are a part of an attention that pools it."""
    output, to_grid = (found[-1][0].output, found[-1][1]) if found else (None, None)
    if output is None or to_grid is None:
        return False
    return to_grid(output).shape[2:] == (guessed.height, guessed.width)


def _candidates(traced: Trace) -> Iterable[tuple[Call, ToGrid]]:
    """Yield layers that may be the target, best first."""
    spatial = _spatial_calls(traced)
    if spatial:
        last = spatial[-1][0].output
        assert last is not None
        if last.dim() == 3:
            # A transformer of one width. What else looks like a grid is inside its attention (queries, weights).
            spatial = [
                entry for entry in spatial if entry[0].output is not None and entry[0].output.shape == last.shape
            ]
        else:
            spatial = [entry for entry in spatial if entry[0].output is not None and entry[0].output.dim() == 4]
    counts = traced.counts
    seen: set[int] = set()
    for call, to_grid in reversed(spatial):
        # Of the modules that return one and the same tensor the outermost comes first here; one that runs several
        # times, such as a ReLU that a block uses twice, cannot be hooked as a layer.
        if id(call.output) not in seen and counts[id(call.module)] == 1:
            seen.add(id(call.output))
            yield call, to_grid


def _reaches_classifier(call: Call, to_grid: ToGrid, traced: Trace) -> bool:
    """Tell whether the grid's cells (not only the prefix tokens) have a gradient.

    Taken at the classifier's input, since the weights of a head that was never trained may be zero.
    """
    position = _classifier(traced)
    target = traced.logits if position is None else traced.calls[position].source
    if target is None or not target.requires_grad or call.output is None:
        return True  # the model's forward keeps no graph; nothing can be told
    if target is call.output:
        return True
    with torch.inference_mode(False), torch.enable_grad():
        weights = torch.randn(target.shape, generator=torch.Generator().manual_seed(1)).to(target.device)
        (gradient,) = torch.autograd.grad((target * weights).sum(), call.output, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(to_grid(gradient).any())


def _examples(traced: Trace, limit: int = 8) -> list[str]:
    """Return some layers that could be named, the deepest last."""
    names: list[str] = []
    for call, _ in _candidates(traced):
        if call.name not in names:
            names.append(call.name)
    # Few levels first: 'layer3' says more than 'layer3.0.downsample.1'.
    shallow = sorted(names, key=lambda name: (name.count("."), names.index(name)))[:limit]
    return sorted(shallow, key=names.index, reverse=True)
