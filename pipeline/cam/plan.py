"""From method specifications to what a pass must capture and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.cam.base import LinearHead, MaskMethod, Method, NoiseMethod, PassMethod, TargetLayer
from schemas.documents import MethodInfo
from schemas.errors import InputError
from schemas.methods import AnyMethod, MethodSpec
from schemas.registries import METHODS, implementation

_SPEC: TypeAdapter[MethodSpec] = TypeAdapter(AnyMethod)


def as_spec(method: str | dict[str, Any] | MethodSpec) -> MethodSpec:
    """Return the validated specification of a method given by name, by a job file's mapping, or as a specification.

    Raises:
        InputError: the name is unknown or a parameter is wrong; the message names it.
    """
    if isinstance(method, MethodSpec):
        # A bare MethodSpec may name a method whose parameters live in a subclass.
        method = method.model_dump(exclude_unset=True)
    if isinstance(method, str):
        method = {"name": method}
    try:
        return _SPEC.validate_python(method)
    except ValidationError as error:
        first = error.errors()[0]
        # The first part of the place is pydantic's tag of the union's member.
        place = ".".join(str(part) for part in first["loc"][1:])
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"methods: {f'{place}: ' if place else ''}{reason}") from None


@dataclass(frozen=True)
class Planned:
    """A method with the names of the layers it explains."""

    method: Method
    layers: tuple[str, ...]

    @property
    def fused(self) -> bool:
        """The maps of all layers become one."""
        return self.method.spec.fuse != "none"

    @property
    def outputs(self) -> list[str]:
        """Layer names of the maps: the layers, or their names joined by '+' where they are fused."""
        return ["+".join(self.layers)] if self.fused else list(self.layers)

    def info(self) -> MethodInfo:
        """What the lake's manifest records of the method."""
        return MethodInfo(
            key=self.method.key,
            name=self.method.spec.name,
            layers=self.outputs,
            signed=self.method.signed,
            parameters=self.method.parameters,
        )


@dataclass(frozen=True)
class Plan:
    """The methods of an attributor, by kind, and the layers that they need."""

    methods: tuple[Planned, ...]
    layers: dict[str, TargetLayer]
    head: LinearHead | None

    @property
    def pass_methods(self) -> list[tuple[Planned, PassMethod]]:
        """Methods that need the shared pass only."""
        return [(planned, planned.method) for planned in self.methods if isinstance(planned.method, PassMethod)]

    @property
    def noise_methods(self) -> list[tuple[Planned, NoiseMethod]]:
        """Methods that run noised copies."""
        return [(planned, planned.method) for planned in self.methods if isinstance(planned.method, NoiseMethod)]

    @property
    def mask_methods(self) -> list[tuple[Planned, MaskMethod]]:
        """Methods that run masked images."""
        return [(planned, planned.method) for planned in self.methods if isinstance(planned.method, MaskMethod)]

    def closed_form(self, layer: str) -> bool:
        """The gradient at the layer is the linear head's weight, so none is computed."""
        return self.head is not None and self.head.layer == layer

    @property
    def gradient_layers(self) -> set[str]:
        """Layers whose gradient the clean pass must serve."""
        return {
            layer
            for planned, method in self.pass_methods
            if method.needs_gradients
            for layer in planned.layers
            if not self.closed_form(layer)
        }

    def noise_groups(self) -> dict[tuple[int, float], list[tuple[Planned, NoiseMethod]]]:
        """Methods by (samples, noise level): those of one group share their noised forwards."""
        groups: dict[tuple[int, float], list[tuple[Planned, NoiseMethod]]] = {}
        for planned, method in self.noise_methods:
            groups.setdefault((method.samples, method.noise_level), []).append((planned, method))
        return groups


def make_plan(
    specs: Sequence[MethodSpec],
    defaults: Sequence[TargetLayer],
    resolve: Callable[[str], TargetLayer],
    head: LinearHead | None,
) -> Plan:
    """Give each method its layers.

    Args:
        specs: the methods.
        defaults: layers of the methods that name none.
        resolve: finds a layer by name; raises InputError.
        head: the linear head behind global average pooling, where there is one.

    Raises:
        InputError: two methods share a key; a fusion of one layer; CAM without a linear head, on another layer than
            the head's, or with a fusion.
    """
    if not specs:
        raise InputError(f"methods: none is given; name one or more of {', '.join(METHODS)}")
    known = {layer.name: layer for layer in defaults}
    used: dict[str, TargetLayer] = {}
    planned: list[Planned] = []
    for spec in specs:
        method: Method = implementation(METHODS, "method", spec.name).METHOD(spec)
        if any(each.method.key == method.key for each in planned):
            raise InputError(f"methods: '{method.key}' appears twice; give one of them a 'label' of its own")
        if method.needs_linear_head:
            names = _head_layer(spec, head, known)
        else:
            names = list(dict.fromkeys(spec.layers or known))
        if spec.fuse != "none" and len(names) < 2:
            raise InputError(
                f"methods: {spec.key}: fuse: {spec.fuse} needs two layers or more, and has "
                f"{', '.join(names) or 'none'}; name them under 'layers' or leave 'fuse' out"
            )
        for name in names:
            if name not in used:
                used[name] = known[name] if name in known else resolve(name)
        planned.append(Planned(method, tuple(names)))
    return Plan(tuple(planned), used, head)


def _head_layer(spec: MethodSpec, head: LinearHead | None, known: dict[str, TargetLayer]) -> list[str]:
    if spec.fuse != "none":
        raise InputError(
            f"methods: {spec.key}: CAM explains the one layer that the linear head reads, so there is nothing to fuse; "
            "leave 'fuse' out, or use grad_cam, the same at that layer up to scale and ReLU"
        )
    if head is None:
        raise InputError(
            f"methods: {spec.key}: CAM needs a model whose target layer is followed by global average pooling and one "
            f"linear layer, and {' or '.join(known) or 'this model'} is not; use grad_cam, its generalisation"
        )
    if spec.layers is not None and list(spec.layers) != [head.layer]:
        raise InputError(
            f"methods: {spec.key}: layers: CAM explains the layer that the linear head reads, '{head.layer}', and no "
            f"other ({', '.join(spec.layers)} is asked for); leave 'layers' out, or use grad_cam"
        )
    return [head.layer]
