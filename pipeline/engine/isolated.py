"""The process in which suspicious images are prepared: ``python -m pipeline.engine.isolated``, started by isolation.

It reads pickled messages from stdin, each after its length, and answers on stdout: first the set-up, then samples.
"""

from __future__ import annotations

import importlib
import os
import pickle
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import torch
from torch import Tensor

from pipeline.engine.clock import StageClock
from pipeline.engine.reading import prepare
from schemas.view import View

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Setup:
    """What preparing needs; ``imports`` are modules that may register decoders."""

    preprocess: Callable[[Tensor], tuple[Any, View]]
    exif: Literal["ignore", "apply"]
    imports: Sequence[str]


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side is gone.
    """
    size = _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]
    return pickle.loads(_exactly(stream, size))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    """Prepare samples until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    torch.set_num_threads(1)
    questions = sys.stdin.buffer
    setup: Setup = receive(questions)
    for module in setup.imports:
        importlib.import_module(module)
    send(answers, "ready")
    while True:
        try:
            sample = receive(questions)
        except EOFError:
            return
        send(answers, prepare(sample, setup.preprocess, setup.exif, StageClock()))


if __name__ == "__main__":
    main()
