"""The audit's pass over the lake: chunks to parts, in this process or as Ray tasks."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.audit.parts_files import Chunk, Work
from schemas.documents import Commit
from schemas.errors import AccessError, CamlakeError, InputError, LakeError

#: Times that a chunk whose process died is begun in all.
ATTEMPTS = 3


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; what is written stays."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by signal {number}")
        self.signal = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` on SIGINT and SIGTERM.

    Must be entered after Ray is connected, which installs handlers of its own. Outside the main thread, where Python
    allows no handlers, signals are left as they are.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    previous: dict[signal.Signals, Any] = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, handle)
    except ValueError:
        previous.clear()
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def gather_here(work: Work, chunks: Sequence[Chunk], done: Callable[[Chunk], None]) -> None:
    """Write the parts of chunks, one after the other.

    Raises:
        CamlakeError: a unit cannot be audited; the chunks before it are written.
    """
    for chunk in chunks:
        work.do(chunk)
        done(chunk)


def gather_on_ray(work: Work, chunks: Sequence[Chunk], workers: int | None, done: Callable[[Chunk], None]) -> None:
    """Write the parts of chunks as Ray tasks of one CPU each; this process must be connected.

    A chunk that fails does not hold up the others: what can be written is written.

    Args:
        work: what to do.
        chunks: whose parts are missing.
        workers: tasks at a time. Default: one per CPU of the cluster.
        done: is told of each chunk.

    Raises:
        CamlakeError: chunks failed: the message says which unit and why, of the first of them.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=0)(_do)
    # In a list, so that Ray does not unpack it for every task: regions may be large, and a process keeps them.
    given = [ray.put(work)]
    waiting = deque((chunk, 1) for chunk in chunks)
    flying: dict[Any, tuple[Chunk, int]] = {}
    failed: list[CamlakeError] = []
    while waiting or flying:
        while waiting and len(flying) < most:
            chunk, attempt = waiting.popleft()
            flying[task.remote(given, chunk)] = chunk, attempt
        for each in ray.wait(list(flying), timeout=1.0)[0]:
            chunk, attempt = flying.pop(each)
            try:
                ray.get(each)
            except RayTaskError as error:
                # What a task raises is our own sentence, or a bug.
                if not isinstance(error.cause, CamlakeError):
                    raise
                failed.append(error.cause)
                if isinstance(error.cause, (AccessError, InputError)):
                    waiting.clear()  # the others would meet the same
            except RayError as error:
                if attempt < ATTEMPTS:
                    waiting.append((chunk, attempt + 1))
                else:
                    failed.append(_died(given, chunk, error))
            else:
                done(chunk)
    if failed:
        first = failed[0]
        raise type(first)(f"{first} (and {len(failed) - 1} more parts failed)" if failed[1:] else str(first))


#: The work of this process, by the reference that it came with.
_known: dict[str, Work] = {}


def _do(given: list[Any], chunk: Chunk) -> None:
    import ray

    name = given[0].hex()
    if name not in _known:
        _known.clear()
        _known[name] = ray.get(given[0])
    _known[name].do(chunk)


def _try(given: list[Any], commit: Commit) -> None:
    import ray

    ray.get(given[0]).add([commit])


def _died(given: list[Any], chunk: Chunk, error: Exception) -> LakeError:
    """Find the unit at which workers die, by giving each to a worker of its own; nothing is written."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    alone = ray.remote(num_cpus=1, max_retries=0)(_try)
    where = f"units '{chunk.units[0]}' to '{chunk.units[-1]}'"
    for commit in chunk.commits:
        try:
            ray.get(alone.remote(given, commit))
        except RayTaskError:
            break  # another fault: not what killed the worker
        except RayError as found:
            where, error = f"unit '{commit.unit_id}'", found
            break
    reason = " ".join(str(error).split())[:300]
    return LakeError(
        f"{where}: the worker died {ATTEMPTS} times ({reason}); look at the memory of the machine, and run again"
    )
