"""Repeating requests to a store: exponential pauses with full jitter, within bounds in tries and in time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.sources.faults import is_transient
from schemas.redact import redact

#: Tries of one request. Their pauses add up to 16 s on average: a store that throttles needs that to make room.
TRIES = 8
#: Seconds after which no further try is begun.
MAX_SECONDS = 120.0

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 20.0

log = logging.getLogger(__name__)
# Of its own, so that pauses do not depend on a seed that a user set, and workers do not pause alike.
_random = random.Random()

Answer = TypeVar("Answer")


def repeat(request: Callable[[], Answer], what: str) -> Answer:
    """Return what ``request`` returns; where it fails in a way that may pass, make it again.

    Each repeat is logged. A request that creates something may find its own work when it is repeated: the callers of
    creations must read back.

    Args:
        request: idempotent, but for what is said above.
        what: the request in words, for the log: ``read s3://...``.

    Raises:
        Exception: the error of the last try, or the first one that cannot pass.
    """
    began = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return request()
        except Exception as error:
            left = MAX_SECONDS - (time.monotonic() - began)
            if number == TRIES or left <= 0 or not is_transient(error):
                raise
            pause = min(_random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (number - 1))), left)
            # Clients name the URL that failed, which may be signed.
            reason = redact(" ".join(str(error).split())) or "no message"
            log.warning(
                "cannot %s (%s: %s); try %d of %d follows in %.1f s",
                redact(what),
                type(error).__name__,
                reason[:300],
                number + 1,
                TRIES,
                pause,
            )
        time.sleep(pause)
    raise AssertionError("unreachable: the loop returns or raises")
