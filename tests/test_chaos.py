"""The short form of ``make chaos``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import Chaos
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_a_short_chaos_ends_in_the_same_lake(s3_server: S3Server, tmp_path: Path) -> None:
    chaos = Chaos(seed=7, units=24, faults=6, pause=(0.3, 1.5))
    chaos.run(tmp_path, s3_server)
    print(dict(chaos.made))
    assert sum(count for name, count in chaos.made.items() if not name.startswith("storage")) >= 3
    assert any(name.startswith("storage") for name in chaos.made)
