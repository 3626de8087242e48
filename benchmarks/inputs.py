"""What the benchmarks share: their options, a model in the peers' form and in ours, and images."""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Report
from pipeline.attributor import Attributor
from pipeline.cam.base import Selection
from pipeline.models.compiled import compiled
from pipeline.models.factory import build, parse_name
from pipeline.models.replica import Replica, load_replica
from pipeline.models.weights import choose, load, read
from pipeline.sources.decode import decode
from schemas.errors import CamlakeError, InputError
from schemas.job import Model, Preprocess

_NAMES = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNetV2"}
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Folding changes logits by rounding only; more would mean other weights.
_SAME_LOGITS = 1e-3


def command(
    name: str, run: Callable[[argparse.Namespace], Report], parser: argparse.ArgumentParser
) -> Callable[..., int]:
    """Return the ``main`` of a benchmark: parse, set the threads, run, publish; 0, or 2 for wrong input."""

    def main(arguments: Sequence[str] | None = None) -> int:
        options = parser.parse_args(arguments)
        threads = torch.get_num_threads()
        if options.threads:
            torch.set_num_threads(options.threads)
        try:
            run(options).publish(options.json)
        except CamlakeError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        finally:
            torch.set_num_threads(threads)
        return 0

    return main


def say(line: str) -> None:
    """Tell a person who waits what is going on."""
    print(line, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """Parse a number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def none_or_more(text: str) -> int:
    """Parse a number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def make_parser(name: str, description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=positive, help="torch threads of every contestant (default: torch's own)")
    parser.add_argument("--repeats", type=positive, default=repeats, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    return parser


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
APART_NOTE = (
    "ours and the bare forwards ran in a process that keeps freed memory, as a job's workers do; the peers in one with "
    "malloc's defaults"
)
CPU_NOTE = "seconds are CPU seconds of the process, summed over its threads"


def add_clock_option(parser: argparse.ArgumentParser) -> None:
    """Add the choice of clock, for benchmarks whose work is done in this process."""
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="'cpu' counts CPU seconds, for ratios on a busy machine; use --threads 1 (default: %(default)s)",
    )


def add_process_option(parser: argparse.ArgumentParser) -> None:
    """Add the choice of one process for all contestants."""
    parser.add_argument(
        "--together",
        action="store_true",
        help="run ours and the peers in this process, with its settings of malloc (default: ours in one that keeps "
        "freed memory, as a job's workers do, the peers in one with malloc's defaults)",
    )


def add_model_options(parser: argparse.ArgumentParser, *, count: int) -> None:
    """Add the options that say which weights and images are used."""
    parser.add_argument(
        "--weights",
        default="random",
        metavar="URI",
        help="weights file; {model} in it stands for the model's name (default: random weights)",
    )
    parser.add_argument("--images", metavar="GLOB", help="WebDataset tars (default: generated images)")
    parser.add_argument("--count", type=positive, default=count, help="images (default: %(default)s)")
    parser.add_argument("--size", type=positive, help="side of the model's square input (default: the model's own)")
    parser.add_argument("--mean", type=float, nargs=3, help="of the pixels in [0, 1] (default: the model's own)")
    parser.add_argument("--std", type=float, nargs=3, help="of the pixels in [0, 1] (default: the model's own)")


def model_config(name: str, options: argparse.Namespace, layers: list[str] | None = None) -> Model:
    """Return the ``model`` part of a job file for a torchvision name (or any ``model.name``)."""
    preprocess = Preprocess(resize=options.size, crop=options.size, mean=options.mean, std=options.std)
    return Model(
        name=name if ":" in name else f"torchvision:{name}",
        weights=options.weights.replace("{model}", name.rpartition(":")[2]),
        layers=layers,
        preprocess=preprocess,
    )


def title(name: str) -> str:
    """The model's name for people."""
    return _NAMES.get(name, name)


@dataclass(frozen=True)
class Subject:
    """One model with the same weights in two forms.

    ``plain`` is what a user of the peers has: as the library builds it, parameters with gradients, contiguous memory.
    ``replica`` is ours: folded, frozen, channels-last.
    """

    plain: nn.Module
    replica: Replica

    def attributor(self, methods: Sequence[str | dict[str, object]], **options: Any) -> Attributor:
        """Return our compute core for ``methods`` at the replica's layers; ``options`` are the Attributor's."""
        return Attributor(
            self.replica.model,
            methods,
            layers=self.replica.layers,
            head=self.replica.head,
            find_layer=self.replica.layer,
            **options,
        )

    @property
    def layer(self) -> str:
        """Name of the target layer."""
        return self.replica.layers[-1].name


def load_subject(config: Model, *, winograd: bool = True) -> Subject:
    """Load a model in both forms.

    Args:
        config: the model.
        winograd: whether our form computes 3 x 3 convolutions by Winograd's method.

    Raises:
        InputError: name or weights are wrong, or the two forms disagree.
    """
    name = parse_name(config.name)
    choice = choose(config, name)
    plain = build(name, config.options, weights=choice.value if choice.kind == "named" else None, adapt_input=False)
    if choice.kind == "uri" and choice.value is not None:
        load(plain, read(choice.value, config.storage_options), choice.value)
    plain = plain.float().eval()
    replica = load_replica(config, winograd=winograd)
    probe = generated_images(1, replica.preprocess.input_size)
    with torch.no_grad():
        theirs, ours = plain(probe), replica.model(probe)
    if not torch.allclose(theirs, ours, rtol=0, atol=_SAME_LOGITS * float(theirs.abs().max())):
        raise InputError(f"model '{config.name}': the peers' model and ours give different logits; report this")
    return Subject(plain, replica)


def load_images(replica: Replica, options: argparse.Namespace) -> Tensor:
    """Return ``options.count`` preprocessed images (count, 3, H, W) float32.

    Raises:
        InputError: ``--images`` matches no tar, or there are fewer images in them.
    """
    if not options.images:
        return generated_images(options.count, replica.preprocess.input_size)
    data = encoded_images(options.images, options.count)
    return torch.stack([replica.preprocess(decode(each).pixels)[0] for each in data])


def encoded_images(pattern: str, count: int) -> list[bytes]:
    """Return the first ``count`` encoded images of the tars that match.

    Raises:
        InputError: nothing matches, or there are fewer.
    """
    found: list[bytes] = []
    for data in _encoded(pattern):
        found.append(data)
        if len(found) == count:
            return found
    if not found:
        raise InputError(f"--images: '{pattern}' matches no tar with images; give a glob of WebDataset shards")
    raise InputError(f"--images: '{pattern}' has {len(found)} images, --count asks for {count}; lower --count")


def _encoded(pattern: str) -> Iterator[bytes]:
    for path in sorted(fsspec.filesystem("file").glob(pattern)):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.lower().endswith(_IMAGE_SUFFIXES) and (file := shard.extractfile(member)):
                    yield file.read()


def generated_images(count: int, size: tuple[int, int]) -> Tensor:
    """Return smooth random fields (count, 3, *size) float32 of mean 0 and standard deviation 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((count, 3, 6, 6), generator=generator)
    fields = functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return (fields - fields.mean((1, 2, 3), keepdim=True)) / fields.std((1, 2, 3), keepdim=True)


def add_form_option(parser: argparse.ArgumentParser) -> None:
    """Add the choice of leaving ``torch.compile`` out."""
    parser.add_argument(
        "--eager", action="store_true", help="leave torch.compile out, of ours and of the bare forwards"
    )


def fastest(model: nn.Module, example: Tensor, eager: bool) -> Callable[[Tensor], Tensor]:
    """Return the bare forward of a replica's model in its fastest form, for images like ``example``."""
    run = model if eager else compiled(model, example)

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = run(images)
        return logits

    return forward


def bare_forward(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (n, K): the limit that everything is compared with."""
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def top_classes(model: nn.Module, images: Tensor, count: int) -> list[list[int]]:
    """Return the ``count`` classes of the largest logits of each image (fewer if the model has fewer)."""
    logits = bare_forward(model, images)
    classes: list[list[int]] = logits.topk(min(count, logits.shape[1])).indices.tolist()
    return classes


def places(selection: Selection, classes: Sequence[int]) -> list[int]:
    """Return where in ``selection`` the class ``classes[i]`` of image i stands."""
    pairs = list(zip(selection.image.tolist(), selection.target.tolist(), strict=True))
    return [pairs.index((image, target)) for image, target in enumerate(classes)]
