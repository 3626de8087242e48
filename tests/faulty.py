"""A network and an image format that fail on demand: ``model.name: tests.faulty:net``.

Network: each file ``ACTION@FORWARD`` in the folder of the option ``faults`` is an order to a worker's process that does
its FORWARD-th forward in units to do ACTION; the one that takes the file away does it, so each happens once. A file
``rest@SECONDS`` makes every forward that much longer.
Image: a file of the bytes ``FAULT:ACTION`` does it whenever it is decoded.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile
from torch import Tensor

from jobs.demo.network import DigitNet
from pipeline.engine.worker import AttributionWorker

MAGIC = b"FAULT:"
REST = "rest"


def _raise() -> None:
    raise ValueError("no good")


def _hold_interpreter() -> None:
    # PyDLL, unlike CDLL, keeps the interpreter's lock: no other thread of the process can answer meanwhile.
    ctypes.PyDLL(None).sleep(1000)


def _allocate() -> None:
    held = bytearray()
    while True:
        held.extend(bytes(64 * 2**20))
        time.sleep(0.02)


ACTIONS: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(7),
    "raise": _raise,
    "sleep": lambda: time.sleep(1000),
    "hold": _hold_interpreter,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "allocate": _allocate,
}


def picture(action: str) -> bytes:
    """Return an image file that does ``action`` when it is decoded."""
    return MAGIC + action.encode()


class FaultyImageFile(ImageFile.ImageFile):
    """Opening it is the fault."""

    format = "FAULT"

    def _open(self) -> None:
        ACTIONS[self.fp.read(64).removeprefix(MAGIC).decode()]()
        raise SyntaxError("no image")


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


Image.register_open("FAULT", FaultyImageFile, _accept)


class FaultyNet(DigitNet):
    """The demo's network, which follows the orders in ``faults``."""

    def __init__(self, widths: Sequence[int], faults: str) -> None:
        super().__init__(10, widths)
        self._faults = Path(faults)
        self._forwards = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, 10), or do not."""
        if _in_unit():
            self._forwards += 1
            self._obey()
        return super().forward(images)

    def _obey(self) -> None:
        for order in sorted(self._faults.iterdir()):
            action, _, number = order.name.partition("@")
            if action == REST:
                time.sleep(float(number))
            elif self._forwards >= int(number):
                try:
                    order.unlink()
                except FileNotFoundError:  # another worker was faster
                    continue
                ACTIONS[action]()


def _in_unit() -> bool:
    """Say whether a worker explains a unit, and does not just load the network."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is AttributionWorker._process.__code__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def net(faults: str, widths: Sequence[int] = (4, 6, 8, 8)) -> FaultyNet:
    """Return the network with random weights."""
    return FaultyNet(widths, faults)
