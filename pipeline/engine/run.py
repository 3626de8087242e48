"""A whole attribution run: resolve the job, freeze its inputs, dispatch the units, finish the lake."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any, TextIO

from pipeline.engine.allocator import ALLOCATOR
from pipeline.engine.log import Line, about, tell
from pipeline.engine.outcome import Tally
from pipeline.engine.progress import ProgressMonitor
from pipeline.lake import LakeStore, create_or_resume, finalize, quarantine
from pipeline.lake.plan import FrozenPlan, freeze, read_plan
from pipeline.lake.run import done_units
from pipeline.sources import open_source
from pipeline.sources.digests import Digests
from schemas.documents import Attempt, Manifest, MethodInfo, ModelInfo, Quarantine, Success
from schemas.job import Job
from schemas.unit import Unit

_PACKAGES = ("camlake", "torch", "torchvision", "timm", "numpy", "pyarrow", "zarr", "fsspec", "ray", "pillow")
#: Seconds that units in flight are given after SIGINT and SIGTERM; `ray job stop` kills after 3 s.
GRACE = {signal.SIGINT: 30.0, signal.SIGTERM: 2.0}


@dataclass(frozen=True)
class Resolved:
    """What loading the model told: the model as it is used, and the methods with their layers."""

    model: ModelInfo
    methods: list[MethodInfo]
    #: Tensors that `strict: false` let pass, in words; empty where the weights fit.
    misfits: list[str]


@dataclass(frozen=True)
class RunResult:
    """How a run ended. ``success`` is None where it was interrupted by ``signal``."""

    manifest: Manifest
    monitor: ProgressMonitor
    success: Success | None
    signal: int | None = None
    resumed_units: int = 0


def resolve(job: Job) -> Resolved:
    """Load the model on the CPU and resolve layers and methods, so that a wrong job fails before anything is spent.

    Raises:
        InputError: model, weights, layers or methods do not fit each other.
    """
    from pipeline.engine.worker import AttributionWorker

    worker = AttributionWorker(job, None, "driver", device="cpu")
    worker.start()
    report = worker.replica.load_report
    lists = {"missing": report.missing, "unexpected": report.unexpected, "of another shape": report.mismatched}
    misfits = [f"{len(names)} {what}: {', '.join(names[:10])}" for what, names in lists.items() if names]
    return Resolved(worker.replica.info(), worker.explainer.method_infos(), misfits)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def make_manifest(job: Job, resolved: Resolved, plan: FrozenPlan) -> Manifest:
    """Return the manifest of a new run."""
    document = job.model_dump(mode="json")
    for part in ("source", "model", "output", "stored"):
        if document.get(part) is not None:
            document[part].pop("storage_options")
    return Manifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run_id=uuid.uuid4().hex[:12],
        job=document,
        job_digest=job.digest(),
        inputs_digest=plan.digest,
        units=plan.units,
        model=resolved.model,
        methods=resolved.methods,
        attributes={attribute.name: attribute.type for attribute in job.source.attributes},
        versions=versions(),
        kind=job.kind,
    )


def attribute(
    job: Job,
    connect: Callable[[], None],
    *,
    say: Callable[[str], None],
    stream: TextIO | None = None,
    monitor: Callable[[int, Tally, TextIO | None], ProgressMonitor] = ProgressMonitor,
) -> RunResult:
    """Run ``job`` to the end, or go on where an earlier run of the same job stopped.

    Args:
        job: the job, with absolute URIs.
        connect: connects this process to Ray; called once everything is checked and something is left to do.
        say: takes lines for people.
        stream: where progress goes (default: stderr).
        monitor: makes what is told of the run's events, from the units of the plan, what is committed already and
            ``stream``; the result holds it.

    Raises:
        InputError: the job does not fit its model, its inputs or the lake that is there.
        CamlakeError: the workers cannot start, or the lake cannot be finished.
    """
    resolved = resolve(job)
    say(
        Line(
            f"model    {resolved.model.name}, {resolved.model.num_classes} classes, "
            f"input {_size(resolved.model.input_size)}",
            "model",
            model=resolved.model.name,
            classes=resolved.model.num_classes,
        )
    )
    for misfit in resolved.misfits:
        say(Line(f"weights  {misfit}", "weights_misfit", logging.WARNING))
    for layer in resolved.model.layers:
        text = f"layer    {layer.name}: {layer.channels} channels on a grid of {layer.height}x{layer.width}"
        say(Line(text, "layer", layer=layer.name))
    methods = [method.key for method in resolved.methods]
    say(Line(f"methods  {', '.join(methods)}", "methods", methods=methods))
    plan = freeze(open_source(job.source).plan())
    manifest = make_manifest(job, resolved, plan)
    return carry_out(job, manifest, plan, connect, say=say, stream=stream, monitor=monitor)


def carry_out(
    job: Job,
    manifest: Manifest,
    plan: FrozenPlan,
    connect: Callable[[], None],
    *,
    say: Callable[[str], None],
    stream: TextIO | None = None,
    monitor: Callable[[int, Tally, TextIO | None], ProgressMonitor] = ProgressMonitor,
    worker: type | None = None,
) -> RunResult:
    """Run the units of a plan to the end, or go on where an earlier run of the same job stopped.

    Args:
        job: the job, with absolute URIs.
        manifest: of a new run.
        plan: the units.
        connect: as for :func:`attribute`.
        say: takes lines for people.
        stream: where progress goes (default: stderr).
        monitor: as for :func:`attribute`.
        worker: what processes units, made of the job, the manifest and a name, with the methods of
            :class:`pipeline.engine.worker.AttributionWorker` that the dispatcher calls. Default: that one.

    Raises:
        InputError: another job's lake is there.
        CamlakeError: the workers cannot start, or the lake cannot be finished.
    """
    store = LakeStore(job.output.uri, job.output.storage_options)
    run = create_or_resume(store, manifest, plan)
    done = done_units(store)
    left = plan.units - len(done)
    told = monitor(plan.units, Tally(units=len(done)), stream)
    stopped: int | None = None
    with about(run_id=run.manifest.run_id):
        text = f"lake     {job.output.uri}"
        if run.resumed:
            text += f" (resumed: {len(done)} of {plan.units} units are done)"
        say(Line(text, "lake", uri=job.output.uri, resumed=run.resumed, units_done=len(done)))
        if left:
            text = f"inputs   {plan.units} units; {left} to do on up to {min(job.workers.max, left)} workers"
            say(Line(text, "inputs", units=plan.units, units_left=left, workers=min(job.workers.max, left)))
            connect()
            stopped = _dispatch(job, run.manifest, store, done, left, told, worker)
        if stopped is not None:
            return RunResult(run.manifest, told, None, stopped, len(done))
        say(Line("checking the lake and finishing it", "finishing"))
        return RunResult(run.manifest, told, finalize(store), None, len(done))


def _dispatch(
    job: Job,
    manifest: Manifest,
    store: LakeStore,
    done: Digests,
    left: int,
    monitor: ProgressMonitor,
    worker: type | None,
) -> int | None:
    """Run the units that are left; returns the signal that stopped it, if one did."""
    import ray

    from pipeline.engine.dispatcher import IN_FLIGHT, Dispatcher
    from pipeline.engine.metrics import MetricsMonitor, Monitors, Recorder
    from pipeline.engine.worker import AttributionWorker

    workers = job.workers
    actor = ray.remote(worker or AttributionWorker).options(
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        resources=workers.resources or None,
        runtime_env={"env_vars": ALLOCATOR} if workers.gpus == 0 else None,
        max_restarts=0,
        # The units in flight, and one more thread that answers questions meanwhile.
        max_concurrency=IN_FLIGHT + 1,
    )
    job_ref, manifest_ref = ray.put(job), ray.put(manifest)

    def give_up(unit: Unit, attempts: list[Attempt]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        quarantine(store, Quarantine(unit_id=unit.unit_id, created=now, attempts=attempts))

    told = Monitors([monitor, MetricsMonitor(Recorder(manifest.run_id), monitor)])
    dispatcher = Dispatcher(
        lambda name: actor.remote(job_ref, manifest_ref, name), workers, told, give_up, proven=bool(done)
    )
    units = (unit for unit in read_plan(store, manifest) if unit.unit_id not in done)
    with stop_on_signals(dispatcher.stop) as received, monitor:
        dispatcher.run(units, left)
    return received[0] if received else None


@contextmanager
def stop_on_signals(stop: Callable[[float], Any]) -> Iterator[list[int]]:
    """Call ``stop(grace seconds)`` on SIGINT and SIGTERM; yields the list of signals received.

    Must be entered after Ray is connected, which installs handlers of its own. Outside the main thread, where Python
    allows no handlers, signals are left as they are.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        again = bool(received)
        received.append(number)
        grace = 0.0 if again else GRACE[signal.Signals(number)]
        text = f"\nstopping: units in flight have {grace:.0f} s; the same command resumes the run"
        tell(Line(text, "stopping", logging.WARNING, signal=number, grace_seconds=grace), sys.stderr)
        stop(grace)

    previous: dict[signal.Signals, Any] = {}
    try:
        for each in GRACE:
            previous[each] = signal.signal(each, handle)
    except ValueError:
        previous.clear()
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
