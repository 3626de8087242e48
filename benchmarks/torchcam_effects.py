"""Average drop and increase in confidence by torchcam: its own methods, its own metric.

    python -m benchmarks.torchcam_effects --model resnet18 --weights URI --images GLOB [--count N] [--size 224]

torchcam's README prints such figures. Its metric, told to compare probabilities, also takes the gradients of the
probability instead of the logit's; the second column is the same metric on maps of the logit, as the papers define
them. Both are for the predicted class.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import machine
from benchmarks.inputs import add_model_options, load_images, load_subject, model_config, positive, say
from schemas.errors import CamlakeError

#: Its classes, and whether they take gradients of what they are given (Smooth Grad-CAM++ calls the network itself).
METHODS = {"GradCAM": True, "GradCAMpp": True, "SmoothGradCAMpp": False, "LayerCAM": True, "XGradCAM": True}


class OfLogits:
    """A torchcam extractor that explains the logits of the last forward, whatever scores it is given."""

    def __init__(self, extractor: Any) -> None:
        self.model, self._extractor = extractor.model, extractor
        self.fuse_cams, self._hooks_off = extractor.fuse_cams, extractor._hooks_off
        self._logits: Tensor | None = None
        self.model.register_forward_hook(self._keep)

    def _keep(self, model: nn.Module, given: Any, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, classes: list[int], scores: Tensor) -> Any:
        """Return the maps."""
        return self._extractor(classes, self._logits)


def torchcam_effects(model: nn.Module, layer: str, images: Tensor) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the average drop and the increase in confidence: by method, of maps of "probability" and "logit".

    Args:
        model: as its library builds it, in evaluation mode.
        layer: the target layer's name.
        images: (N, 3, H, W), normalised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchcam.methods
        import torchcam.metrics

        found: dict[str, dict[str, tuple[float, float]]] = {}
        for name, takes_gradients in METHODS.items():
            for score in ("probability", "logit") if takes_gradients else ("logit",):
                torch.manual_seed(0)  # of the noise
                network = copy.deepcopy(model)
                make = getattr(torchcam.methods, name)
                with make(network, [layer], input_shape=tuple(images.shape[1:])) as extractor:
                    explains = OfLogits(extractor) if score == "logit" else extractor
                    metric = torchcam.metrics.ClassificationMetric(explains, partial(torch.softmax, dim=-1))
                    for image in images:
                        metric.update(image[None])
                summary = metric.summary()
                found.setdefault(name, {})[score] = summary["avg_drop"], summary["conf_increase"]
                say(f"{name} of the {score}: {summary}")
    return found


def table(found: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    """Return average drop / increase in percent as a Markdown table."""
    lines = ["| torchcam's | maps of the probability | maps of the logit |", "|---|---|---|"]
    for name, by in found.items():
        pairs = {score: f"{100 * drop:.1f} / {100 * increase:.1f}" for score, (drop, increase) in by.items()}
        lines.append(f"| {name} | {pairs.get('probability', '-')} | {pairs['logit']} |")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torchcam_effects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="resnet18", help="torchvision's name (default: %(default)s)")
    add_model_options(parser, count=8)
    parser.add_argument("--threads", type=positive, help="torch threads (default: torch's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; return 0, or 2 for wrong input."""
    options = _parser().parse_args(arguments)
    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        subject = load_subject(model_config(options.model, options))
        found = torchcam_effects(subject.plain, subject.layer, load_images(subject.replica, options))
        about = f"{options.model}, {options.count} images, {machine()}"
    except CamlakeError as error:
        print(f"benchmarks.torchcam_effects: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    print("\n".join([about, "", *table(found)]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
