"""States of parts add up in any order, and come back from their bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pipeline.audit.frame import Frame, make_frame
from pipeline.audit.state import State
from pipeline.audit.unit import add_unit
from pipeline.lake import Lake, open_lake
from schemas.audit import Settings
from tests.pipeline.audit.lakes import make_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("state") / "lake"
    return open_lake(make_lake(folder, units=3, images=30, methods=("grad_cam", "layer_cam"), grid=(5, 6)))


@pytest.fixture(scope="module")
def frame(lake: Lake) -> Frame:
    # A small sample, so that parts drop what the whole drops too.
    return replace(make_frame(lake, Settings(groups=("site",), bootstrap=50)), sample_per_class=5)


def state_of(frame: Frame, lake: Lake, units: tuple[str, ...]) -> State:
    state = State(frame)
    for unit in units:
        add_unit(state, lake, unit, None)
    return state


def test_parts_add_up_to_the_whole_in_any_order(frame: Frame, lake: Lake) -> None:
    units = sorted(lake.commits)
    whole = state_of(frame, lake, tuple(units)).to_bytes()
    assert len(state_of(frame, lake, tuple(units)).sample.table) == 20
    for order in itertools.permutations(units):
        merged, loaded = State(frame), State(frame)
        for unit in order:
            part = state_of(frame, lake, (unit,))
            loaded.add_bytes(part.to_bytes())
            merged.merge(part)
        assert state_of(frame, lake, order).to_bytes() == whole
        assert merged.to_bytes() == whole
        assert loaded.to_bytes() == whole


def test_counts_and_digests_add_up(frame: Frame, lake: Lake) -> None:
    units = sorted(lake.commits)
    one, two = state_of(frame, lake, (units[0],)), state_of(frame, lake, (units[1],))
    counts = dict(one.counts)
    one.merge(two)
    assert one.counts == {name: count + two.counts[name] for name, count in counts.items()}
    assert len(one.digests) == 60 and (np.diff(one.digests.astype(object)) > 0).all()


def test_of_too_many_digests_a_share_is_kept(frame: Frame) -> None:
    state = State(replace(frame, digest_limit=2**62))
    state.add_digests(np.array([5, 2**62, 2**62 + 1, 2**64 - 1], np.uint64))
    assert state.digests.tolist() == [5, 2**62]


def test_an_empty_state_is_nothing_to_add(frame: Frame, lake: Lake) -> None:
    state = state_of(frame, lake, tuple(lake.commits))
    before = state.to_bytes()
    state.add_bytes(State(frame).to_bytes())
    assert state.to_bytes() == before


def test_bytes_hold_no_pickles(frame: Frame, lake: Lake) -> None:
    # Parts are read from stores that others may write to.
    import io

    with np.load(io.BytesIO(state_of(frame, lake, tuple(lake.commits)).to_bytes()), allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored)
