"""SIGKILL at every step on the disk of every kind of write: what looks done is done, and a second attempt completes it.

A process of its own forks a child per step: it is warm, and has no threads of the test session that a fork would break.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.lake import writer
from pipeline.lake.documents import read_commits, read_quarantine
from pipeline.lake.reader import open_lake
from pipeline.lake.run import committed, create_or_resume, finalize, quarantine, quarantined
from pipeline.lake.store import LakeStore
from pipeline.lake.verify import verify
from pipeline.lake.writer import LakeSink
from schemas import layout
from schemas.documents import Attempt, Quarantine
from schemas.errors import InputError
from tests.lakes import assert_equal_lakes
from tests.pipeline.lake.helpers import make_manifest, make_plan, make_result, sink_for, unit_id

PLAN = make_plan(2)
UNIT = unit_id(1)
CALLS = ("mkdir", "open", "fsync", "replace", "link", "unlink", "rmdir")
#: What a lake may lack whose writer was killed; ``orphan`` is a temporary file beside a finished lake.
UNFINISHED = {"unfinished", "unit_missing", "orphan"}


def start(store: LakeStore, run: str) -> LakeSink:
    return sink_for(store, create_or_resume(store, make_manifest(PLAN, run_id=run), PLAN).manifest)


def write(store: LakeStore, attempt: str, number: int = 1) -> None:
    """Write one method's maps of a unit."""
    result = make_result(unit_id(number), attempt, images=3)
    start(store, f"run-{attempt}").write(dataclasses.replace(result, map_sets=result.map_sets[:1]))


def give_up(store: LakeStore, attempt: str) -> None:
    history = [Attempt(attempt=attempt, when="2026-01-02", worker="w1", kind="died", reason="killed by signal 9")]
    quarantine(store, Quarantine(unit_id=UNIT, created="2026-01-02", attempts=history))


def all_but_the_end(store: LakeStore) -> None:
    """One unit that is committed, beside the objects of an attempt that lost, and one that was given up."""
    write(store, "a0", 0)
    shutil.copy(store.where(layout.maps(unit_id(0), "a0")), store.where(layout.maps(unit_id(0), "lost")))
    other = Path(store.where(layout.heatmaps("grad_cam", "layer4", UNIT, "lost")))
    shutil.copytree(store.where(layout.heatmaps("grad_cam", "layer4", unit_id(0), "a0")), other)
    give_up(store, "a1")


def write_both(store: LakeStore, attempt: str) -> None:
    write(store, attempt, 0)
    write(store, attempt, 1)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """``before`` is left alone, ``act`` is killed (attempt a1), and ``again`` completes the lake (attempt a2)."""

    before: Callable[[LakeStore], Any]
    act: Callable[[LakeStore, str], Any]
    again: Callable[[LakeStore, str], Any]


SCENARIOS = {
    "create": Scenario(lambda store: None, lambda store, attempt: start(store, attempt), write_both),
    "unit": Scenario(lambda store: write(store, "a0", 0), write, write),
    "quarantine": Scenario(lambda store: write(store, "a0", 0), give_up, give_up),
    "finalize": Scenario(all_but_the_end, lambda store, attempt: finalize(store), lambda store, attempt: None),
}


class Halves:
    """A file that takes its bytes in two halves, with a step between them."""

    def __init__(self, file: Any, step: Callable[[str], None]) -> None:
        self.file, self.step = file, step

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        middle = len(data) // 2
        self.file.write(data[:middle])
        self.file.flush()
        self.step("half")
        self.file.write(data[middle:])

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def die_at(number: int, pipe: int) -> Callable[[str], None]:
    """Make this process die before its ``number``-th call that changes the disk; the name of the call goes to pipe."""
    counter, lock, report, kill = itertools.count(1), threading.Lock(), os.write, os.kill

    def step(name: str) -> None:
        with lock:
            if next(counter) == number:
                report(pipe, name.encode())
                kill(os.getpid(), signal.SIGKILL)

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            step(name)
            return call(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    fdopen = os.fdopen
    os.fdopen = lambda *arguments: Halves(fdopen(*arguments), step)  # type: ignore[assignment,misc]
    return step


def killed_at(number: int, act: Callable[[], None]) -> str | None:
    """Run ``act`` in a child that dies at a step; return the step's name, or None where there were fewer steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            step = die_at(number, writing)
            act()
            step("end")
            code = 0
        except BaseException:  # noqa: BLE001 - a fork must not go on as pytest
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        name = file.read().decode()
    _, status = os.waitpid(child, 0)
    if name:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return name
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed by itself"
    return None


def check_what_is_there(store: LakeStore) -> None:
    """Whatever says that it is done is whole, and readers see just that."""
    if not store.exists(layout.MANIFEST):
        with pytest.raises(InputError, match="holds no lake"):
            open_lake(store.uri)
        return
    result = verify(store)
    problems = [problem for problem in result.problems if problem.kind not in UNFINISHED]
    assert problems == []
    assert all(".partial" in problem.path for problem in result.problems if problem.kind == "orphan")
    assert result.finished == store.exists(layout.SUCCESS)
    lake = open_lake(store.uri)
    assert set(lake.commits) == {commit.unit_id for commit in read_commits(store) if commit.objects}
    assert len(list(lake.heatmaps())) == 4 * len(lake.commits) == lake.maps.count_rows()
    for unit in quarantined(store):
        assert read_quarantine(store, unit).attempts
    assert committed(store) <= {unit_id(0), UNIT}


def try_every_step(name: str, folder: str) -> list[str]:
    """Kill a scenario at each of its steps; returns the names of the steps."""
    writer.PUT_THREADS = 1  # in this process: the same steps in the same order each time
    scenario = SCENARIOS[name]
    pristine, whole = Path(folder, "pristine"), LakeStore(str(Path(folder, "whole")))
    pristine.mkdir()
    scenario.before(LakeStore(str(pristine)))
    shutil.copytree(pristine, whole.uri)
    scenario.act(whole, "a1")
    scenario.again(whole, "a2")
    finalize(whole)
    assert verify(whole).problems == []
    names: list[str] = []
    for number in itertools.count(1):
        store = LakeStore(str(Path(folder, "lake")))
        shutil.copytree(pristine, store.uri)
        step = killed_at(number, lambda store=store: scenario.act(store, "a1"))  # type: ignore[misc]
        if step is None:
            return names
        names.append(step)
        try:
            check_what_is_there(store)
            scenario.again(store, "a2")
            finalize(store)
            assert verify(store).problems == []
            assert_equal_lakes(whole.uri, store.uri)
        except Exception as error:
            raise AssertionError(f"killed at step {number} ({step}): {error}") from error
        shutil.rmtree(store.uri)
    raise AssertionError("unreachable: there is a last step")


@pytest.fixture(scope="module")
def warm() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(
    ("name", "objects", "creates"),
    # create: the probe (twice, the second time in vain), the plan and the manifest; unit: an array's two, two tables,
    # the commit; finalize: the closing commit and _SUCCESS.json.
    [("create", 0, 3), ("unit", 4, 1), ("quarantine", 0, 1), ("finalize", 0, 2)],
)
def test_a_kill_at_any_step_leaves_nothing_half_done(
    name: str, objects: int, creates: int, warm: ProcessPoolExecutor, tmp_path: Path
) -> None:
    names = warm.submit(try_every_step, name, str(tmp_path)).result()
    counts = {step: names.count(step) for step in (*CALLS, "half", "end")}
    assert counts["end"] == 1
    assert counts["half"] == objects + creates
    assert (counts["replace"], counts["link"]) == (objects, creates)
    # Each file is synced, and then its folder.
    assert counts["fsync"] == counts["open"] == 2 * (objects + creates)
    # The temporary name of each file that was created, and what the probe and the sweep delete. The sweep has threads:
    # of its three objects, which are deleted in any order, the folders are sometimes others'.
    assert counts["unlink"] >= creates + {"create": 1, "finalize": 2}.get(name, 0)
