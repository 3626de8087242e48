"""Verification: everything that was planned is there, decodes, and adds up; what is not right is named."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.lake.contents import Contents, contents
from pipeline.lake.documents import CLOSED, is_closed, read_commit, read_manifest, read_quarantine, read_success
from pipeline.lake.parallel import ahead
from pipeline.lake.plan import digest_of, plan_bytes, read_plan
from pipeline.lake.run import committed, is_leftover, quarantined, remedy, unnamed
from pipeline.lake.store import LakeStore, MissingObjectError
from pipeline.lake.verify_unit import Problem, UnitCheck, hash_id
from schemas import layout
from schemas.documents import Manifest, Success
from schemas.errors import LakeError

__all__ = ["Problem", "Verification", "verify"]

# Each thread holds one unit's objects whole.
_THREADS = 4
_MOST_DUPLICATES = 20


@dataclass
class Verification:
    """What was verified: the problems, and the totals of what is there.

    ``orphans`` are objects that no commit names; they are normal while a run is under way and are swept when it
    finishes, so they count as problems in a finished lake only.
    """

    problems: list[Problem] = field(default_factory=list)
    finished: bool = False
    planned: int = 0
    committed: int = 0
    quarantined: int = 0
    orphans: int = 0
    images: Counter[str] = field(default_factory=Counter)
    maps: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    arrays: int = 0
    objects: int = 0
    bytes: int = 0
    kind: str = "heatmaps"

    @property
    def ok(self) -> bool:
        """Nothing is wrong; an unfinished lake is a problem too."""
        return not self.problems

    def add(self, kind: str, path: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, path, message))


def verify(
    store: LakeStore, threads: int = _THREADS, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Read every object of a lake and check it against its commit, the plan, the manifest and the totals.

    Args:
        store: the lake; nothing is written.
        threads: units checked at a time; each holds its objects in memory.
        progress: called with (units checked, units to check).

    Raises:
        InputError: there is no lake here.
        LakeError: the manifest or the plan cannot be read, so that nothing can be verified against them.
    """
    manifest = read_manifest(store)
    result = Verification(planned=manifest.units, kind=manifest.kind)
    planned = {unit.unit_id for unit in read_plan(store, manifest)}
    digest = digest_of(plan_bytes(store, manifest), store.where(layout.PLAN_UNITS))
    if digest != manifest.inputs_digest or len(planned) != manifest.units:
        result.add("plan", layout.PLAN_UNITS, f"{store.where(layout.PLAN_UNITS)} is not the plan of the manifest")
    have, given_up = committed(store), quarantined(store)
    _check_plan(store, result, planned, have, given_up)
    holds = contents(store, manifest)
    hashes: list[tuple[str, npt.NDArray[np.uint64]]] = []
    todo = sorted(have & planned)
    for number, check in enumerate(
        ahead(lambda unit: _check(store, holds, unit, unit in given_up), todo, threads), start=1
    ):
        _count(result, check, holds, hashes)
        if progress is not None:
            progress(number, len(todo))
    result.quarantined += len((given_up & planned) - have)
    for problem in ahead(lambda unit: _check_quarantine(store, unit), sorted(given_up & planned), threads):
        result.problems += problem
    _check_unique(store, result, hashes, holds.attempts)
    success = _success(store, result)
    _check_unnamed(
        store, result, holds, planned, given_up - {unit for unit in have if holds.attempts.get(unit) != CLOSED}
    )
    if success is not None:
        _check_documents(store, result, holds)
        _check_slots(store, result, (given_up & planned) - have)
        _check_totals(result, success, manifest)
    return result


def _check_plan(store: LakeStore, result: Verification, planned: set[str], have: set[str], given_up: set[str]) -> None:
    for unit in sorted(have - planned):
        path = layout.commit(unit)
        result.add("commit", path, f"{store.where(path)}: the plan has no such unit; delete this commit")
    for unit in sorted(planned - have - given_up):
        path = layout.commit(unit)
        result.add("unit_missing", path, f"{store.where(path)}: the unit has no result; run the job again, it resumes")

    for unit in sorted(given_up - planned):
        path = layout.quarantine(unit)
        result.add("quarantine", path, f"{store.where(path)}: the plan has no such unit; delete this record")


def _check(store: LakeStore, holds: Contents, unit: str, given_up: bool) -> UnitCheck | Problem:
    path = layout.commit(unit)
    try:
        commit = read_commit(store, unit)
    except LakeError as error:
        return Problem("commit", path, str(error))
    if not is_closed(commit):
        return holds.check_unit(commit)
    check = UnitCheck(commit)
    if not given_up:
        path = layout.quarantine(unit)
        check.add("quarantine", path, f"{store.where(path)} is not there, and the unit is given up; {remedy(unit)}")
    return check


def _check_quarantine(store: LakeStore, unit: str) -> list[Problem]:
    try:
        read_quarantine(store, unit)
    except LakeError as error:
        return [Problem("quarantine", layout.quarantine(unit), str(error))]
    return []


def _check_slots(store: LakeStore, result: Verification, open_slots: set[str]) -> None:
    """A finished lake holds the slot of every unit, of those that were given up too."""
    for unit in sorted(open_slots):
        path = layout.commit(unit)
        message = f"{store.where(path)} is not there, and the lake is finished; delete {layout.SUCCESS} and run again"
        result.add("unit_missing", path, message)


def _count(
    result: Verification,
    check: UnitCheck | Problem,
    holds: Contents,
    hashes: list[tuple[str, npt.NDArray[np.uint64]]],
) -> None:
    if isinstance(check, Problem):
        result.problems.append(check)
        return
    commit = check.commit
    result.problems += check.problems
    holds.note(commit)
    if is_closed(commit):
        result.quarantined += 1
        return
    result.committed += 1
    result.images.update(commit.images)
    result.maps += commit.maps
    result.flags.update(commit.flags)
    result.arrays += check.arrays
    result.objects += len(commit.objects)
    result.bytes += sum(info.size for info in commit.objects)
    hashes.append((commit.unit_id, check.id_hashes))


def _check_unique(
    store: LakeStore,
    result: Verification,
    hashes: list[tuple[str, npt.NDArray[np.uint64]]],
    attempts: dict[str, str],
) -> None:
    """Find image ids that two units share: by hash first, then exactly for those whose hash repeats."""
    if not hashes:
        return
    values, counts = np.unique(np.concatenate([part for _, part in hashes]), return_counts=True)
    repeated = values[counts > 1][:_MOST_DUPLICATES]
    if not repeated.size:
        return
    wanted = set(repeated.tolist())
    first: dict[str, str] = {}
    for unit, part in hashes:
        if not np.isin(part, repeated).any():
            continue
        path = layout.images(unit, attempts[unit])
        for image_id in pq.read_table(io.BytesIO(store.get(path)), columns=["image_id"])["image_id"].to_pylist():
            if hash_id(image_id) in wanted and first.setdefault(image_id, unit) != unit:
                message = f"{store.where(path)}: image id '{image_id}' is in unit {first[image_id]} too"
                result.add("image_id", path, message)


def _success(store: LakeStore, result: Verification) -> Success | None:
    try:
        success = read_success(store)
    except LakeError as error:
        result.add("success", layout.SUCCESS, str(error))
        return None
    result.finished = success is not None
    if success is None:
        message = f"{store.uri} is not finished ({layout.SUCCESS} is not there); run the job again, it resumes"
        result.add("unfinished", layout.SUCCESS, message)
    return success


def _check_unnamed(
    store: LakeStore, result: Verification, holds: Contents, planned: set[str], given_up: set[str]
) -> None:
    for path in unnamed(store, holds):
        if not is_leftover(holds, path, planned):
            riddle = holds.riddle(path, planned)
            if riddle is not None:
                result.orphans += 1
                result.add("riddle", path, _riddle(store.where(path), riddle, given_up=riddle in given_up))
                continue
            result.add("foreign", path, f"{store.where(path)} is no part of the lake; move it elsewhere")
            continue
        result.orphans += 1
        # Objects of a unit whose commit is lost or damaged are no orphans yet; that commit is the problem.
        if result.finished and is_leftover(holds, path, holds.attempts):
            message = f"{store.where(path)} is named by no commit; run the job again, which sweeps it"
            result.add("orphan", path, message)


def _riddle(where: str, unit: str, *, given_up: bool) -> str:
    what = f"{where} is named by no commit and may be what an attempt at unit {unit} left, whose images table is lost"
    if given_up:
        return f"{what}; the unit is given up and nothing reads it: delete it, or move it elsewhere if it is yours"
    return f"{what}; run the job again, which does the unit anew and takes or sweeps what is the unit's"


def _check_documents(store: LakeStore, result: Verification, holds: Contents) -> None:
    """What finalize added must be what the commits give."""
    remedy = f"delete {layout.SUCCESS} and run the job again, which writes it anew"
    try:
        expected = holds.documents()
    except LakeError as error:
        result.add("document", layout.SUCCESS, str(error))
        return
    for path, data in expected.items():
        try:
            found = store.get(path)
        except MissingObjectError:
            result.add("document", path, f"{store.where(path)} is not there, and the lake is finished; {remedy}")
            continue
        if found != data:
            result.add("document", path, f"{store.where(path)} is not what the commits give; {remedy}")


def _check_totals(result: Verification, success: Success, manifest: Manifest) -> None:
    counted = {
        "run_id": (success.run_id, manifest.run_id),
        "units": (success.units, result.planned),
        "committed": (success.committed, result.committed),
        "quarantined": (success.quarantined, result.quarantined),
        "images": (success.images, dict(result.images)),
        "maps": (success.maps, result.maps),
        "flags": (success.flags, dict(result.flags)),
        "objects": (success.objects, result.objects),
        "bytes": (success.bytes, result.bytes),
    }
    for name, (said, found) in counted.items():
        if said != found:
            result.add("totals", layout.SUCCESS, f"{layout.SUCCESS}: {name} is {said}, and the lake holds {found}")
