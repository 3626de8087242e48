"""How exact is each method? Against float64 references written from the formulas, and against the peers.

    python -m benchmarks.exactness [--model torchvision:resnet18] [--weights URI] [--images GLOB] [--json FILE]

Every figure is the largest absolute difference of two maps, each divided by its own largest absolute value, over all
images, at the layer's resolution. All sides compute with the same network, weights and inputs; the references in
float64. Without ``--weights`` the network is untrained, without ``--images`` the images are smooth random fields.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.attributor import Attributor
from pipeline.cam.base import LinearHead, TargetLayer
from pipeline.cam.fusion import scaled_by_maximum
from pipeline.cam.noise import noise_seed, noised
from pipeline.cam.score_cam import CONVENTIONS
from pipeline.models import load_replica
from pipeline.models.replica import Replica
from pipeline.sources.decode import decode
from schemas.errors import CamlakeError, InputError
from schemas.job import Model, Preprocess
from tests.pipeline.cam import reference

_SAMPLES, _LEVEL = 4, 0.15
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Row:
    """A line of the table; None: the peer has no such method, or is not installed."""

    method: str
    layer: str
    reference: float
    grad_cam: float | None
    torchcam: float | None
    reason: str


@dataclass(frozen=True)
class Case:
    """What all sides are given."""

    model: nn.Module
    head: LinearHead | None
    layer: TargetLayer
    images: Tensor
    targets: list[int]

    def ours(self, spec: str | dict[str, Any]) -> Tensor:
        """Our maps (n, h, w)."""
        attributor = Attributor(self.model, [spec], layers=[self.layer], head=self.head)
        return next(iter(attributor(self.images, self.targets, image_seeds=range(len(self.images))).maps.values()))[
            self.layer.name
        ]

    def signals(self, index: int, image: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Activation and gradient of an image in float64."""
        given = self.images[index] if image is None else image
        return reference.signals(self.model, self.layer.name, self.layer.to_grid, given, self.targets[index])

    def expected(self, formula: Callable[[int], Tensor]) -> Tensor:
        """The reference's maps."""
        return torch.stack([formula(index) for index in range(len(self.images))])


def difference(left: Tensor, right: Tensor) -> float:
    """Largest difference of the maps, each scaled by its own largest absolute value."""
    return float((scaled_by_maximum(left.double()) - scaled_by_maximum(right.double())).abs().max())


class GradCamPackage:
    """The package grad-cam: raw maps at the layer's resolution."""

    def __init__(self) -> None:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self._package = pytorch_grad_cam
        self._target = ClassifierOutputTarget

    def maps(self, case: Case, name: str) -> Tensor:
        """Return the maps of the class ``name``."""
        targets = [self._target(target) for target in case.targets]
        model = copy.deepcopy(case.model).requires_grad_(True)
        layer = model.get_submodule(case.layer.name)
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stderr(nowhere),
            getattr(self._package, name)(model, [layer]) as method,
        ):
            hooks = method.activations_and_grads
            logits = hooks(case.images)
            if method.uses_gradients:
                sum(target(row) for target, row in zip(targets, logits, strict=True)).backward()
            gradients = hooks.gradients[0].numpy() if hooks.gradients else None
            maps = method.get_cam_image(case.images, layer, targets, hooks.activations[0].numpy(), gradients, False)
        return torch.from_numpy(maps).relu()


class TorchcamPackage:
    """The package torchcam: raw maps."""

    def __init__(self) -> None:
        import torchcam.methods

        self._methods = torchcam.methods
        logging.getLogger("torchcam").setLevel(logging.ERROR)  # it warns that it chose the head's layer itself

    def maps(self, case: Case, name: str, noise: Sequence[Tensor] = (), **options: Any) -> Tensor:
        """Return the maps of the class ``name``; ``noise`` replaces what the method would draw."""
        model = copy.deepcopy(case.model).requires_grad_(True)
        shape = tuple(case.images.shape[1:])
        with getattr(self._methods, name)(model, [case.layer.name], input_shape=shape, **options) as extractor:
            if noise:
                extractor._distrib = _Replay(noise)
            logits = model(case.images)
            maps: Tensor = extractor(case.targets, logits, normalized=False)[0].detach()
        return maps


class _Replay:
    def __init__(self, noise: Sequence[Tensor]) -> None:
        self._noise: Iterator[Tensor] = iter(noise)

    def sample(self, size: object) -> Tensor:
        return next(self._noise)


def gradient_rows(case: Case, grad_cam: GradCamPackage | None, torchcam: TorchcamPackage | None) -> Iterator[Row]:
    """Compare the methods that need no masks."""

    def row(
        spec: str | dict[str, Any],
        formula: Callable[[int], Tensor],
        theirs: tuple[str | None, str | None],
        reason: str,
        noise: Sequence[Tensor] = (),
        **options: Any,
    ) -> Row:
        maps = case.ours(spec)
        first = grad_cam.maps(case, theirs[0]) if grad_cam and theirs[0] else None
        second = torchcam.maps(case, theirs[1], noise, **options) if torchcam and theirs[1] else None
        return Row(
            spec if isinstance(spec, str) else spec["name"],
            case.layer.name,
            difference(maps, case.expected(formula)),
            None if first is None else difference(maps, first),
            None if second is None else difference(maps, second),
            reason,
        )

    head = case.head
    if head is not None:
        yield row(
            "cam",
            lambda index: reference.cam(case.signals(index)[0], head.weight, case.targets[index]),
            (None, "CAM"),
            "rounding",
        )
    yield row("grad_cam", lambda index: reference.grad_cam(*case.signals(index)), ("GradCAM", "GradCAM"), "rounding")
    yield row(
        "grad_cam_pp",
        lambda index: reference.grad_cam_pp(*case.signals(index)),
        ("GradCAMPlusPlus", "GradCAMpp"),
        "grad-cam adds 1e-6 to alpha's denominator, which drowns small g^2; torchcam's division of alpha edits a copy, "
        "so its weights are sum g^2 relu(g)",
    )
    copies = [
        torch.stack([noised(image, _LEVEL, noise_seed(0, index, sample)) for index, image in enumerate(case.images)])
        for sample in range(_SAMPLES)
    ]
    yield row(
        {"name": "smooth_grad_cam_pp", "samples": _SAMPLES, "noise_level": _LEVEL},
        lambda index: reference.smooth_grad_cam_pp(
            case.signals(index)[0], [case.signals(index, each[index])[1] for each in copies]
        ),
        (None, "SmoothGradCAMpp"),
        "given the same noise, torchcam takes relu(D1) and A of the last noised copy, and sums g^3 A over cells where "
        "the formula has g^3 times the sum of A",
        [each - case.images for each in copies],
        num_samples=_SAMPLES,
    )
    yield row(
        "layer_cam", lambda index: reference.layer_cam(*case.signals(index)), ("LayerCAM", "LayerCAM"), "rounding"
    )
    yield row("hires_cam", lambda index: reference.hires_cam(*case.signals(index)), ("HiResCAM", None), "rounding")
    yield row(
        "xgrad_cam",
        lambda index: reference.xgrad_cam(*case.signals(index)),
        ("XGradCAM", "XGradCAM"),
        "rounding; peers add 1e-7 and 1e-8 to the sum of A",
    )
    yield row(
        "eigen_cam",
        lambda index: reference.eigen_cam(case.signals(index)[0]),
        ("EigenCAM", None),
        "grad-cam centres the activations first, which the paper does not, and leaves the sign to chance",
    )


def score_rows(case: Case, grad_cam: GradCamPackage | None, torchcam: TorchcamPackage | None) -> Iterator[Row]:
    """Compare Score-CAM in its conventions."""
    theirs: dict[str, Tensor | None] = {"grad_cam": None, "torchcam": None}
    if grad_cam:
        theirs["grad_cam"] = grad_cam.maps(case, "ScoreCAM")
    if torchcam:
        theirs["torchcam"] = torchcam.maps(case, "ScoreCAM")
    for convention, switches in CONVENTIONS.items():
        maps = case.ours({"name": "score_cam", "convention": convention})
        expected = case.expected(
            lambda index, switches=switches: reference.score_cam(  # type: ignore[misc]
                case.model, case.signals(index)[0], case.images[index], case.targets[index], **switches._asdict()
            )
        )
        yield Row(
            f"score_cam ({convention})",
            case.layer.name,
            difference(maps, expected),
            None if theirs["grad_cam"] is None else difference(maps, theirs["grad_cam"]),
            None if theirs["torchcam"] is None else difference(maps, theirs["torchcam"]),
            f"rounding against the package {convention}, another convention else"
            if convention in theirs
            else "another convention: neither package has this one",
        )


def read_images(pattern: str, replica: Replica, count: int) -> Tensor:
    """Return the first ``count`` images of image files or tar shards, preprocessed.

    Raises:
        InputError: nothing matches.
    """

    def encoded() -> Iterator[bytes]:
        for path in sorted(fsspec.filesystem("file").glob(pattern)):
            if path.endswith(".tar"):
                with tarfile.open(path) as shard:
                    for member in shard:
                        if member.name.lower().endswith(_IMAGE_SUFFIXES) and (file := shard.extractfile(member)):
                            yield file.read()
            elif path.lower().endswith(_IMAGE_SUFFIXES):
                yield Path(path).read_bytes()

    tensors = [replica.preprocess(decode(data).pixels)[0] for data, _ in zip(encoded(), range(count), strict=False)]
    if not tensors:
        raise InputError(f"--images: '{pattern}' matches no image file or tar shard; give a glob of .jpg, .png or .tar")
    return torch.stack(tensors)


def generated_images(count: int, size: tuple[int, int]) -> Tensor:
    """Return smooth random fields (count, 3, *size), of mean 0 and standard deviation 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((count, 3, 6, 6), generator=generator)
    fields = functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return (fields - fields.mean((1, 2, 3), keepdim=True)) / fields.std((1, 2, 3), keepdim=True)


def machine() -> str:
    """Name what the figures were taken on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exactness", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torchvision:resnet18", help="as in the job file (default: %(default)s)")
    parser.add_argument("--weights", default="random", help="URI or name of weights (default: untrained)")
    parser.add_argument("--images", help="glob of image files or tar shards (default: generated)")
    parser.add_argument("--count", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--score-images", type=int, default=1, help="images for Score-CAM (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of generated images (default: %(default)s)")
    parser.add_argument(
        "--layers",
        nargs=2,
        default=["layer4", "layer3"],
        metavar="LAYER",
        help="a layer behind which the model pools, "
        "and one further up, where gradients differ between cells (default: layer4 layer3)",
    )
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 0, or 2 for wrong input."""
    options = _arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        rows = list(run(options))
    except CamlakeError as error:
        print(f"benchmarks.exactness: {error}", file=sys.stderr)
        return 2
    print(f"Machine: {machine()}")
    print("Largest difference of the maps, each scaled by its own largest absolute value:\n")
    print(f"{'method':<22} {'layer':<8} {'reference':>10} {'grad-cam':>10} {'torchcam':>10}  reason")
    for row in rows:
        peers = ["-" if value is None else f"{value:.1e}" for value in (row.grad_cam, row.torchcam)]
        print(f"{row.method:<22} {row.layer:<8} {row.reference:>10.1e} {peers[0]:>10} {peers[1]:>10}  {row.reason}")
    if options.json:
        document = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of the table."""
    preprocess = Preprocess() if options.images else Preprocess(crop=options.size, resize=options.size)
    config = Model(name=options.model, weights=options.weights, layers=options.layers, preprocess=preprocess)
    replica = load_replica(config)
    if options.images:
        images = read_images(options.images, replica, options.count)
    else:
        images = generated_images(options.count, (options.size, options.size))
    with torch.no_grad():
        targets = replica.model(images).argmax(1).tolist()
    with warnings.catch_warnings():
        # Escapes in docstrings and deprecated calls of the peers.
        warnings.simplefilter("ignore")
        grad_cam, torchcam = _peer(GradCamPackage), _peer(TorchcamPackage)
        for name in options.layers:
            head = replica.head if replica.head is not None and replica.head.layer == name else None
            case = Case(replica.model, head, replica.layer(name), images, targets)
            yield from gradient_rows(case, grad_cam, torchcam)
        few = options.score_images
        last = options.layers[-1]
        case = Case(replica.model, None, replica.layer(last), images[:few], targets[:few])
        yield from score_rows(case, grad_cam, torchcam)


def _peer(package: type[Any]) -> Any:
    try:
        return package()
    except ImportError as error:
        print(f"benchmarks.exactness: a peer is missing ({error}); pip install camlake[peers]", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
