"""The allocator's benchmark: processes with the worker's settings and without."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from benchmarks import allocator
from pipeline.engine.allocator import ALLOCATOR
from tests.benchmarks.conftest import NET, NORMALISED, Document

pytestmark = pytest.mark.filterwarnings("ignore")


def test_both_kinds_of_process_are_timed(document: Callable[..., Document], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    run = allocator.subprocess.run

    def recorded(*arguments: object, env: dict[str, str], **options: object) -> object:
        seen.append({name: env[name] for name in ALLOCATOR if name in env})
        return run(*arguments, env=env, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(allocator.subprocess, "run", recorded)
    monkeypatch.setitem(os.environ, "MALLOC_ARENA_MAX", "7")
    found = document(
        allocator.main, "--model", NET, "--size", 48, "--mask-batch", 4, "--forwards", 2, "--eager", *NORMALISED
    )
    assert [row["peer"] for row in found["rows"]] == ["malloc's defaults"]
    assert seen == [ALLOCATOR, {}]
