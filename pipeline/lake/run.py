"""The life of a lake as the driver sees it: created or resumed, filled by workers, finished."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass

from pipeline.lake.compare import differences
from pipeline.lake.contents import Contents, contents
from pipeline.lake.documents import (
    CLOSED,
    digests_in,
    is_closed,
    mismatch,
    object_info,
    read_commit,
    read_commits,
    read_document,
    read_manifest,
    read_quarantine,
    read_success,
    seal,
    sizes_in,
    to_bytes,
    units_in,
)
from pipeline.lake.local import PARTIAL_SUFFIX
from pipeline.lake.parallel import THREADS, ahead
from pipeline.lake.plan import FrozenPlan, digest_of, plan_bytes, read_plan
from pipeline.lake.store import PROBE_PREFIX, LakeStore, MissingObjectError
from pipeline.lake.writer import now
from pipeline.sources.digests import Digests
from schemas import layout
from schemas.documents import Commit, Manifest, ObjectInfo, Quarantine, Success
from schemas.errors import InputError, LakeError


@dataclass(frozen=True)
class Run:
    """A lake that is ready to be written: its manifest as stored, and whether it was there already."""

    manifest: Manifest
    resumed: bool


def create_or_resume(store: LakeStore, manifest: Manifest, plan: FrozenPlan) -> Run:
    """Write the plan and the manifest of a new lake, or check that the lake that is there is of the same job.

    Args:
        store: the lake's place.
        manifest: of this run; where a lake is resumed the stored one counts (its run id, its time).
        plan: the frozen inputs that ``manifest`` was made from.

    Raises:
        InputError: another job's lake or foreign files are there (the difference is named), or the place cannot be
            written.
    """
    if (manifest.inputs_digest, manifest.units) != (plan.digest, plan.units):
        raise ValueError("the manifest's inputs_digest or units are not those of the plan")
    if not store.exists(layout.MANIFEST):
        _require_empty(store)
        store.probe()
        manifest = seal(manifest.model_copy(update={"plan": _place_plan(store, plan)}))
        if store.put_if_absent(layout.MANIFEST, to_bytes(manifest)):
            return Run(manifest, resumed=False)
    try:
        old = read_manifest(store)
        old_plan = plan_bytes(store, old)
    except LakeError as error:
        raise InputError(f"output.uri '{store.uri}' cannot be resumed: {error}; or give another output.uri") from error
    if old.run_id == manifest.run_id:  # our own create-only write, whose reply was lost
        return Run(old, resumed=False)
    found = differences(old, manifest, old_plan, plan.data)
    if found:
        more = f" (and {len(found) - 4} more)" if len(found) > 4 else ""
        raise InputError(
            f"output.uri '{store.uri}' holds the lake of another job: {'; '.join(found[:4])}{more}; "
            "give another output.uri, or undo the change"
        )
    return Run(old, resumed=True)


def _require_empty(store: LakeStore) -> None:
    """Refuse a folder with foreign files: a lake's folders have common names, such as images/."""
    for entry in store.list():
        name = entry.path.rsplit("/", 1)[-1]
        ours = entry.path == layout.PLAN_UNITS or name.startswith(PROBE_PREFIX) or name.endswith(PARTIAL_SUFFIX)
        if not ours:
            raise InputError(
                f"output.uri '{store.uri}' is not empty and is no lake (it holds {entry.path} but no "
                f"{layout.MANIFEST}); give an empty or new folder"
            )


def _place_plan(store: LakeStore, plan: FrozenPlan) -> ObjectInfo:
    """Write the plan, or find it there; returns what is there, which another release may have laid out otherwise."""
    # Create-only, so that of two jobs that start at once in one place, the loser cannot change the winner's plan.
    if store.put_if_absent(layout.PLAN_UNITS, plan.data):
        return object_info(layout.PLAN_UNITS, plan.data)
    where = store.where(layout.PLAN_UNITS)
    data = store.get(layout.PLAN_UNITS)
    if digest_of(data, where) != plan.digest:
        raise InputError(
            f"{where} is the plan of another job whose start was interrupted, or is under way now; "
            "delete it if none is, or give another output.uri"
        )
    return object_info(layout.PLAN_UNITS, data)


def committed(store: LakeStore) -> set[str]:
    """Ids of the units that have a commit, from one listing."""
    return units_in(store, layout.COMMITS)


def done_units(store: LakeStore) -> Digests:
    """The same for a run that goes on, which only asks whether a unit is among them, and may have millions."""
    return digests_in(store, layout.COMMITS)


def quarantined(store: LakeStore) -> set[str]:
    """Ids of the units that were given up, from one listing; a unit that is committed too has a result."""
    return units_in(store, layout.QUARANTINE)


def quarantine(store: LakeStore, record: Quarantine) -> bool:
    """Record that a unit is given up; False where a record stands, which is this one if the first reply was lost."""
    return store.put_if_absent(layout.quarantine(record.unit_id), to_bytes(record))


def finalize(store: LakeStore, threads: int = THREADS) -> Success:
    """Finish a lake: check that it is whole, sweep what no commit names, and write ``_SUCCESS.json``.

    Call it when no worker of the run writes any more; one that was given up for dead and still does can neither
    change the result nor be counted. On a finished lake it only sweeps.

    Raises:
        LakeError: a planned unit has no result, or an object is missing or differs from its commit.
    """
    manifest = read_manifest(store)
    holds = contents(store, manifest)
    done = read_success(store)
    if done is not None:
        for commit in read_commits(store, threads):
            holds.note(commit)
        _sweep(store, holds)
        return done
    planned = {unit.unit_id for unit in read_plan(store, manifest)}
    given_up = quarantined(store)
    sizes = sizes_in(store, layout.COMMITS)
    have = set(sizes)
    _require_whole(store, planned, have, given_up)
    _close(store, (given_up & planned) - have)
    images: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    for commit in ahead(lambda unit: _checked(store, unit, sizes.get(unit)), sorted(planned), threads):
        holds.note(commit)
        images.update(commit.images)
        flags.update(commit.flags)
        totals["quarantined" if is_closed(commit) else "committed"] += 1
        totals["maps"] += commit.maps
        totals["objects"] += len(commit.objects)
        totals["bytes"] += sum(info.size for info in commit.objects)
    for path, data in holds.documents().items():
        store.put(path, data)
    success = Success(
        created=now(),
        run_id=manifest.run_id,
        units=manifest.units,
        committed=totals["committed"],
        quarantined=totals["quarantined"],
        images=dict(sorted(images.items())),
        maps=totals["maps"],
        flags=dict(sorted(flags.items())),
        objects=totals["objects"],
        bytes=totals["bytes"],
        orphans_removed=_sweep(store, holds),
    )
    store.put_if_absent(layout.SUCCESS, to_bytes(success))
    return read_document(store, layout.SUCCESS, Success)


def _require_whole(store: LakeStore, planned: set[str], have: set[str], given_up: set[str]) -> None:
    foreign = sorted(have - planned)
    if foreign:
        raise LakeError(f"{store.where(layout.commit(foreign[0]))}: the plan has no such unit; delete this commit")
    missing = sorted(planned - have - given_up)
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise LakeError(
            f"{store.uri}: {len(missing)} of {len(planned)} units have no result ({names}); "
            "run the job again, it resumes"
        )


def _close(store: LakeStore, units: set[str]) -> None:
    """Take the commit slots of the units that were given up, so that no late attempt can claim them.

    Without this, a worker given up for dead could commit between the sweep, which removes its objects, and the end.
    """
    for unit in sorted(units):
        closing = Commit(
            unit_id=unit,
            attempt=CLOSED,
            created=now(),
            worker="finalize",
            images={},
            maps=0,
            objects=[],
            seconds={},
        )
        store.put_if_absent(layout.commit(unit), to_bytes(closing))


def _checked(store: LakeStore, unit: str, size: int | None) -> Commit:
    commit = read_commit(store, unit, size)
    if is_closed(commit):
        read_quarantine(store, unit)
    for info in commit.objects:
        _, problem = check_object(store, info)
        if problem is not None:
            raise LakeError(f"{problem}; {remedy(unit)}")
    return commit


def remedy(unit: str) -> str:
    """What to do about a unit whose result is damaged."""
    return f"delete {layout.commit(unit)} (and {layout.SUCCESS} where it is there) and run the job again"


def check_object(store: LakeStore, info: ObjectInfo) -> tuple[bytes | None, str | None]:
    """Return an object's bytes (None where it is not there), and what is wrong with it, in words, or None."""
    where = store.where(info.path)
    try:
        data = store.get(info.path, info.size)
    except MissingObjectError:
        return None, f"{where} is not there, and its commit names it"
    return data, mismatch(where, data, info, "its commit")


_DOCUMENT = re.compile(rf"^(?:{layout.COMMITS}|{layout.QUARANTINE})/[^/.][^/]*\.json$")
_GIVEN_UP = re.compile(rf"^{layout.QUARANTINE}/(?P<unit>[^/.][^/]*)\.json$")
_PARTIAL = re.compile(rf"(?:^|/)\.[^/]+\.[0-9a-f]{{8}}{re.escape(PARTIAL_SUFFIX)}$")


def is_leftover(holds: Contents, path: str, units: Container[str]) -> bool:
    """Say whether an object that no commit names was left by a writer of ours at one of ``units``."""
    if _PARTIAL.search(path) or path.startswith(PROBE_PREFIX):
        return True
    if (given_up := _GIVEN_UP.match(path)) is not None:
        return given_up["unit"] in units
    return holds.is_leftover(path, units)


def unnamed(store: LakeStore, holds: Contents) -> Iterator[str]:
    """Yield the paths that neither a commit nor the layout names, from one listing.

    The record of a unit that was given up and has a result all the same is among them: it says nothing any more.

    Args:
        store: the lake.
        holds: its contents, told of all commits.
    """
    known = {layout.MANIFEST, layout.SUCCESS, layout.PLAN_UNITS}
    for entry in store.list():
        if entry.path in known:
            continue
        if _DOCUMENT.match(entry.path):
            given_up = _GIVEN_UP.match(entry.path)
            if given_up is not None and holds.attempts.get(given_up["unit"], CLOSED) != CLOSED:
                yield entry.path
        elif not holds.is_named(entry.path):
            yield entry.path


def _sweep(store: LakeStore, holds: Contents) -> int:
    """Delete what the losing attempts at committed units left; foreign files stay (verify names them)."""
    orphans = [path for path in unnamed(store, holds) if is_leftover(holds, path, holds.attempts)]
    # What tells whose the others are goes last, or a sweep that is interrupted would leave riddles.
    for last in (False, True):
        for _ in ahead(store.delete, [path for path in orphans if (holds.owner(path) is not None) == last]):
            pass
    return len(orphans)
