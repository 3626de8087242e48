"""The dispatcher's benchmark with few units."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import dispatch
from schemas.errors import CamlakeError
from schemas.unit import Unit
from tests.benchmarks.conftest import Document


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_units_are_dispatched_and_memory_is_taken_twice(document: Callable[..., Document]) -> None:
    found = document(dispatch.main, "--units", 40, "--few", 8, "--workers", 2)
    [row] = found["rows"]
    assert (row["work"], row["peer"]) == ("no-op job of 40 units", "bare Ray calls")
    memory = found["driver_memory"]
    assert [each["units"] for each in memory] == [8, 40]
    assert 10 < memory[0]["driver_peak_mib"] <= memory[1]["driver_peak_mib"]
    assert any("microseconds of the driver's CPU time per unit go into its metrics" in note for note in found["notes"])
    assert any("units/s through the dispatcher" in note for note in found["notes"])


def test_units_are_made_one_by_one_and_differ() -> None:
    many = dispatch.units(10**12)
    assert [next(many).unit_id for _ in range(3)] == ["000000", "000001", "000002"]


@pytest.mark.usefixtures("local_ray")
def test_a_failing_unit_ends_the_benchmark() -> None:
    import ray

    class Failing(dispatch.NoOpWorker):
        def process(self, unit: Unit, attempt: str, careful: bool = False) -> dispatch.Outcome:
            raise ValueError("no")

    actor = ray.remote(Failing).options(max_concurrency=3)
    with pytest.raises(CamlakeError, match="failed: ValueError: no"):
        dispatch.dispatch(lambda name: actor.remote(name), 1, 3)
