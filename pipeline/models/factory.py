"""Construction of a model from its name: ``torchvision:NAME``, ``timm:NAME`` or ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pipeline.models.trace import first_line
from schemas.errors import InputError, did_you_mean

#: What constructors raise on arguments that they were not made for.
_CONSTRUCTION_ERRORS = (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError, IndexError)
#: torchvision's nets whose weights expect the input as another network normalised it.
_TRANSFORM_INPUT = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class ModelName:
    """A parsed ``model.name``: for a factory ``module`` and ``name`` (the attribute), else ``name`` in the library."""

    library: Literal["torchvision", "timm", "factory"]
    name: str
    module: str = ""


def parse_name(value: str) -> ModelName:
    """Parse ``model.name``.

    Raises:
        InputError: none of the three forms.
    """
    prefix, colon, name = value.partition(":")
    if not colon or not prefix or not name:
        import torchvision

        near = did_you_mean(
            value, (f"torchvision:{name}" for name in torchvision.models.list_models(torchvision.models))
        )
        raise InputError(
            f"model.name '{value}' has no such form; write torchvision:NAME, timm:NAME or package.module:factory{near}"
        )
    if prefix == "torchvision" or prefix == "timm":
        return ModelName("torchvision" if prefix == "torchvision" else "timm", name)
    return ModelName("factory", name, prefix)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw the same random weights each time, and leave torch's random state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def torchvision_weights(name: str) -> dict[str, Any]:
    """Return torchvision's named weights of an architecture, 'DEFAULT' among them, in their order.

    Raises:
        InputError: torchvision has no classifier of this name.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(
            f"model.name: torchvision has no classification model '{name}'{did_you_mean(name, known)}; it has "
            f"{len(known)}, see torchvision.models.list_models(module=torchvision.models)"
        )
    return dict(torchvision.models.get_model_weights(name).__members__)


def timm_tags(name: str) -> list[str]:
    """Return the tags of timm's pretrained weights for an architecture, its default first.

    Raises:
        InputError: timm is not installed, or has no model of this name.
    """
    timm = _timm()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise InputError(
            f"model.name: timm has no model '{architecture}'{did_you_mean(architecture, known)}; "
            f"see timm.list_models('*')"
        )
    tags = [
        full.partition(".")[2] for full in timm.list_pretrained(architecture) if full.partition(".")[0] == architecture
    ]
    default = (timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()).tag or ""
    return sorted(tags, key=lambda tag: (tag != default, tag))


def build(
    name: ModelName, options: Mapping[str, Any], *, weights: str | None = None, adapt_input: bool = False
) -> nn.Module:
    """Construct the model, with seeded random weights or the library's named ones.

    Args:
        name: from :func:`parse_name`.
        options: keyword arguments of the constructor.
        weights: a named entry (torchvision) or tag (timm), downloaded by the library; None: random.
        adapt_input: torchvision's GoogLeNet and Inception: turn on ``transform_input``, as their own weights need it
            under their preset, unless the options say otherwise.

    Raises:
        InputError: unknown name, options that the constructor refuses, a factory that cannot be imported or returns
            no module, or named weights that cannot be fetched or do not fit the options.
    """
    with seeded():
        if name.library == "torchvision":
            model = _build_torchvision(name.name, dict(options), weights, adapt_input)
        elif name.library == "timm":
            model = _build_timm(name.name, dict(options), weights)
        else:
            model = _build_factory(name, dict(options))
    return model.eval()


def _build_torchvision(name: str, options: dict[str, Any], weights: str | None, adapt_input: bool) -> nn.Module:
    import torchvision

    members = torchvision_weights(name)
    if name in _TRANSFORM_INPUT:
        options.setdefault("init_weights", False)  # the slow initialisation, of which they warn
        if adapt_input:
            options.setdefault("transform_input", True)
    entry = members[weights] if weights else None
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=entry, **options)
    except OSError as error:
        raise _no_download(f"weights '{weights}' of torchvision:{name}", error) from error
    except _CONSTRUCTION_ERRORS as error:
        raise _refused(f"torchvision:{name}", options, error) from error
    return model


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError(
            "model.name begins with 'timm:' but the package timm is not installed; run pip install 'camlake[timm]'"
        ) from error


def _build_timm(name: str, options: dict[str, Any], weights: str | None) -> nn.Module:
    timm = _timm()
    timm_tags(name)
    architecture, _, tag = name.partition(".")
    full = f"{architecture}.{weights or tag}" if weights or tag else architecture
    if weights:
        classes = timm.get_pretrained_cfg(full).num_classes
        if options.get("num_classes", classes) != classes:
            # timm would put a new, random head on them and say nothing.
            raise InputError(
                f"model.options.num_classes is {options['num_classes']} but the weights '{weights}' of "
                f"timm:{architecture} have {classes} classes; leave it out, or give the URI of "
                f"weights with {options['num_classes']} classes"
            )
    try:
        model: nn.Module = timm.create_model(full, pretrained=bool(weights), **options)
    except OSError as error:
        raise _no_download(f"weights '{weights}' of timm:{architecture}", error) from error
    except _CONSTRUCTION_ERRORS as error:
        raise _refused(f"timm:{name}", options, error) from error
    return model


def _build_factory(name: ModelName, options: dict[str, Any]) -> nn.Module:
    full = f"{name.module}:{name.name}"
    try:
        module = importlib.import_module(name.module)
    except Exception as error:  # a module may raise anything when it is imported
        raise InputError(
            f"model.name '{full}': the module '{name.module}' cannot be imported ({type(error).__name__}: "
            f"{first_line(error)}); install it, or put its folder on PYTHONPATH"
        ) from error
    factory = getattr(module, name.name, None)
    if factory is None:
        raise InputError(
            f"model.name '{full}': the module has no '{name.name}'{did_you_mean(name.name, vars(module))}; give the "
            f"name of a function or class in it that returns a torch.nn.Module"
        )
    if not callable(factory):
        raise InputError(
            f"model.name '{full}' is a {type(factory).__name__}, which cannot be called; give a function or class that "
            f"returns a torch.nn.Module"
        )
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise _refused(full, options, error) from error
    except ValueError:
        pass  # a builtin without a signature: the call itself will tell
    try:
        model = factory(**options)
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"model.name '{full}' failed with model.options {options} ({type(error).__name__}: {first_line(error)}); "
            f"correct the options or the factory"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model.name '{full}' returned {type(model).__name__}; let it return a torch.nn.Module")
    return model


def _refused(model: str, options: dict[str, Any], error: BaseException) -> InputError:
    return InputError(f"model.options {options} do not fit {model} ({first_line(error)}); correct model.options")


def _no_download(what: str, error: BaseException) -> InputError:
    return InputError(
        f"model.weights: the {what} could not be fetched ({first_line(error)}); allow the download, or put the file "
        f"within reach and give its URI"
    )
