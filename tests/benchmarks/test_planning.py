"""The plan of very many shards, of few here."""

from __future__ import annotations

import re

import pytest

from benchmarks import planning


def test_shards_under_a_prefix_of_several_pages_and_a_list_are_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert planning.main(["--objects", "2500"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Machine: ")
    # Three pages of at most a thousand keys.
    assert re.match(r"under a prefix: 2500 units, 0\.\d MB stored; .* more at the peak$", lines[1])
    assert lines[2].startswith("a list of as many rows, one unit each: 2500 units")
