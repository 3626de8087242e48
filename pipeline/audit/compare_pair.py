"""Two lakes side by side: which method, layer, classes and measures of them can be compared, and what cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.audit.frame import Frame, Series, make_frame, replace_settings
from pipeline.lake import Lake
from schemas.audit import Settings
from schemas.documents import Manifest, MethodInfo, ModelInfo
from schemas.errors import InputError

#: Measures that follow the number of a map's cells: those of maps of other grids differ by that alone.
GRID_BOUND = ("effective_area", "gini")


class ClassPair(NamedTuple):
    """One class as both lakes number it, and its name."""

    a: int
    b: int
    name: str


@dataclass(frozen=True)
class Pair:
    """Two lakes that can be compared.

    Attributes:
        lakes: A, which is compared with, and B, which is compared.
        frames: of their audits.
        by_name: classes are matched by their names; otherwise by their indices.
        classes: those of both models.
        only: names of the classes that only A's, and only B's model has.
        skipped: measures that cannot be compared.
        notes: what else differs, or cannot be compared: sentences.
    """

    lakes: tuple[Lake, Lake]
    frames: tuple[Frame, Frame]
    by_name: bool
    classes: tuple[ClassPair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def series(self) -> tuple[Series, Series]:
        """Method and layer that are compared, of both."""
        first, second = (frame.series[frame.primary] for frame in self.frames)
        return first, second


def make_pair(
    lakes: tuple[Lake, Lake], settings: Settings, method_b: str | None = None, layer_b: str | None = None
) -> Pair:
    """Find what can be compared.

    Args:
        lakes: A and B.
        settings: of both; ``method`` and ``layer`` are A's, and B's too where it has them.
        method_b: method of B, where it is called otherwise there.
        layer_b: layer of B, where it is called otherwise there. Default: A's, else the last of the method.

    Raises:
        InputError: a lake is empty, lacks the method or layer, or nothing can be compared.
    """
    a, b = lakes
    method = settings.method or _shared_method(lakes, method_b)
    frame_a = make_frame(a, replace_settings(settings, method=method))
    wanted = frame_a.series[frame_a.primary]
    other = replace_settings(settings, method=method_b or wanted.method, layer=layer_b)
    if layer_b is None:
        has = [info for info in b.manifest.methods if info.key == other.method]
        if has and wanted.layer in has[0].layers:
            other = replace_settings(other, layer=wanted.layer)
    try:
        frame_b = make_frame(b, other)
    except InputError as error:
        if not str(error).startswith("--"):
            raise  # names the lake
        otherwise = "; where B calls it otherwise, give --method-b or --layer-b"
        about_series = str(error).startswith(("--method", "--layer"))
        raise InputError(f"{b.store.uri}: {error}{otherwise * about_series}") from None
    if frame_a.settings.targets != frame_b.settings.targets:
        raise InputError(
            f"the maps that count are those of targets '{frame_a.settings.targets}' in {a.store.uri} and "
            f"'{frame_b.settings.targets}' in {b.store.uri}, since one model's classes exclude each other and the "
            "other's do not; say with --targets which are to be compared"
        )
    frames = frame_a, frame_b
    by_name = frame_a.class_names is not None and frame_b.class_names is not None
    classes, only = _by_name(frames) if by_name else _by_index(lakes, frames)
    if not classes:
        raise InputError(f"the models of {a.store.uri} and {b.store.uri} have no class name in common; compare others")
    grids = _grid(a.manifest, wanted.layer), _grid(b.manifest, frame_b.series[frame_b.primary].layer)
    skipped = GRID_BOUND if grids[0] != grids[1] else ()
    notes = [*_class_notes(by_name, only), *_series_notes(lakes, frames), *_grid_notes(grids), *_state_notes(lakes)]
    return Pair(lakes, frames, by_name, tuple(classes), only, skipped, tuple(notes))


def _shared_method(lakes: tuple[Lake, Lake], method_b: str | None) -> str | None:
    """Return the first method of A that B has as well; None (the first) where B's is named."""
    keys_a, keys_b = ([info.key for info in lake.manifest.methods] for lake in lakes)
    if method_b is not None:
        return None
    shared = [key for key in keys_a if key in keys_b]
    if not shared:
        raise InputError(
            f"the lakes have no method in common ({lakes[0].store.uri} holds {', '.join(keys_a)}; "
            f"{lakes[1].store.uri} holds {', '.join(keys_b)}); give --method and --method-b to compare them anyway"
        )
    return shared[0]


def _by_name(frames: tuple[Frame, Frame]) -> tuple[list[ClassPair], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Match classes by name; of a name that several classes have, the first with the first and so on."""
    numbered = [_numbered(frame.class_names or ()) for frame in frames]
    a, b = numbered
    found = [ClassPair(index, b[key], key[0]) for key, index in a.items() if key in b]
    left = tuple(key[0] for key in a if key not in b), tuple(key[0] for key in b if key not in a)
    return found, left


def _numbered(names: Sequence[str]) -> dict[tuple[str, int], int]:
    """Return (name, how often it came before) -> index."""
    seen: Counter[str] = Counter()
    found = {}
    for index, name in enumerate(names):
        found[name, seen[name]] = index
        seen[name] += 1
    return found


def _by_index(
    lakes: tuple[Lake, Lake], frames: tuple[Frame, Frame]
) -> tuple[list[ClassPair], tuple[tuple[str, ...], tuple[str, ...]]]:
    sizes = [lake.manifest.model.num_classes for lake in lakes]
    named = next((frame for frame in frames if frame.class_names is not None), frames[0])
    found = [ClassPair(index, index, named.name(index)) for index in range(min(sizes))]
    left = tuple(tuple(named.name(index) for index in range(min(sizes), size)) for size in sizes)
    return found, (left[0], left[1])


def _class_notes(by_name: bool, only: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    found = []
    if not by_name:
        found.append("Classes are matched by index, since not both models know the names of their classes.")
    for letter, names in zip("AB", only, strict=True):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            found.append(f"Only {letter}'s model has {_plural(len(names))}: {', '.join(names[:5])}{more}.")
    return found


def _plural(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"


def _series_notes(lakes: tuple[Lake, Lake], frames: tuple[Frame, Frame]) -> list[str]:
    """Say how the compared maps were made otherwise."""
    found = []
    (method_a, layer_a), (method_b, layer_b) = (frame.series[frame.primary] for frame in frames)
    a, b = (
        next(info for info in lake.manifest.methods if info.key == method)
        for lake, method in zip(lakes, (method_a, method_b), strict=True)
    )
    if (a.name, _settings_of(a)) != (b.name, _settings_of(b)):
        found.append(f"The methods are not the same: A's {method_a} is {_words(a)}, B's {method_b} is {_words(b)}.")
    if layer_a != layer_b:
        found.append(f"A's layer '{layer_a}' is compared with B's layer '{layer_b}'.")
    seen = [_seen(lake.manifest.model) for lake in lakes]
    if seen[0] != seen[1]:
        found.append("The models see their images otherwise prepared, so the same place of two maps may show others.")
    kinds = [_series_of(frame) for frame in frames]
    unseen = sorted((kinds[0] ^ kinds[1]) - {(method_a, layer_a), (method_b, layer_b)})
    for letter, own in zip("AB", kinds, strict=True):
        names = [f"{method} at {layer}" for method, layer in unseen if (method, layer) in own]
        if names:
            found.append(f"Only {letter} holds maps of {', '.join(names)}; they are not compared.")
    return found


def _seen(model: ModelInfo) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return how a model sees its images, whoever decided it."""
    return {name: value for name, value in model.preprocess.items() if name != "sources"}, model.input_size


def _series_of(frame: Frame) -> set[tuple[str, str]]:
    return {(each.method, each.layer) for each in frame.series}


def _settings_of(info: MethodInfo) -> tuple[bool, str]:
    return info.signed, repr(sorted(info.parameters.items()))


def _words(info: MethodInfo) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in sorted(info.parameters.items()))
    return f"{info.name}{' (signed)' if info.signed else ''}{f' ({parameters})' if parameters else ''}"


def _grid(manifest: Manifest, layer: str) -> tuple[int, int] | None:
    """Return (rows, columns) of a layer's maps, fused ones on the finest grid; None where the manifest lacks it."""
    grids = [(info.height, info.width) for info in manifest.model.layers if info.name in layer.split("+")]
    return max(grids, key=lambda grid: grid[0] * grid[1]) if grids else None


def _grid_notes(grids: tuple[tuple[int, int] | None, tuple[int, int] | None]) -> list[str]:
    if grids[0] == grids[1]:
        return []
    a, b = ("of unknown size" if grid is None else f"{grid[0]} x {grid[1]} cells" for grid in grids)
    return [
        f"A's maps are {a}, B's {b}: {' and '.join(GRID_BOUND)} follow the number of cells and are not compared, and "
        "coarser maps blur more over borders and objects."
    ]


def _state_notes(lakes: tuple[Lake, Lake]) -> list[str]:
    unfinished = [letter for letter, lake in zip("AB", lakes, strict=True) if not lake.finished]
    return [f"Lake {letter} is not finished: only its committed units are seen." for letter in unfinished]
