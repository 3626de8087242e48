"""Weights of a model: what ``model.weights`` means, reading a file, loading it, and the digest of the result."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

import schemas.job
from pipeline.models.factory import ModelName, timm_tags, torchvision_weights
from pipeline.models.trace import first_line
from pipeline.sources.storage import open_fs, storage_errors
from schemas.errors import InputError, did_you_mean

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".th")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# torchvision's DenseNet files are older than its module names.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var|num_batches_tracked))$"
)
# How torch names what a pickle asks for and is refused.
_GLOBAL = re.compile(r"\bGLOBAL ([\w.]+)")
_LISTED = 10


@dataclass(frozen=True)
class WeightsChoice:
    """What ``model.weights`` asks for: ``value`` is the named entry or the URI."""

    kind: Literal["random", "named", "uri", "own"]
    value: str | None = None


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: names of tensors. ``mismatched`` says name and both shapes, in words."""

    loaded: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsFile:
    """Tensors of a file by name, and its metadata (safetensors only): ``preprocess``, ``class_names``, ..."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def choose(config: schemas.job.Model, name: ModelName) -> WeightsChoice:
    """Tell what ``model.weights`` means for this model.

    ``random``; a named entry of torchvision ('DEFAULT' or an enum member) or of timm ('DEFAULT' or a tag); otherwise a
    URI or path. None is for factories, which load their own.

    Raises:
        InputError: None for a library's model, or a word that is neither an entry nor looks like a path.
    """
    value = config.weights
    if value == "random":
        return WeightsChoice("random")
    if name.library == "factory":
        return WeightsChoice("own") if value is None else WeightsChoice("uri", value)
    entries = [*torchvision_weights(name.name)] if name.library == "torchvision" else ["DEFAULT", *timm_tags(name.name)]
    if value is None:
        raise InputError(
            f"model.weights is not set for {config.name}; write the URI of a file, a named entry "
            f"({_listed(entries)}), or 'random' for an untrained network"
        )
    if value in entries:
        if name.library == "timm" and value == "DEFAULT":
            own = name.name.partition(".")[2]
            if not own and len(entries) == 1:
                raise InputError(f"model.weights: timm has no weights for {config.name}; give the URI of a file")
            value = own or entries[1]
        return WeightsChoice("named", value)
    if "/" in value or "\\" in value or value.lower().endswith(_SUFFIXES) or Path(value).exists():
        return WeightsChoice("uri", value)
    raise InputError(
        f"model.weights '{value}' is neither a named entry of {config.name}{did_you_mean(value, [*entries, 'random'])} "
        f"nor a path; use {_listed(entries)}, 'random' or the URI of a file"
    )


def read(uri: str, storage_options: Mapping[str, Any] | None = None) -> WeightsFile:
    """Read a safetensors or torch file from any fsspec URI.

    A torch file is read with ``weights_only=True``. Its tensors may lie under ``state_dict``, ``model_state_dict`` or
    ``model``. Metadata of a safetensors header that is JSON is parsed.

    Raises:
        InputError: missing, unreadable, damaged, or without tensors.
        AccessError: the store cannot be used: credentials, bucket.
        StorageError: the store does not answer as it should; the same request may succeed later.
    """
    fs, path = open_fs(uri, storage_options, field="model.weights")
    with storage_errors(uri, "model.weights"):
        data: bytes = fs.cat_file(path)
    return _parse_safetensors(uri, data) if data[8:9] == b"{" else _parse_torch(uri, data)


def _parse_safetensors(uri: str, data: bytes) -> WeightsFile:
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"model.weights: '{uri}' is a damaged safetensors file ({first_line(error)}); copy it again"
        ) from error
    metadata: dict[str, Any] = {}
    for key, text in header.get("__metadata__", {}).items():
        try:
            metadata[key] = json.loads(text)
        except ValueError:
            metadata[key] = text  # metadata is text by its format; only some of it is JSON
    return WeightsFile(_tensors(uri, tensors), metadata)


def _parse_torch(uri: str, data: bytes) -> WeightsFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; a file that does not load raises
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is no pickle raises nearly anything
        reason = _refused(error) if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise InputError(
            f"model.weights: '{uri}' is no safetensors file, nor a torch file of tensors alone ({reason}); "
            f"write it with torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return WeightsFile(_tensors(uri, content))


def _refused(error: pickle.UnpicklingError) -> str:
    """Why a pickle is not loaded; torch's own words advise to load it all the same."""
    named = _GLOBAL.search(str(error))
    what = f" ({named[1]})" if named else ""
    return f"it holds a pickle that would run code or build other objects{what}, and is not loaded"


def _tensors(uri: str, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"model.weights: '{uri}' holds {type(content).__name__}, no names with tensors; save model.state_dict()"
        )
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(
            f"model.weights: '{uri}' holds {len(others)} entries that are no tensors ({_listed(others)}); save "
            f"model.state_dict() alone, or under 'state_dict'"
        )
    return {str(key): value for key, value in content.items()}


def load(model: nn.Module, file: WeightsFile, uri: str, *, strict: bool = True) -> LoadReport:
    """Copy a file's tensors into the model, converted to the model's precision.

    A prefix that all names share is dropped (``module.`` of DataParallel, ``_orig_mod.`` of torch.compile, ``model.``
    of trainers). A missing ``num_batches_tracked`` is nothing, since evaluation does not use it.

    Raises:
        InputError: ``strict`` and something is missing, unexpected or of another shape; or nothing fits at all.
    """
    own = {**dict(model.named_parameters(remove_duplicate=False)), **_persistent_buffers(model)}
    tensors = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in _without_prefix(file.tensors, own).items()}
    missing = tuple(key for key in own if key not in tensors and not key.endswith("num_batches_tracked"))
    unexpected = tuple(key for key in tensors if key not in own)
    fitting = {key: value for key, value in tensors.items() if key in own and _fits(value, own[key])}
    others = [key for key in own if key in tensors and key not in fitting]
    mismatched = tuple(f"{key}: {_form(tensors[key])} in the file, {_form(own[key])} in the model" for key in others)
    report = LoadReport(len(fitting), missing, unexpected, mismatched)
    if strict and (missing or unexpected or mismatched):
        raise InputError(_does_not_fit(uri, report, {key: (tensors[key], own[key]) for key in others}))
    if not fitting:
        raise InputError(
            f"model.weights: none of the {len(tensors)} tensors of '{uri}' fits the model (file: {_listed(tensors)}; "
            f"model: {_listed(own)}); give the weights of this model"
        )
    with torch.no_grad():
        for key, value in fitting.items():
            own[key].copy_(value)
    return report


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name in persistent}


def _without_prefix(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors) and not any(key.startswith(prefix) for key in own):
            tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    return tensors


def _fits(value: Tensor, own: Tensor) -> bool:
    return value.shape == own.shape and value.is_floating_point() == own.is_floating_point()


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _does_not_fit(uri: str, report: LoadReport, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    parts = [
        f"{len(keys)} {what} ({_listed(keys)})"
        for what, keys in (
            ("missing", report.missing),
            ("unexpected", report.unexpected),
            ("of another shape", report.mismatched),
        )
        if keys
    ]
    # A head for other classes differs in its first dimension alone, weight and bias alike.
    heads_only = all(a.dim() == b.dim() > 0 and a.shape[1:] == b.shape[1:] for a, b in pairs.values())
    classes = {value.shape[0] for value, _ in pairs.values() if heads_only}
    if len(classes) == 1 and not report.missing and not report.unexpected:
        number = classes.pop()
        remedy = f"the file is for {number} classes: set model.options: {{num_classes: {number}}}"
    else:
        remedy = "give the weights of this model, or set model.strict: false to load what fits"
    return f"model.weights: '{uri}' does not fit the model, {'; '.join(parts)}; {remedy}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def digest(model: nn.Module) -> str:
    """Return the SHA-256 (hex) over name, dtype, shape and bytes of every parameter and buffer, in order of the names.

    ``num_batches_tracked`` is left out: it changes nothing in evaluation, and some files leave it out too.
    """
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    state = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith("num_batches_tracked"):
            continue
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
