"""What a worker's settings of malloc bring: forwards of a network in processes with and without them.

    python -m benchmarks.allocator [--model resnet18 resnet50] [--threads 2] [--json FILE]

Each contestant is a process of its own, for the settings are read when a process starts; it warms up and says how long
a forward takes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch

from benchmarks.harness import Contestant, Report, Row, alternate
from benchmarks.inputs import (
    add_form_option,
    add_model_options,
    command,
    fastest,
    generated_images,
    load_subject,
    make_parser,
    model_config,
    positive,
    say,
    title,
)
from pipeline.engine.allocator import ALLOCATOR


def forward_seconds(options: argparse.Namespace) -> float:
    """Return the median seconds of a forward of ``--mask-batch`` images in this process."""
    subject = load_subject(model_config(options.model[0], options))
    size = subject.replica.preprocess.input_size
    images = generated_images(options.mask_batch, size).contiguous(memory_format=torch.channels_last)
    forward = fastest(subject.replica.model, images, options.eager)
    timing = alternate([Contestant("forward", lambda: forward(images))], options.forwards)
    return timing["forward"].median


def in_process(model: str, options: argparse.Namespace, settings: dict[str, str]) -> float:
    """Return :func:`forward_seconds` of a fresh process with these settings."""
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | settings
    arguments = ["--model", model, "--one", "--weights", options.weights, "--threads", str(torch.get_num_threads())]
    arguments += ["--mask-batch", str(options.mask_batch), "--forwards", str(options.forwards)]
    for name in ("size", "mean", "std"):
        value = getattr(options, name)
        if value is not None:
            arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    if options.eager:
        arguments.append("--eager")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.allocator", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.strip().splitlines()[-1])


def run(options: argparse.Namespace) -> Report:
    """Time both kinds of process in alternation for each model."""
    report = Report()
    for model in options.model:

        def contestant(name: str, settings: dict[str, str], model: str = model) -> Contestant:
            return Contestant(name, lambda: in_process(model, options, settings), lambda: None, lambda seconds: seconds)

        timings = alternate(
            [contestant("worker", ALLOCATOR), contestant("default", {})],
            options.repeats,
            say=lambda line, model=model: say(f"{model}: {line}"),  # type: ignore[misc]
        )
        work = f"forward of {options.mask_batch} images, {title(model)}"
        report.rows.append(Row(work, "malloc's defaults", timings["worker"].median, timings["default"].median))
    return report


PARSER = make_parser("allocator", __doc__, repeats=3)
PARSER.add_argument("--model", nargs="+", default=["resnet18", "resnet50"], help="torchvision names")
PARSER.add_argument("--mask-batch", type=positive, default=32, help="images per forward (default: %(default)s)")
PARSER.add_argument("--forwards", type=positive, default=5, help="timed forwards per process (default: %(default)s)")
PARSER.add_argument("--one", action="store_true", help="only print the seconds of a forward in this process")
add_form_option(PARSER)
add_model_options(PARSER, count=1)
_table = command("benchmarks.allocator", run, PARSER)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; with ``--one`` just a number."""
    options = PARSER.parse_args(arguments)
    if not options.one:
        return _table(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(forward_seconds(options))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
