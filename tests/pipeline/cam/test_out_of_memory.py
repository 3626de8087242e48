"""Out of memory: what does not fit is tried again with half the images, and the maps are the same up to rounding."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.attributor import Attributor
from pipeline.cam.base import Selection
from pipeline.cam.selection import select_lists
from tests.pipeline.cam import nets

METHODS: list[Any] = ["grad_cam", "cam", {"name": "smooth_grad_cam_pp", "samples": 2}, "score_cam"]


class Small:
    """A forward pre-hook that lets no more than ``room`` images through."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.sizes.append(len(args[0]))


def make(room: int, batch_size: int | None = 8, mask_batch: int = 16) -> tuple[Attributor, Small]:
    model = nets.make("gap")
    small = Small(room)
    model.register_forward_pre_hook(small)
    layers = nets.target_layers(model)
    head = model.head()
    assert head is not None
    return Attributor(model, METHODS, layers=layers, head=head, batch_size=batch_size, mask_batch=mask_batch), small


def explained(attributor: Attributor) -> dict[tuple[str, str], Tensor]:
    """All maps of three batches, of which the selector must see each whole."""
    session = attributor.session()
    pool, batches = nets.images(18), []
    seen: list[int] = []

    def select(logits: Tensor) -> Selection:
        seen.append(len(logits))
        return select_lists([[index % 5, (index + 1) % 5] for index in range(len(logits))])

    for start in (0, 8, 16):
        images = pool[start : start + 8]
        output = session.add(images, range(start, start + len(images)), select)
        assert len(output.logits) == len(images)
        batches += output.maps
    batches += session.finish()
    assert seen == [8, 8, 2]
    found: dict[tuple[str, str], Tensor] = {}
    for key in {(each.method, each.layer) for each in batches}:
        parts = [each for each in batches if (each.method, each.layer) == key]
        image = torch.cat([part.image for part in parts])
        target = torch.cat([part.target for part in parts])
        order = (image * nets.CLASSES + target).argsort()
        assert image[order].tolist() == [index for index in range(18) for _ in range(2)]
        found[key] = torch.cat([part.maps for part in parts])[order]
    return found


@pytest.mark.parametrize(("room", "batch", "masks"), [(8, 8, 8), (3, 2, 2), (1, 1, 1)])
def test_batches_and_chunks_halve_until_they_fit(
    room: int, batch: int, masks: int, caplog: pytest.LogCaptureFixture
) -> None:
    wide, _ = make(100)
    attributor, small = make(room)
    with caplog.at_level(logging.WARNING):
        found = explained(attributor)
    for key, maps in explained(wide).items():
        assert torch.allclose(found[key], maps, atol=1e-5), key
    assert (attributor.batch_size, attributor.mask_batch) == (batch, masks)
    assert max(small.sizes) <= room
    assert f"going on with {masks} masked images per forward" in caplog.text
    # What fits is remembered: nothing fails the second time.
    caplog.clear()
    explained(attributor)
    assert caplog.text == ""


def test_batches_as_they_come_are_halved_too() -> None:
    attributor, small = make(3, batch_size=None)
    found = attributor(nets.images(8), [[1]] * 8, image_seeds=range(8))
    wide, _ = make(100, batch_size=None)
    expected = wide(nets.images(8), [[1]] * 8, image_seeds=range(8))
    for method in ("cam", "score_cam"):
        key = (method, "features")
        assert torch.allclose(found[key], expected[key], atol=1e-5)
    assert max(small.sizes) <= 3


def test_what_does_not_fit_alone_is_an_error() -> None:
    attributor, _ = make(0)
    with pytest.raises(torch.OutOfMemoryError):
        attributor(nets.images(2), [0, 1], image_seeds=[0, 1])
