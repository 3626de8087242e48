"""The benchmark of slots counts what it says: every unit once, with any number of workers."""

from __future__ import annotations

import pytest

from benchmarks.slots import main, own_seconds


def test_the_loop_does_every_unit() -> None:
    assert own_seconds(3, 50) > 0


@pytest.mark.usefixtures("local_ray")
def test_both_parts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workers", "2", "--units", "20"]) == 0
    assert "    2 workers: " in capsys.readouterr().out
