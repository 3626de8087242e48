"""The compute core: a model and CAM methods, for a notebook or for the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cam.base import LinearHead, MapBatch, Selection, Selector, TargetLayer
from pipeline.cam.compute import Compute
from pipeline.cam.fusion import scaled_by_maximum
from pipeline.cam.masked_forward import MaskedNetwork
from pipeline.cam.plan import Plan, as_spec, make_plan
from pipeline.cam.selection import TargetSelector, probabilities, select_lists
from pipeline.cam.session import Session
from schemas.documents import MethodInfo
from schemas.errors import InputError, did_you_mean
from schemas.job import Targets
from schemas.methods import MethodSpec
from schemas.registries import METHODS, implementation

# Images per pass of a call where no batch size is set.
_CALL_BATCH = 16

#: What a call can be asked to explain: one class per image, several, a job file's ``targets``, or a function.
TargetsLike = Tensor | Sequence[int] | Sequence[Sequence[int]] | Targets | Selector | None


@dataclass(frozen=True)
class Attribution:
    """The maps of one call.

    ``maps[method key][layer]`` (T, h, w) float32, raw: after the method's own ReLU, unscaled. Row t is for class
    ``selection.target[t]`` of image ``selection.image[t]``. ``logits`` and ``probabilities`` (n, K) float32.
    ``size`` is (H, W) of the images.
    """

    maps: Mapping[str, Mapping[str, Tensor]]
    selection: Selection
    logits: Tensor
    probabilities: Tensor
    size: tuple[int, int]

    def __getitem__(self, key: str | tuple[str, str]) -> Tensor:
        """Return the raw maps (T, h, w) of a method with one layer, or of ``(method, layer)``.

        Raises:
            InputError: no such method or layer, or a method of several layers without one being named.
        """
        method, layer = (key, None) if isinstance(key, str) else key
        if method not in self.maps:
            raise InputError(
                f"method '{method}' was not computed{did_you_mean(method, self.maps)}; there are {', '.join(self.maps)}"
            )
        layers = self.maps[method]
        if layer is None:
            if len(layers) > 1:
                raise InputError(
                    f"method '{method}' has maps of several layers; ask for one: result['{method}', LAYER] with LAYER "
                    f"one of {', '.join(layers)}"
                )
            layer = next(iter(layers))
        if layer not in layers:
            raise InputError(
                f"layer '{layer}' of '{method}' was not computed{did_you_mean(layer, layers)}; there are "
                f"{', '.join(layers)}"
            )
        return layers[layer]

    def upsampled(self, key: str | tuple[str, str], size: tuple[int, int] | None = None) -> Tensor:
        """Return maps for display, (T, H, W): divided by their own largest absolute value and enlarged bilinearly.

        Args:
            key: as for ``result[key]``.
            size: (H, W); default: the images'.
        """
        scaled = scaled_by_maximum(self[key])[:, None]
        return functional.interpolate(scaled, size or self.size, mode="bilinear", align_corners=False)[:, 0]


class Attributor:
    """Computes class activation maps of a classifier.

    >>> attributor = Attributor(model, methods=["grad_cam", {"name": "layer_cam", "layers": ["layer3", "layer4"]}])
    >>> result = attributor(images)
    >>> result["grad_cam"]  # (T, h, w)

    All methods share one forward pass per batch. The model is left as it was found: mode, ``requires_grad``, gradients
    and hooks.

    Args:
        model: a classifier; its forward takes (n, 3, H, W) and returns logits (n, K).
        methods: names, mappings as in the job file, or specifications.
        layers: target layers of the methods that name none, by module path or as TargetLayer. Default: found in the
            model (the last spatial layer).
        head: the linear head behind global average pooling; it is compared with the first logits. Default: found in
            the model, where there is one; if ``layers`` are TargetLayers, only where CAM asks for it.
        find_layer: turns the names of further layers, which methods give, into TargetLayers. Default: found in the
            model.
        batch_size: fixes the shape of every forward (batches are filled up), so that on a CPU in float32 a map has
            the same bits whatever else is in its batch. Default: batches as they come. The bits are the same as far
            as the network's own kernels are: MKL's matrix products are for ``batch_size`` and ``mask_batch``
            divisible by 4 (any number, with one thread) and linear layers whose input width is divisible by 4.
        mask_batch: masked images per forward of Score-CAM; may be changed at any time. Halves by itself where the
            memory does not suffice.
        compile: run masked images, and clean ones where no gradient has to be computed, through ``torch.compile`` with
            the weights frozen as they are then; needs a C++ compiler on a CPU. Takes some seconds at the first forward.
        stem: compute Score-CAM's first convolution from the masks' cells, on a CPU and of a model in float32 and
            channels-last, whose modules are taken as they are at the first masked forward.
        seed: of the methods that draw noise.
        activation: how logits become probabilities, ``softmax`` or ``sigmoid``.
        device: where the model is moved and the maps are computed. Default: where the model is.

    Raises:
        InputError: an unknown method, parameter or layer; CAM on a model without a linear head; a number out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[str | dict[str, Any] | MethodSpec] = ("grad_cam",),
        *,
        layers: Sequence[str | TargetLayer] | None = None,
        head: LinearHead | None = None,
        find_layer: Callable[[str], TargetLayer] | None = None,
        batch_size: int | None = None,
        mask_batch: int = 32,
        compile: bool = False,
        stem: bool = True,
        seed: int = 0,
        activation: str = "softmax",
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is not a number of images; give 1 or more")
        if activation not in ("softmax", "sigmoid"):
            raise InputError(f"activation: '{activation}' is unknown; use softmax or sigmoid")
        if isinstance(methods, str):
            methods = [methods]
        if device is None:
            first = next(model.parameters(), None)
            place = first.device if first is not None else torch.device("cpu")
        else:
            place = torch.device(device)
            model = model.to(place)
        self.model = model
        _check_mask_batch(mask_batch)
        specs = [as_spec(method) for method in methods]
        self._find_layer = find_layer
        self._given = {layer.name: layer for layer in layers or () if isinstance(layer, TargetLayer)}
        defaults = self._default_layers(layers)
        wants_head = any(implementation(METHODS, "method", spec.name).METHOD.needs_linear_head for spec in specs)
        found = head or (self._find_head(defaults) if wants_head or not self._given else None)
        if found is not None:
            bias = None if found.bias is None else found.bias.detach().to(place, torch.float32)
            found = LinearHead(found.layer, found.weight.detach().to(place, torch.float32), bias)

        def plan(head: LinearHead | None) -> Plan:
            return make_plan(specs, defaults, self._layer, head)

        self._compute = Compute(
            model,
            plan,
            found,
            head_is_given=head is not None,
            device=place,
            batch_size=batch_size,
            masked=MaskedNetwork(
                model,
                mask_batch,
                # On accelerators the masked images cost little, and half precision would be lost in the sum of cells.
                partial(_split, model) if stem and place.type == "cpu" else None,
                _compiled if compile else None,
            ),
            seed=seed,
            activation=activation,
            accelerate=_compiled if compile else None,
        )

    @property
    def plan(self) -> Plan:
        """The methods with their layers."""
        return self._compute.plan

    @property
    def layers(self) -> list[TargetLayer]:
        """All layers that some method explains."""
        return list(self.plan.layers.values())

    @property
    def mask_batch(self) -> int:
        """Masked images per forward of Score-CAM; may be changed at any time.

        Raises:
            InputError: set to less than 1.
        """
        return self._compute.masked.size

    @mask_batch.setter
    def mask_batch(self, value: int) -> None:
        _check_mask_batch(value)
        self._compute.masked.size = value

    @property
    def batch_size(self) -> int | None:
        """Images per forward, where it is fixed."""
        return self._compute.batch_size

    def method_infos(self) -> list[MethodInfo]:
        """Describe the methods as the lake's manifest does: layers, sign and resolved parameters."""
        return [planned.info() for planned in self.plan.methods]

    def warm_up(self, size: tuple[int, int]) -> None:
        """Run one forward of each kind that images of (H, W) will need, so that compiling does not delay the first."""
        self._compute.warm_up(size)

    def session(self, select: Selector | None = None) -> Session:
        """Return a session, which streams batches and returns maps as they are finished.

        Args:
            select: chooses the targets of a batch from its logits (n, K). Default: the predicted class.
        """
        return Session(self._compute, select)

    def __call__(
        self, images: Tensor, targets: TargetsLike = None, *, image_seeds: Sequence[int] | None = None
    ) -> Attribution:
        """Explain images.

        Args:
            images: (n, 3, H, W) float32, preprocessed; one image (3, H, W) is taken as a batch of one.
            targets: the classes: None for the predicted one; a class index per image; a list of class indices per
                image; a ``schemas.job.Targets`` (without label); or a function from logits (n, K) to a Selection.
            image_seeds: one number per image for methods that draw noise. Default: made from the image's values, so
                an image has the same noise in any company.

        Raises:
            InputError: images or targets do not fit the model.
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            images = images[None]
        if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(
                f"images: a tensor (n, channels, height, width) of one image or more is needed, not {found}"
            )
        if image_seeds is None and self.plan.noise_methods:
            image_seeds = [_content_seed(image) for image in images]
        choose = self._chooser(targets, len(images))
        session = self.session()
        size = self.batch_size or _CALL_BATCH
        logits, image, target, kinds = [], [], [], []
        batches: list[MapBatch] = []
        for start in range(0, len(images), size):
            stop = min(start + size, len(images))
            seeds = None if image_seeds is None else image_seeds[start:stop]
            output = session.add(images[start:stop], seeds, choose(start, stop))
            logits.append(output.logits)
            image.append(output.selection.image + start)
            target.append(output.selection.target)
            kinds.append(output.selection.kind)
            batches += output.maps
        batches += session.finish()
        maps: dict[str, dict[str, Tensor]] = {}
        for planned in self.plan.methods:
            for layer in planned.outputs:
                parts = [each.maps for each in batches if (each.method, each.layer) == (planned.method.key, layer)]
                maps.setdefault(planned.method.key, {})[layer] = torch.cat(parts) if parts else torch.empty(0, 0, 0)
        kind = None if None in kinds else tuple(reason for part in kinds for reason in part or ())
        selection = Selection(torch.cat(image), torch.cat(target), kind)
        scores = torch.cat(logits)
        chance = probabilities(scores, self._compute.activation)
        return Attribution(maps, selection, scores, chance, (images.shape[-2], images.shape[-1]))

    def _chooser(self, targets: TargetsLike, count: int) -> Callable[[int, int], Selection | Selector | None]:
        if targets is None:
            return lambda start, stop: None
        if isinstance(targets, Targets):
            selector = TargetSelector(targets, activation=self._compute.activation)
            return lambda start, stop: selector
        if callable(targets):
            chosen: Selector = targets
            return lambda start, stop: chosen
        given: list[Any] = targets.tolist() if isinstance(targets, Tensor) else list(targets)
        lists = [list(each) if isinstance(each, Sequence) else [int(each)] for each in given]
        if len(lists) != count:
            raise InputError(f"targets: {len(lists)} for {count} images; give one class, or one list of classes, each")
        return lambda start, stop: select_lists(lists[start:stop])

    def _layer(self, name: str) -> TargetLayer:
        if name in self._given:
            return self._given[name]
        if self._find_layer is not None:
            return self._find_layer(name)
        from pipeline.models.layers import named_target_layer

        return named_target_layer(self.model, name, field="layers")

    def _default_layers(self, layers: Sequence[str | TargetLayer] | None) -> list[TargetLayer]:
        if layers is not None:
            if isinstance(layers, str):
                layers = [layers]
            return [self._layer(layer) if isinstance(layer, str) else layer for layer in layers]
        from pipeline.models.layers import find_target_layers

        return find_target_layers(self.model)

    def _find_head(self, layers: Sequence[TargetLayer]) -> LinearHead | None:
        from pipeline.models.layers import find_linear_head

        found = (find_linear_head(self.model, layer) for layer in layers)
        return next((head for head in found if head is not None), None)


def _check_mask_batch(value: int) -> None:
    if value < 1:
        raise InputError(f"mask_batch: {value} is not a number of images; give 1 or more")


def _split(model: nn.Module, size: tuple[int, int]) -> tuple[nn.Conv2d, nn.Module] | None:
    from pipeline.models.stem import split_stem

    stem = split_stem(model, size)
    return None if stem is None else (stem.conv, stem.rest)


def _compiled(network: nn.Module, example: Tensor) -> Callable[[Tensor], Any]:
    from pipeline.models.compiled import compiled

    return compiled(network, example)


def _content_seed(image: Tensor) -> int:
    data = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
