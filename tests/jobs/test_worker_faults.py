"""Workers that die, hang and fail in mid-unit: the lake ends complete, and equal to that of an undisturbed run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.lake import LakeStore, open_lake, verify
from tests.faulty import picture
from tests.jobs.faults import job, make_data, undisturbed_lake, write
from tests.lakes import assert_equal_lakes
from tests.tars import write_tar

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]
Run = Callable[..., Result]
STALL = 5.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of four scenes."""
    return make_data(tmp_path_factory.mktemp("faults"), 24, 6)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lake of a run in which nothing happens."""
    return undisturbed_lake(data, tmp_path_factory.mktemp("undisturbed"))


def run(
    actions: list[str], data: Path, lake: Path, camlake: Run, capfd: pytest.CaptureFixture[str], **workers: Any
) -> str:
    """Run the job with these faults, each once, and return what is said."""
    for number, action in enumerate(actions):
        (data / "orders" / f"{action}@{3 + number}").touch()
    done = camlake("attribute", write(job(data, lake, **workers), lake.parent / "job.yaml"))
    said = done.output + capfd.readouterr().err
    assert done.exit_code == 0, said
    assert not list((data / "orders").iterdir()), "not all faults happened"
    return said


def test_workers_that_die_or_fail_in_mid_unit_cost_nothing(
    data: Path, undisturbed: str, tmp_path: Path, camlake: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run(["kill", "segfault", "exit", "raise"], data, tmp_path / "lake", camlake, capfd)
    assert said.count("ActorDiedError") >= 3 and "ValueError: no good" in said
    assert_equal_lakes(undisturbed, str(tmp_path / "lake"))
    assert verify(LakeStore(str(tmp_path / "lake"))).ok


def test_workers_that_hang_in_mid_unit_are_ended_with_their_stacks(
    data: Path,
    undisturbed: str,
    tmp_path: Path,
    camlake: Run,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        said = run(["sleep", "hold", "stop"], data, tmp_path / "lake", camlake, capfd, stall_seconds=STALL)
    assert said.count("nothing went on for") >= 3
    assert "in _obey" in caplog.text, "the stack of the worker that sleeps is not in the log"
    assert caplog.text.count("does not answer") >= 2
    assert_equal_lakes(undisturbed, str(tmp_path / "lake"))
    assert verify(LakeStore(str(tmp_path / "lake"))).ok


def test_an_image_that_ends_its_worker_costs_itself_and_not_its_unit(
    data: Path, undisturbed: str, tmp_path: Path, camlake: Run
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    faults = {
        "exit": "exit code 7",
        "segfault": "signal 11 (SIGSEGV)",
        "kill": "signal 9 (SIGKILL)",
        "sleep": "took more than",
    }
    for number, shard in enumerate(sorted((data / "shards").glob("*.tar"))):
        extra = {0: ["exit", "segfault"], 3: ["kill"], 5: ["sleep"]}.get(number, [])
        write_tar(shard, shards / shard.name, {f"bad-{action}.png": picture(action) for action in extra})
    document = job(data, tmp_path / "lake", stall_seconds=STALL)
    document["source"]["uri"] = str(shards / "*.tar")
    document["targets"] = {"predicted": True}
    done = camlake("attribute", write(document, tmp_path / "job.yaml"))
    assert done.exit_code == 1, done.output
    lake = open_lake(str(tmp_path / "lake"))
    rows = lake.images.to_table().to_pylist()
    bad = {row["image_id"]: row for row in rows if row["status"] != "ok"}
    assert len(rows) == 24 + 4 and len(bad) == 4
    for action, reason in faults.items():
        row = next(row for name, row in bad.items() if f"bad-{action}" in name)
        assert row["status"] == "decode_crash" and reason in row["error"] and row["sha256"]
    assert not list((tmp_path / "lake" / "quarantine").glob("*"))
    assert verify(LakeStore(str(tmp_path / "lake"))).ok
    clean = {_key(row): values.tobytes() for row, values in open_lake(undisturbed).heatmaps() if row["is_predicted"]}
    assert {_key(row): values.tobytes() for row, values in lake.heatmaps()} == clean


def _key(row: Any) -> tuple[str, str, int]:
    return (row["image_id"].rsplit("/", 1)[-1], row["method"], row["target_class"])
