"""Contestants in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial

import pytest
import torch

from benchmarks.apart import processes
from benchmarks.harness import Contestant, alternate
from pipeline.engine.allocator import ALLOCATOR
from schemas.errors import InputError


def settings() -> dict[str, str]:
    return {name: os.environ[name] for name in ALLOCATOR if name in os.environ}


def make(name: str, *, seconds: float = 0.0) -> Sequence[Contestant]:
    def run() -> tuple[int, dict[str, str], int, torch.Tensor]:
        time.sleep(seconds)
        return os.getpid(), settings(), torch.get_num_threads(), torch.arange(3)

    return [Contestant(name, run)]


def fail(error: Exception, *, later: bool) -> Sequence[Contestant]:
    def run() -> None:
        raise error

    if not later:
        run()
    return [Contestant("failing", run)]


def end() -> Sequence[Contestant]:
    os._exit(3)


def test_each_has_its_process_and_its_settings_of_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with processes(partial(make, "ours"), partial(make, "peer", seconds=0.2)) as everybody:
            timings = alternate(everybody, 2)
    finally:
        torch.set_num_threads(threads)
    ours, peer = timings["ours"], timings["peer"]
    assert len({os.getpid(), ours.result[0], peer.result[0]}) == 3
    assert ours.result[1] == ALLOCATOR
    assert peer.result[1] == {}
    assert settings() == {"MALLOC_ARENA_MAX": "7"}
    assert ours.result[2] == peer.result[2] == 1
    assert torch.equal(ours.result[3], torch.arange(3))
    assert ours.median < 0.1 < 0.2 <= peer.median < 5


def test_seconds_are_read_in_the_process() -> None:
    with processes(partial(make, "ours", seconds=0.3), partial(make, "peer"), time.process_time) as everybody:
        assert alternate(everybody, 1)["ours"].median < 0.1


def test_a_wrong_input_keeps_its_sentence_and_other_failures_say_where() -> None:
    wrong = partial(fail, InputError("--images: no such thing"), later=False)
    with pytest.raises(InputError, match="--images: no such thing"), processes(wrong, partial(make, "peer")):
        pass
    broken = partial(fail, ZeroDivisionError("by nought"), later=True)
    with processes(broken, partial(make, "peer")) as everybody, pytest.raises(RuntimeError, match="by nought"):
        alternate(everybody, 1)
    with pytest.raises(RuntimeError, match="process ended"), processes(end, partial(make, "peer")):
        pass
