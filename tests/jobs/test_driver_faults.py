"""Drivers that are stopped, killed and doubled: the same command again does the rest."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lake import LakeStore, verify
from tests.jobs.faults import commits, job, make_data, start, undisturbed_lake, wait_for, write
from tests.lakes import assert_equal_lakes

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.slow]
UNITS = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen shards of two scenes."""
    return make_data(tmp_path_factory.mktemp("faults"), 2 * UNITS, UNITS)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lake of a run in which nothing happens."""
    return undisturbed_lake(data, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def resting(data: Path) -> Iterator[Path]:
    """Forwards take long enough for something to happen in mid-run; removing the file ends that."""
    order = data / "orders" / "rest@0.15"
    order.touch()
    yield order
    order.unlink(missing_ok=True)


def test_a_driver_that_is_stopped_or_killed_goes_on_with_the_same_command(
    data: Path, undisturbed: str, resting: Path, tmp_path: Path
) -> None:
    lake, log = tmp_path / "lake", tmp_path / "log"
    path = write(job(data, lake), tmp_path / "job.yaml")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        before = commits(lake)
        run = start(path, log)
        wait_for(lambda before=before: commits(lake) > before, run)
        run.send_signal(number)
        assert run.wait(60) == code, log.read_text()
        assert commits(lake) < UNITS, "the run was over before the signal"
        assert not (lake / "_SUCCESS.json").exists()
    said = log.read_text()
    assert said.count("the same command resumes the run") == said.count("the same command does the rest") == 2
    resting.unlink()
    last = start(path, log)
    assert last.wait(120) == 0, log.read_text()
    assert "(resumed:" in log.read_text()
    assert_equal_lakes(undisturbed, str(lake))
    assert verify(LakeStore(str(lake))).ok


def test_two_drivers_at_once_end_in_one_lake(data: Path, undisturbed: str, resting: Path, tmp_path: Path) -> None:
    lake, logs = tmp_path / "lake", (tmp_path / "one", tmp_path / "two")
    path = write(job(data, lake, max=1), tmp_path / "job.yaml")
    runs = [start(path, log) for log in logs]
    wait_for(lambda: all("is ready" in log.read_text() for log in logs), runs[0])
    resting.unlink()
    codes = [run.wait(180) for run in runs]
    assert codes == [0, 0], "".join(log.read_text() for log in logs)
    assert_equal_lakes(undisturbed, str(lake))
    assert verify(LakeStore(str(lake))).ok
