"""Images prepared in a process of their own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from pipeline.engine.clock import StageClock
from pipeline.engine.isolated import Setup
from pipeline.engine.isolation import CRASHED, IsolatedPreparer
from pipeline.engine.reading import prepare
from pipeline.models.preprocess import Preprocessor, Settings
from pipeline.sources.base import Sample
from tests.faulty import picture


def sample(data: bytes | None, name: str = "a", error: str | None = None) -> Sample:
    return Sample(name, "shard.tar", data, error=error)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup(
        Preprocessor(Settings((32, 32), (32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))), "ignore", ["tests.faulty"]
    )


@pytest.fixture
def preparer(setup: Setup) -> Iterator[IsolatedPreparer]:
    preparer = IsolatedPreparer(setup, seconds=20.0)
    yield preparer
    preparer.close()


def test_what_is_prepared_there_is_what_is_prepared_here(setup: Setup, preparer: IsolatedPreparer) -> None:
    clock = StageClock()
    for data, error in ((png(), None), (b"junk", None), (None, "it was not there")):
        there = preparer(sample(data, error=error), clock)
        here = prepare(sample(data, error=error), setup.preprocess, setup.exif, clock)
        assert (there.status, there.error, there.sha256, there.view) == (
            here.status,
            here.error,
            here.sha256,
            here.view,
        )
        assert (there.sample.data, there.sample.byte_size) == (None, here.sample.byte_size)
        assert (there.tensor is None) == (here.tensor is None)
        if there.tensor is not None and here.tensor is not None:
            assert torch.equal(there.tensor, here.tensor)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("exit", "decoding it ended its process with exit code 7"),
        ("segfault", "decoding it killed its process with signal 11 (SIGSEGV)"),
        ("kill", "decoding it killed its process with signal 9 (SIGKILL)"),
    ],
)
def test_an_image_that_ends_the_process_is_a_status_and_the_next_is_prepared(
    action: str, reason: str, preparer: IsolatedPreparer
) -> None:
    crashed = preparer(sample(picture(action)), StageClock())
    assert (crashed.status, crashed.error, crashed.tensor) == (CRASHED, reason, None)
    assert crashed.sha256 == hashlib.sha256(picture(action)).digest()
    assert (crashed.sample.data, crashed.sample.byte_size) == (None, len(picture(action)))
    assert preparer(sample(png()), StageClock()).status == "ok"


def test_an_image_that_does_not_end_is_ended(setup: Setup) -> None:
    preparer = IsolatedPreparer(setup, seconds=1.0)
    crashed = preparer(sample(picture("sleep")), StageClock())
    preparer.close()
    assert (crashed.status, crashed.error) == (CRASHED, "decoding it took more than 1 s and was ended")


def test_a_process_that_cannot_start_is_no_images_fault(setup: Setup) -> None:
    broken = IsolatedPreparer(Setup(setup.preprocess, "ignore", ["no.such.module"]))
    with pytest.raises(RuntimeError, match="cannot start"):
        broken(sample(png()), StageClock())
