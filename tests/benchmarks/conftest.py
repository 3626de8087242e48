"""Runs benchmarks on the demo's small network, and reads the JSON that they write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

NET = "jobs.demo.network:digit_net"
#: The network's preprocessing, which an untrained one does not bring along.
NORMALISED = ("--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25")
ROW = {"work", "peer", "ours_s", "peer_s", "ratio", "agreement"}

Document = dict[str, Any]


@pytest.fixture
def document(tmp_path: Path) -> Callable[..., Document]:
    """Runs a benchmark's ``main`` with arguments, checks the shape of its JSON, and returns it."""

    def run(main: Callable[[Sequence[str] | None], int], *arguments: object) -> Document:
        file = tmp_path / "table.json"
        assert main([*map(str, arguments), "--threads", "1", "--repeats", "1", "--json", str(file)]) == 0
        found: Document = json.loads(file.read_text())
        assert "1 threads" in found["machine"] and "torch" in found["machine"]
        assert found["rows"]
        for row in found["rows"]:
            assert set(row) == ROW
            assert row["ours_s"] > 0 and row["peer_s"] > 0
            assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        return found

    return run


def by_work(document: Document, work: str) -> dict[str, Document]:
    """The rows whose work starts so, by peer."""
    return {row["peer"]: row for row in document["rows"] if row["work"].startswith(work)}
