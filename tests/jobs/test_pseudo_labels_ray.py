"""Pseudo-label jobs on Ray: workers that die, drivers that are killed, and the dense CRF on the cluster's CPUs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from typer.testing import Result

from pipeline.lake import LakeStore, verify
from pipeline.pseudolabels import crf
from tests.jobs.faults import commits, job, make_data, start, wait_for, write
from tests.jobs.inline import run_inline
from tests.lakes import assert_equal_lakes

pytestmark = pytest.mark.usefixtures("local_ray")
UNITS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two scenes."""
    return make_data(tmp_path_factory.mktemp("faults"), 2 * UNITS, UNITS)


def label_job(data: Path, lake: Path, **settings: Any) -> dict[str, Any]:
    return job(data, lake) | {
        "methods": ["grad_cam"],
        "targets": {"label": True},
        "pseudo_labels": {"scales": [1.0, 0.5], "files": {"confidence": True}} | settings,
    }


@pytest.mark.slow
def test_workers_that_die_and_a_driver_that_is_killed_cost_nothing(
    data: Path, tmp_path: Path, camlake: Callable[..., Result]
) -> None:
    run_inline(label_job(data, tmp_path / "whole"))
    lake, log = tmp_path / "lake", tmp_path / "log"
    path = write(label_job(data, lake), tmp_path / "job.yaml")
    rest = data / "orders" / "rest@0.2"
    rest.touch()
    run = start(path, log, command="pseudo_labels")
    wait_for(lambda: commits(lake) > 0, run)
    run.send_signal(signal.SIGKILL)
    run.wait(60)
    rest.unlink()
    assert commits(lake) < UNITS, "the run was over before the signal"
    (data / "orders" / "kill@2").touch()
    done = camlake("pseudo-labels", path)
    assert done.exit_code == 0, done.output
    assert "(resumed:" in done.output and "12 labels" in done.output and "refine " in done.output
    assert not list((data / "orders").iterdir())
    assert_equal_lakes(str(tmp_path / "whole"), str(lake))
    assert verify(LakeStore(str(lake))).ok
    again = camlake("pseudo-labels", path)
    assert again.exit_code == 0 and "6 of 6 units are done" in again.output
    status = camlake("status", lake)
    assert "finished" in status.output and "12 labels" in status.output and "refine" in status.output


@pytest.mark.parametrize("spare", ["a cpu", "no cpu", "too late"])
def test_the_dense_crf_gives_the_same_on_the_cluster_and_in_the_worker(
    spare: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pydensecrf", reason="pydensecrf2 is not installed (it compiles C++)")
    document = label_job(data, tmp_path / "here", refine={"method": "crf", "iterations": 3})
    document["source"]["uri"] = str(next((data / "shards").glob("*.tar")))
    here: list[int] = []
    monkeypatch.setattr(crf, "dense_crf", lambda *given, inner=crf.dense_crf: here.append(1) or inner(*given))
    with monkeypatch.context() as patch:
        patch.setattr(crf.CrfRunner, "_spare", lambda self: False)
        run_inline(document)
    assert len(here) == 2
    if spare == "no cpu":
        monkeypatch.setattr(crf.CrfRunner, "_spare", lambda self: False)
    if spare == "too late":
        monkeypatch.setattr(ray, "wait", lambda references, timeout: ([], references))
    run_inline(document | {"output": {"uri": str(tmp_path / "there")}})
    assert len(here) == (2 if spare == "a cpu" else 4)
    assert_equal_lakes(str(tmp_path / "here"), str(tmp_path / "there"))
