"""An audit's settings, resolved against a lake: which maps count, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.lake import Lake
from schemas.audit import Settings
from schemas.documents import Manifest
from schemas.errors import InputError, did_you_mean
from schemas.tables import IMAGES

#: Most maps of one class in the sample; few classes need no more.
_MOST_PER_CLASS = 4000
#: Digests of images that are compared for duplicates; of more images only a share is.
_DIGESTS = 20_000_000


class Series(NamedTuple):
    """A method and a layer: maps that may be compared with each other."""

    method: str
    layer: str


@dataclass(frozen=True)
class Frame:
    """What every part of an audit must agree on.

    Attributes:
        settings: as given, with ``method``, ``layer`` and ``targets`` filled in.
        series: all (method, layer) of the lake.
        primary: index of the one that findings are about.
        class_names: of the model, or None.
        images: images of the lake.
        digest_limit: digests below it are kept, to find duplicates.
        sample_per_class: most maps of a class in the sample.
    """

    settings: Settings
    series: tuple[Series, ...]
    primary: int
    class_names: tuple[str, ...] | None
    images: int
    digest_limit: int
    sample_per_class: int

    def name(self, target_class: int) -> str:
        """Return a class's name, or its number."""
        if self.class_names is None or not 0 <= target_class < len(self.class_names):
            return f"class {target_class}"
        return self.class_names[target_class]


def make_frame(lake: Lake, settings: Settings) -> Frame:
    """Resolve settings against a lake.

    Raises:
        InputError: the lake has no such column, method or layer, or nothing is committed.
    """
    manifest = lake.manifest
    if not lake.commits:
        raise InputError(f"{lake.store.uri} has no committed unit yet; run 'camlake attribute' first")
    columns = [*manifest.attributes, *(name for name in IMAGES.names if name not in ("error", "sha256"))]
    clusters = () if settings.cluster is None else (settings.cluster,)
    for field, names in (("--groups", settings.groups), ("--cluster", clusters)):
        for name in names:
            if name not in columns:
                raise InputError(
                    f"{field}: the lake has no column '{name}'{did_you_mean(name, columns)}; its attributes are: "
                    f"{', '.join(manifest.attributes) or 'none'}"
                )
    series = tuple(Series(info.key, layer) for info in manifest.methods for layer in info.layers)
    primary = _primary(manifest, settings, series)
    images = sum(sum(commit.images.values()) for commit in lake.commits.values())
    known = manifest.model.class_names
    activation = manifest.job.get("model", {}).get("activation", "softmax")
    targets = settings.targets or ("all" if activation == "sigmoid" else "predicted")
    return Frame(
        replace_settings(settings, method=series[primary].method, layer=series[primary].layer, targets=targets),
        series,
        primary,
        tuple(known) if known else None,
        images,
        min(2**64 - 1, int(2.0**64 * _DIGESTS / max(images, _DIGESTS))),
        max(50, min(_MOST_PER_CLASS, settings.sample // max(1, manifest.model.num_classes))),
    )


def replace_settings(settings: Settings, **changes: Any) -> Settings:
    """Return settings with some fields changed."""
    return settings.model_copy(update=changes)


def with_settings(frame: Frame, settings: Settings) -> Frame:
    """Return a frame with other settings."""
    return replace(frame, settings=settings)


def _primary(manifest: Manifest, settings: Settings, series: tuple[Series, ...]) -> int:
    methods = [info.key for info in manifest.methods]
    method = settings.method or methods[0]
    if method not in methods:
        raise InputError(
            f"--method: the lake holds no '{method}'{did_you_mean(method, methods)}; it holds: {', '.join(methods)}"
        )
    layers = [each.layer for each in series if each.method == method]
    layer = settings.layer or layers[-1]
    if layer not in layers:
        raise InputError(
            f"--layer: '{method}' has no layer '{layer}'{did_you_mean(layer, layers)}; it has: {', '.join(layers)}"
        )
    return series.index(Series(method, layer))
