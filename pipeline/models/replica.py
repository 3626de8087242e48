"""A replica: everything that a worker needs of the explained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

import schemas.job
from pipeline.cam.base import LinearHead, TargetLayer
from pipeline.models.class_names import ClassIndex, resolve_class_names
from pipeline.models.factory import build, parse_name
from pipeline.models.head import find_linear_head
from pipeline.models.layers import find_target_layers, named_target_layer
from pipeline.models.optimise import outputs, prepare, usable_device
from pipeline.models.preprocess import Preprocessor
from pipeline.models.presets import resolve_preprocessor
from pipeline.models.trace import FORWARD_ERRORS, evaluating, first_line, forward, probe_image
from pipeline.models.weights import LoadReport, WeightsFile, choose, digest, load, read
from schemas.documents import LayerInfo, ModelInfo
from schemas.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Replica:
    """A model, ready to be explained.

    ``model`` takes (N, 3, H, W) float32 on ``device`` and returns (N, ``num_classes``) float32 logits; it is in
    evaluation mode and frozen, folded and channels-last. ``layers`` are the default target layers, ``head`` is the
    linear head behind one of them (None where the model has none, so no CAM). ``digest`` is that of the weights as
    loaded. ``load_report`` lists what did not fit where ``strict`` was off.
    """

    config: schemas.job.Model
    model: nn.Module
    layers: list[TargetLayer]
    method_layers: list[TargetLayer]
    head: LinearHead | None
    class_names: list[str] | None
    num_classes: int
    preprocess: Preprocessor
    digest: str
    load_report: LoadReport
    device: torch.device
    layer_infos: list[LayerInfo]

    def layer(self, name: str) -> TargetLayer:
        """Return a target layer by name, of the default ones or of those that the methods name.

        Raises:
            InputError: the replica was not loaded with this layer.
        """
        known = {layer.name: layer for layer in (*self.layers, *self.method_layers)}
        if name not in known:
            raise InputError(
                f"layer '{name}' is none of the replica's target layers "
                f"({', '.join(known)}){did_you_mean(name, known)}; name it in model.layers or in a method's layers"
            )
        return known[name]

    def class_index(self, label: int | str) -> int:
        """Return the index of a class index or name; see :class:`pipeline.models.class_names.ClassIndex`.

        Raises:
            InputError: not a class of the model, or a name that several classes have.
        """
        return ClassIndex(self.num_classes, self.class_names)(label)

    def info(self) -> ModelInfo:
        """Return what the lake's manifest says of the model; the layers are the default and the methods' ones."""
        return ModelInfo(
            name=self.config.name,
            weights=self.config.weights,
            digest=self.digest,
            num_classes=self.num_classes,
            class_names=self.class_names,
            preprocess=self.preprocess.describe(),
            input_size=self.preprocess.input_size,
            layers=self.layer_infos,
            precision=self.config.precision,
        )


def load_replica(
    config: schemas.job.Model, *, device: str = "cpu", method_layers: Sequence[str] = (), winograd: bool = True
) -> Replica:
    """Build the model, load its weights, find its layers and prepare it for the device.

    Args:
        config: the job file's ``model``.
        device: torch device.
        method_layers: further layers that methods name; they are checked and described like the default ones.
        winograd: see :func:`pipeline.models.optimise.prepare`.

    Raises:
        InputError: anything that the job file has wrong; one sentence with the field and the remedy.
    """
    usable_device(device)
    name = parse_name(config.name)
    choice = choose(config, name)
    own_normalisation = config.preprocess.mean is not None or config.preprocess.std is not None
    model = build(
        name,
        config.options,
        weights=choice.value if choice.kind == "named" else None,
        adapt_input=choice.kind == "uri" and not own_normalisation,
    )
    model.float()
    file, report = WeightsFile({}), LoadReport()
    if choice.kind == "uri" and choice.value is not None:
        file = read(choice.value, config.storage_options)
        report = load(model, file, choice.value, strict=config.strict)
    preprocess = resolve_preprocessor(config, name, model, file.metadata)
    size = preprocess.input_size

    with evaluating(model), torch.no_grad():
        num_classes = forward(model, probe_image(model, size, batch=1)).shape[1]
    class_names = resolve_class_names(config, name, choice, model, num_classes, file.metadata)
    layers = _layers(model, config.layers, "model.layers", size) if config.layers else find_target_layers(model, size)
    known = {layer.name for layer in layers}
    further = _layers(model, [n for n in dict.fromkeys(method_layers) if n not in known], "methods.layers", size)
    # From the last: a head lies behind the deepest layer.
    head = next((h for layer in reversed([*further, *layers]) if (h := find_linear_head(model, layer, size))), None)
    weights_digest = digest(model)

    prepared, copies = prepare(model, [*layers, *further], config.precision, device, input_size=size, winograd=winograd)
    if head is not None:
        bias = None if head.bias is None else head.bias.to(device)
        head = LinearHead(head.layer, head.weight.to(device), bias)
    return Replica(
        config=config,
        model=prepared,
        layers=copies[: len(layers)],
        method_layers=copies[len(layers) :],
        head=head,
        class_names=class_names,
        num_classes=num_classes,
        preprocess=preprocess,
        digest=weights_digest,
        load_report=report,
        device=torch.device(device),
        layer_infos=_describe(prepared, copies, size, config.precision),
    )


def _layers(model: nn.Module, names: Sequence[str], field: str, size: tuple[int, int]) -> list[TargetLayer]:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{field} names '{name}' twice; name each layer once")
    return [named_target_layer(model, name, size, field) for name in names]


def _describe(
    model: nn.Module, layers: Sequence[TargetLayer], size: tuple[int, int], precision: str
) -> list[LayerInfo]:
    """Run the prepared model once: it must work in its precision on its device, and the layers have a size."""
    image = probe_image(model, size, batch=1)
    try:
        _, grids = outputs(model, layers, image)
    except (InputError, *FORWARD_ERRORS) as error:
        raise InputError(
            f"the model does not run in model.precision '{precision}' on {image.device} "
            f"({first_line(error.__cause__ or error)}); set model.precision: float32"
        ) from error
    infos = []
    for layer in layers:
        channels, height, width = grids[layer.name].shape[1:]
        infos.append(LayerInfo(name=layer.name, channels=channels, height=height, width=width))
    return infos
