"""The driver's side: hands units to Ray actors, one replica each, and accounts for every one of them.

Ray Core and a ``ray.wait`` loop, not Ray Data: there a unit that kills its process is retried without end or takes
its neighbours with it. Two units are in flight per worker, so that the next one's bytes are read while this one
computes. A death therefore has several suspects: each runs again alone and with care, its images decoded in a process
of their own (an image that kills costs itself, then), and only a unit that dies so, or that fails with an error of its
own, has spent an attempt. What befalls a unit with its node or by Ray's memory monitor is counted apart.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from pipeline.engine.deaths import LOSSES, kind_of_death, sentence
from pipeline.engine.outcome import Outcome, Pool, Progress, WorkerInfo
from pipeline.lake.sink import new_attempt
from schemas.documents import Attempt
from schemas.errors import AccessError, CamlakeError
from schemas.job import Workers
from schemas.redact import redact
from schemas.unit import Unit

log = logging.getLogger(__name__)

IN_FLIGHT = 2
#: Consecutive failures to start a worker after which the run ends.
MAX_START_FAILURES = 3
#: The same where workers of this job are known to start: then it is chance, or a GPU that its last owner still holds.
MAX_PROVEN_START_FAILURES = 10
#: Longest pause, in seconds, before a worker is started anew after such failures; it doubles from half a second.
_MOST_PAUSE = 30.0
#: The same where nodes were lost: replacements are placed on a node that dies until Ray has noticed.
MAX_LOST_STARTS = 30
#: Times that a unit may be lost with its node, or to Ray's memory monitor, before it is given up.
MAX_LOSSES = 10
#: Seconds after which workers that have found no place yet are told of, and then again after ten times as many.
WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.5
_STACK_SECONDS = 5.0


class Monitor(Protocol):
    """Is told what happens; see :mod:`pipeline.engine.progress`."""

    def worker_ready(self, info: WorkerInfo) -> None:
        """A worker has loaded its replica."""

    def worker_lost(self, name: str, reason: str, kind: str) -> None:
        """A worker died; ``kind`` as that of an :class:`~schemas.documents.Attempt`: died, hung, node_lost, ..."""

    def workers_waiting(self, waiting: int, workers: int, wanted: str) -> None:
        """So many of the ``workers`` have found no node yet that has ``wanted`` to spare."""

    def unit_done(self, outcome: Outcome) -> None:
        """A unit is committed."""

    def unit_failed(self, unit: Unit, attempt: Attempt, final: bool) -> None:
        """An attempt failed; ``final``: the unit is given up."""

    def in_progress(self, images: int) -> None:
        """Images explained in units that are not committed yet."""

    def pool(self, pool: Pool) -> None:
        """The workers; told each second."""


IDLE = Progress(0, ())


@dataclass(eq=False)
class Slot:
    """A worker and what it is doing."""

    name: str
    actor: Any
    info: WorkerInfo | None = None
    alone: bool = False
    flights: dict[Any, Flight] = field(default_factory=dict)
    progress: Progress = IDLE
    #: When something went on in it last; None until it has answered for the first time.
    seen: float | None = None
    asked_for: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Flight:
    """An attempt at a unit that is under way."""

    unit: Unit
    attempt: str


class Dispatcher:
    """Runs units on a pool of actors until each is committed or given up.

    Args:
        spawn: makes an actor of the given name; its class has the methods of
            :class:`pipeline.engine.worker.AttributionWorker`.
        workers: pool size and attempts.
        monitor: is told what happens.
        give_up: records a unit whose attempts are spent, with its history.
        proven: workers of this job have started before.
    """

    def __init__(
        self,
        spawn: Callable[[str], Any],
        workers: Workers,
        monitor: Monitor,
        give_up: Callable[[Unit, list[Attempt]], None],
        *,
        proven: bool = False,
    ) -> None:
        self._spawn = spawn
        self._workers = workers
        self._monitor = monitor
        self._give_up = give_up
        self._slots: list[Slot] = []
        self._refs: dict[Any, tuple[Slot, str]] = {}
        self._suspects: deque[Unit] = deque()
        self._history: dict[str, list[Attempt]] = {}
        self._units: Iterator[Unit] = iter(())
        self._left = 0
        self._size = workers.max
        self._proven = proven
        self._start_failures = 0
        self._lost_starts = 0
        self._start_from = 0.0
        self._careful: set[str] = set()
        self._spawned = 0
        self._polled = 0.0
        self._told_waiting = (0, 0.0)
        self.stopping = False
        self._deadline = float("inf")

    def stop(self, grace: float = float("inf")) -> None:
        """Hand out no more units; :meth:`run` returns when those in flight are done, or after ``grace`` seconds.

        Units that are abandoned then are done by the next run. Safe to call from a signal handler.
        """
        self.stopping = True
        self._deadline = min(self._deadline, time.monotonic() + grace)

    def run(self, units: Iterator[Unit], count: int) -> None:
        """Run the ``count`` units of ``units``, which are drawn one by one as workers can take them.

        Raises:
            CamlakeError: a worker cannot start because of wrong input, or workers keep dying before they are ready.
        """
        self._units = units
        self._left = count
        self._size = min(self._workers.max, count)
        try:
            while True:
                self._assign()
                if not self._busy() and (self.stopping or not self._work_left()):
                    return
                if time.monotonic() > self._deadline:
                    return
                self._collect()
                self._watch()
                self._tell_waiting()
        finally:
            self._shut_down()

    # Handing out

    def _draw(self) -> Unit | None:
        unit = next(self._units, None)
        self._left = 0 if unit is None else self._left - 1
        return unit

    def _busy(self) -> bool:
        return any(slot.flights for slot in self._slots)

    def _assign(self) -> None:
        if self.stopping:
            return
        for depth in range(1, IN_FLIGHT + 1):
            for slot in self._slots:
                self._fill(slot, depth)
        while self._work_left() and len(self._slots) < self._size and time.monotonic() >= self._start_from:
            self._spawned += 1
            name = f"worker-{self._spawned:03d}"
            slot = Slot(name, self._spawn(name))
            self._slots.append(slot)
            self._refs[slot.actor.start.remote()] = (slot, "start")

    def _fill(self, slot: Slot, depth: int) -> None:
        if slot.info is None or slot.alone:
            return
        if self._suspects and not slot.flights:
            slot.alone = True
            self._send(slot, self._suspects.popleft())
        # What a worker holds in advance must not be what another will be waiting for.
        elif len(slot.flights) < depth and (depth == 1 or self._left > 2 * (len(self._slots) - 1)):
            unit = self._draw()
            if unit is not None:
                self._send(slot, unit)

    def _work_left(self) -> bool:
        return bool(self._suspects) or self._left > 0

    def _send(self, slot: Slot, unit: Unit) -> None:
        flight = Flight(unit, new_attempt())
        ref = slot.actor.process.remote(unit, flight.attempt, unit.unit_id in self._careful)
        if not slot.flights:
            slot.seen = time.monotonic()
        slot.flights[ref] = flight
        self._refs[ref] = (slot, "unit")

    # Taking in

    def _collect(self) -> None:
        now = time.monotonic()
        if now - self._polled > 1.0:
            self._polled = now
            self._monitor.pool(self._pool())
            asked = {id(slot) for slot, what in self._refs.values() if what == "progress"}
            for slot in self._slots:
                # One that is not ready yet answers once it has a place to run.
                if (slot.flights or slot.info is None) and id(slot) not in asked:
                    self._refs[slot.actor.progress.remote()] = (slot, "progress")
        if not self._refs:  # no worker, and it is not time yet to start one
            time.sleep(_POLL_SECONDS)
            return
        ready, _ = ray.wait(list(self._refs), num_returns=1, timeout=_POLL_SECONDS)
        for ref in ready:
            # The death of a worker takes its other references along.
            if ref not in self._refs:
                continue
            slot, what = self._refs.pop(ref)
            flight = slot.flights.pop(ref, None)
            try:
                result = ray.get(ref)
            except (RayActorError, OutOfMemoryError) as error:
                if isinstance(error, ActorUnavailableError) and what == "progress":
                    continue
                self._died(slot, flight, kind_of_death(error), sentence(error))
            except RayTaskError as error:
                self._raised(slot, what, flight, error)
            else:
                self._returned(slot, what, flight, result)

    def _pool(self) -> Pool:
        ready = sum(slot.info is not None for slot in self._slots)
        return Pool(
            ready=ready,
            starting=len(self._slots) - ready,
            in_flight=sum(len(slot.flights) for slot in self._slots),
            gpu_memory={
                slot.name: slot.progress.gpu_memory for slot in self._slots if slot.progress.gpu_memory is not None
            },
        )

    def _returned(self, slot: Slot, what: str, flight: Flight | None, result: Any) -> None:
        if what == "start":
            slot.info = result
            self._start_failures = self._lost_starts = 0
            self._proven = True
            self._monitor.worker_ready(result)
        elif what == "progress":
            if slot.seen is None or result.mark != slot.progress.mark:
                slot.seen = time.monotonic()
            slot.progress = result if slot.flights else Progress(0, result.mark, gpu_memory=result.gpu_memory)
            self._monitor.in_progress(sum(other.progress.images for other in self._slots))
        elif flight is not None:
            slot.alone = False
            slot.seen = time.monotonic()
            slot.progress = Progress(0, slot.progress.mark, gpu_memory=slot.progress.gpu_memory)
            self._history.pop(flight.unit.unit_id, None)
            self._careful.discard(flight.unit.unit_id)
            # First, or the unit's images would be counted as done and as in progress.
            self._monitor.in_progress(sum(other.progress.images for other in self._slots))
            self._monitor.unit_done(result)

    def _raised(self, slot: Slot, what: str, flight: Flight | None, error: RayTaskError) -> None:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if what == "progress":
            return
        if flight is None:
            # A replica that cannot be loaded fails on every worker alike: once is enough.
            raise (
                cause
                if isinstance(cause, CamlakeError)
                else CamlakeError(
                    f"worker '{slot.name}' cannot start: {sentence(cause)}; the traceback is in the worker's log"
                )
            ) from error
        if isinstance(cause, AccessError):
            # Every unit would fail alike: better none than all of them given up.
            raise cause from error
        about = {"unit_id": flight.unit.unit_id, "worker_id": slot.name, "attempt": flight.attempt}
        log.error(
            "unit %s failed on %s:\n%s",
            flight.unit.unit_id,
            slot.name,
            redact(str(error)),
            extra={"event": "unit_traceback", "fields": about},
        )
        slot.alone = False
        slot.seen = time.monotonic()
        self._charge(slot, flight, "error", sentence(cause))

    def _watch(self) -> None:
        """End workers in which nothing goes on any more, and those whose unit takes too long."""
        now, limit = time.monotonic(), self._workers.unit_seconds
        for slot in list(self._slots):
            if slot.seen is not None and (slot.flights or slot.info is None):
                silent, stall = now - slot.seen, self._workers.stall_seconds
                if silent > stall:
                    self._end(slot, "hung", f"nothing went on for {silent:.0f} s (workers.stall_seconds is {stall:g})")
                elif limit is not None and slot.progress.unit_id is not None and slot.progress.seconds > limit:
                    took = f"computed for {slot.progress.seconds:.0f} s (workers.unit_seconds is {limit:g})"
                    self._end(slot, "timeout", took)

    def _tell_waiting(self) -> None:
        """Say which workers Ray has not placed: on a cluster that grows that is as it should be, else nobody knows."""
        now = time.monotonic()
        waiting = [slot.asked_for for slot in self._slots if slot.info is None and slot.seen is None]
        count, last = self._told_waiting
        if waiting and now - min(waiting) > WAIT_SECONDS:
            if len(waiting) != count or now - last > 10 * WAIT_SECONDS:
                self._told_waiting = (len(waiting), now)
                self._monitor.workers_waiting(len(waiting), len(self._slots), _wanted(self._workers))
        elif not waiting:
            self._told_waiting = (0, 0.0)

    def _end(self, slot: Slot, kind: str, reason: str) -> None:
        """Log what a worker's threads do, and end it."""
        doing = ", ".join(flight.unit.unit_id for flight in slot.flights.values()) or "its start"
        try:
            stack = ray.get(slot.actor.stack.remote(), timeout=_STACK_SECONDS)
        except (GetTimeoutError, RayError) as error:
            stack = f"it does not answer ({sentence(error)}); its own log has them"
        log.error(
            "%s is ended in %s: %s; its threads:\n%s",
            slot.name,
            doing,
            reason,
            redact(stack),
            extra={"event": "worker_ended", "fields": {"worker_id": slot.name, "kind": kind}},
        )
        current = slot.progress.unit_id if kind == "timeout" else None
        self._died(slot, None, kind, reason, current)

    def _died(self, slot: Slot, flight: Flight | None, kind: str, reason: str, guilty: str | None = None) -> None:
        """Account for a worker's end.

        Args:
            slot: the worker.
            flight: a unit that it had, where that is no longer among its flights.
            kind: of the attempt: died, hung, timeout, node_lost, out_of_memory.
            reason: in a sentence.
            guilty: id of the unit that is to blame, where that is known.
        """
        flights = [*([flight] if flight else []), *slot.flights.values()]
        was_ready, alone = slot.info is not None, slot.alone or len(flights) == 1
        self._drop(slot)
        self._monitor.worker_lost(slot.name, reason, kind)
        if not was_ready:
            self._start_failed(kind, reason)
        for suspect in flights:
            unit = suspect.unit
            with_care = unit.unit_id in self._careful
            if kind not in LOSSES:
                self._careful.add(unit.unit_id)
            if kind in LOSSES or unit.unit_id == guilty or (alone and with_care and guilty is None):
                self._charge(slot, suspect, kind, reason)
            else:
                self._suspects.append(unit)

    def _start_failed(self, kind: str, reason: str) -> None:
        if kind in LOSSES:
            self._lost_starts += 1
        else:
            self._start_failures += 1
            self._start_from = time.monotonic() + min(0.5 * 2 ** (self._start_failures - 1), _MOST_PAUSE)
        most = MAX_PROVEN_START_FAILURES if self._proven else MAX_START_FAILURES
        if self._start_failures >= most or self._lost_starts >= MAX_LOST_STARTS:
            raise CamlakeError(
                f"{max(self._start_failures, self._lost_starts)} workers in a row died before they were ready: "
                f"{reason}; check the memory and the GPU of the workers, and their logs"
            )

    def _charge(self, slot: Slot, flight: Flight, kind: str, reason: str) -> None:
        history = self._history.setdefault(flight.unit.unit_id, [])
        attempt = Attempt(
            attempt=flight.attempt,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=slot.name,
            kind=kind,
            reason=reason,
        )
        history.append(attempt)
        losses = sum(each.kind in LOSSES for each in history)
        final = len(history) - losses >= self._workers.attempts or losses >= MAX_LOSSES
        if final:
            self._give_up(flight.unit, history)
            del self._history[flight.unit.unit_id]
            self._careful.discard(flight.unit.unit_id)
        else:
            self._suspects.append(flight.unit)
        self._monitor.unit_failed(flight.unit, attempt, final)

    def _drop(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._refs = {ref: entry for ref, entry in self._refs.items() if entry[0] is not slot}
        ray.kill(slot.actor)

    def _shut_down(self) -> None:
        for slot in list(self._slots):
            self._drop(slot)


def _wanted(workers: Workers) -> str:
    """What a worker asks Ray for, in words."""
    amounts = {"GPU": workers.gpus, "CPU": workers.cpus, **workers.resources}
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items() if amount)
