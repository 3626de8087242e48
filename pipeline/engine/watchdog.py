"""What a worker that hangs leaves behind: the stacks of its threads."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback


def stacks() -> str:
    """Return the stack of every thread of this process but the one that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident != own:
            parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)


class Watchdog:
    """Has the stacks written to stderr when nothing has gone on for ``seconds``, even if Python itself hangs.

    The timer is C code of its own thread, so it runs also where a library holds the interpreter's lock and this worker
    can answer nobody.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._mark: object = None
        self._armed = 0.0

    def see(self, mark: object, busy: bool) -> None:
        """Be told how far the work is; call it again and again."""
        if not busy:
            faulthandler.cancel_dump_traceback_later()
            self._mark = None
            return
        now = time.monotonic()
        # A timer is a thread: not a new one for every second of a long limit.
        if mark != self._mark and (self._mark is None or now - self._armed > self._seconds / 20):
            # A little before the driver's own limit, which ends the process.
            faulthandler.dump_traceback_later(0.9 * self._seconds, exit=False)
            self._mark, self._armed = mark, now
