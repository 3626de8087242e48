"""Preparing images of a unit that killed its worker, so that the image that did it costs itself and not its unit."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

from pipeline.engine.clock import StageClock
from pipeline.engine.isolated import Setup, receive, send
from pipeline.engine.reading import Prepared, prepare
from pipeline.sources.base import Sample

#: Status of an image whose decoding ended its process, or did not end.
CRASHED = "decode_crash"
#: Seconds that one image may take.
IMAGE_SECONDS = 60.0
_END_SECONDS = 10.0


class IsolatedPreparer:
    """Prepares samples one by one in a process of its own, and starts another where one kills it.

    Args:
        setup: how samples are prepared.
        seconds: after which an image's process is ended.
    """

    def __init__(self, setup: Setup, seconds: float = IMAGE_SECONDS) -> None:
        self._setup = setup
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, sample: Sample, clock: StageClock) -> Prepared:
        """Decode and preprocess one sample, as :func:`pipeline.engine.reading.prepare` does.

        Raises:
            RuntimeError: the process cannot start.
        """
        if sample.data is None or sample.error is not None:
            return prepare(sample, self._setup.preprocess, self._setup.exif, clock)
        with self._lock, clock.measure("decode"):
            process = self._started()
            timer = threading.Timer(self._seconds, process.kill)
            timer.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                send(process.stdin, sample)
                prepared: Prepared = receive(process.stdout)
            except (EOFError, BrokenPipeError):
                late = not timer.is_alive()
                return self._crashed(sample, self._ended(process), late)
            finally:
                timer.cancel()
            sample.data, sample.byte_size = None, prepared.sample.byte_size
            return replace(prepared, sample=sample)

    def _crashed(self, sample: Sample, code: int, late: bool) -> Prepared:
        data, sample.data = sample.data or b"", None
        if sample.byte_size is None:
            sample.byte_size = len(data)
        if late:
            reason = f"decoding it took more than {self._seconds:g} s and was ended"
        elif code < 0:
            reason = f"decoding it killed its process with signal {-code} ({signal.Signals(-code).name})"
        else:
            reason = f"decoding it ended its process with exit code {code}"
        return Prepared(sample, CRASHED, reason, hashlib.sha256(data).digest())

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.engine.isolated"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ray's workers find packages by paths that a new process would not have.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
            self._process = process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                send(process.stdin, self._setup)
                receive(process.stdout)
            except (EOFError, BrokenPipeError) as error:
                code = self._ended(process)
                raise RuntimeError(
                    f"the process that decodes images of a suspicious unit cannot start (exit code {code}); "
                    "the worker's log says why"
                ) from error
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Reap a process whose pipe has ended and return its exit code."""
        self._process = None
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # what was left to send has nobody to go to
                    continue
        try:
            return process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._ended(self._process)
