"""``camlake status --watch``: lines in a pipe, JSON where asked for, to the end of the run or to Ctrl-C."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import Result

from pipeline.lake.documents import read_commit, to_bytes
from pipeline.lake.run import finalize
from pipeline.lake.store import LakeStore
from schemas import layout
from tests.pipeline.lake.helpers import build, unit_id

Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> LakeStore:
    """A lake of four units, all committed, one each ten seconds until now."""
    store = LakeStore(str(tmp_path / "lake"))
    build(store, 4, finish=False)
    for index in range(4):
        commit = read_commit(store, unit_id(index))
        when = datetime.now(UTC) - timedelta(seconds=30 - 10 * index)
        store.put(layout.commit(unit_id(index)), to_bytes(commit.model_copy(update={"created": when.isoformat()})))
    return store


@pytest.fixture
def unfinished(store: LakeStore, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Three units are there; the fourth comes in the first pause, the end in the second. Holds the pauses."""
    path = layout.commit(unit_id(3))
    data = store.get(path)
    store.delete(path)
    pauses: list[float] = []

    def rest(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            store.put(path, data)
        else:
            finalize(store)

    monkeypatch.setattr("jobs.status.time.sleep", rest)
    return pauses


def test_a_line_per_look_until_it_is_finished(store: LakeStore, unfinished: list[float], camlake: Run) -> None:
    result = camlake("status", store.uri, "--watch", "--every", "2.5")
    assert result.exit_code == 0, result.output
    assert unfinished == [2.5, 2.5]
    first, second, last = result.output.splitlines()
    assert all(re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in (first, second, last))
    assert "running: units 3/4, 1 to do, 0 quarantined; 15 images, 3 failed; " in first
    assert re.search(r"; 0\.5 images/s, ETA 0:10; last commit \d:\d\d ago$", first)
    assert "running: units 4/4, 0 to do" in second and "ETA" not in second
    assert "finished: units 4/4, 0 to do, 0 quarantined; 20 images, 4 failed" in last and "ago" not in last


@pytest.mark.usefixtures("unfinished")
def test_an_object_per_look(store: LakeStore, camlake: Run) -> None:
    result = camlake("status", store.uri, "--watch", "--json")
    looks = [json.loads(line) for line in result.output.splitlines()]
    assert [(each["state"], each["committed"], each["remaining"]) for each in looks] == [
        ("running", 3, 1),
        ("running", 4, 0),
        ("finished", 4, 0),
    ]
    once = json.loads(camlake("status", store.uri, "--json").output)
    assert once["images"] == looks[-1]["images"] == {"decode_error": 4, "ok": 16}
    assert once["run_id"] and once["planned"] == 4 and once["last_commit"].endswith("+00:00")


def test_on_a_terminal_it_is_drawn_over(
    store: LakeStore, unfinished: list[float], camlake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    result = camlake("status", store.uri, "--watch")
    assert result.exit_code == 0 and len(unfinished) == 2
    assert "\x1b[1A" in result.output  # up, to draw over the last look
    assert "4 committed + 0 quarantined + 0 to do = 4" in result.output


def test_ctrl_c_ends_it(store: LakeStore, camlake: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.status.time.sleep", interrupted)
    result = camlake("status", store.uri, "--watch")
    assert result.exit_code == 130 and result.output.count("\n") == 1


def test_where_there_is_no_lake_it_says_so(tmp_path: Path, camlake: Run) -> None:
    result = camlake("status", tmp_path, "--watch")
    assert result.exit_code == 2 and "holds no lake" in result.stderr
