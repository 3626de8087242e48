"""Contestants in processes of their own: ours as a job's workers run, the peers as anybody runs them.

Settings of malloc are read when a process starts and hold for all of it, so contestants that share a process share
them. A job's workers keep freed memory (:data:`pipeline.engine.allocator.ALLOCATOR`); whoever installs a peer has
glibc's defaults. One process runs at a time, in turn, as :func:`benchmarks.harness.alternate` says.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.harness import Contestant
from benchmarks.peers import quiet
from pipeline.engine.allocator import ALLOCATOR
from schemas.errors import InputError

#: Makes the contestants of a process inside it; has to be picklable.
Make = Callable[[], Sequence[Contestant]]
_END_S = 30.0


@contextmanager
def processes(kept: Make, plain: Make, clock: Callable[[], float] = time.perf_counter) -> Iterator[list[Contestant]]:
    """Start two processes and yield stand-ins for their contestants, with results and seconds of the real ones.

    Args:
        kept: makes the contestants of the process that keeps freed memory, as a worker does.
        plain: makes those of the process that has malloc's defaults.
        clock: seconds; read in the process, right before and after each run.

    Raises:
        InputError: the contestants cannot be made for a wrong input; its message says which.
        RuntimeError: a process ended, or a run failed there.
    """
    with ExitStack() as stack:
        everybody: list[Contestant] = []
        for make, settings in ((kept, ALLOCATOR), (plain, {})):
            everybody += stack.enter_context(process(make, settings, clock))
        yield everybody


@contextmanager
def gathered(
    kept: Make, plain: Make, *, together: bool, clock: Callable[[], float] = time.perf_counter
) -> Iterator[list[Contestant]]:
    """Yield the contestants of :func:`processes`, or those of this process where they are to run together."""
    if together:
        yield [*kept(), *plain()]
        return
    with processes(kept, plain, clock) as apart:
        yield apart


@contextmanager
def process(
    make: Make, settings: Mapping[str, str], clock: Callable[[], float] = time.perf_counter
) -> Iterator[list[Contestant]]:
    """Start one process with these settings of malloc; everything else as :func:`processes` has it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_serve, args=(there, make, torch.get_num_threads(), clock), daemon=True)
    with _environment(settings):
        child.start()
    there.close()
    try:
        yield [_stand_in(here, name) for name in _answer(here)]
    finally:
        here.close()  # the process reads the end of its pipe and ends
        child.join(_END_S)
        if child.is_alive():
            child.kill()
            child.join()


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set malloc's settings, and no others of them, for what is started meanwhile."""
    before = dict(os.environ)
    for name in ALLOCATOR:
        os.environ.pop(name, None)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _stand_in(connection: Connection, name: str) -> Contestant:
    seconds = 0.0

    def call(warm_up: bool) -> Any:
        nonlocal seconds
        connection.send((name, warm_up))
        seconds, result = _answer(connection)
        return result

    return Contestant(name, lambda: call(False), lambda: call(True), lambda _: seconds)


def _answer(connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except EOFError as error:
        raise RuntimeError("a contestant's process ended; its own output says why") from error
    if isinstance(answer, InputError):
        raise answer
    if isinstance(answer, Exception):
        raise RuntimeError(f"a contestant failed in its process: {answer!r}") from answer
    return answer


def _serve(connection: Connection, make: Make, threads: int, clock: Callable[[], float]) -> None:
    torch.set_num_threads(threads)
    with quiet():
        try:
            known = {contestant.name: contestant for contestant in make()}
            connection.send(list(known))
            while True:
                name, warm_up = connection.recv()
                connection.send(_run(known[name], warm_up, clock))
        except EOFError:
            return
        except Exception as error:
            connection.send(error)
            raise


def _run(contestant: Contestant, warm_up: bool, clock: Callable[[], float]) -> tuple[float, Any]:
    if warm_up:
        (contestant.warm_up or contestant.run)()
        return 0.0, None
    start = clock()
    result = contestant.run()
    elapsed = clock() - start
    return contestant.measured(result) if contestant.measured else elapsed, result
