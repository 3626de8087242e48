"""The mask stream: how chunks are filled, and what each image's scores are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.cam.base import MaskGroup
from pipeline.cam.mask_stream import MaskJob, MaskStream, channel_scores
from pipeline.cam.masked_forward import MaskedNetwork
from pipeline.cam.masks import distinct_masks

GROUP = MaskGroup("layer", "before", False)
SIZE = (6, 8)
CLASSES = 4


class Network(nn.Module):
    """Logits that tell masked images apart, and a record of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.seen: list[Tensor] = []
        self.fail_at: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.fail_at == len(self.shapes):
            self.fail_at = None
            raise RuntimeError("out of memory")
        self.shapes.append(tuple(images.shape))
        self.seen.append(images.clone())
        return torch.stack([(images * (index + 1)).sum((1, 2, 3)) for index in range(CLASSES)], 1)


def make_stream(network: Network, chunk: int) -> MaskStream:
    return MaskStream(MaskedNetwork(network, chunk, None, None), True, "softmax")


def job(number: int, channels: int, targets: list[int], grid: tuple[int, int] = (2, 3)) -> MaskJob:
    generator = torch.Generator().manual_seed(number)
    activation = torch.rand((channels, *grid), generator=generator)
    image = torch.rand((3, *SIZE), generator=generator)
    masks = distinct_masks(activation[None])[0]
    return MaskJob(number, GROUP, image, activation, masks, torch.tensor(targets), torch.tensor(targets))


def expected_logits(each: MaskJob) -> Tensor:
    masks = functional.interpolate(each.masks.grids[:, None], SIZE, mode="bilinear", align_corners=False)
    return Network()(each.image * masks)[:, each.target]


def test_chunks_are_filled_across_images_to_one_shape() -> None:
    network = Network()
    stream = make_stream(network, 4)
    jobs = [job(0, 3, [1, 2]), job(1, 6, [0]), job(2, 2, [3])]
    done: list[int] = []
    for each in jobs:
        stream.push(each)
        done += [finished.number for finished in stream.run(drain=False)]
    # 11 masks: two full chunks so far, and the third waits for company.
    assert network.shapes == [(4, 3, *SIZE)] * 2
    assert done == [0]
    done += [finished.number for finished in stream.run(drain=True)]
    assert network.shapes == [(4, 3, *SIZE)] * 3
    assert done == [0, 1, 2]
    assert (stream.masks_scored, stream.forwards) == (11, 3)
    for each in jobs:
        assert torch.allclose(each.logit, expected_logits(each), rtol=1e-5)
    assert list(stream.run(drain=True)) == []


def test_the_chunk_may_change_and_a_failed_forward_loses_nothing() -> None:
    network = Network()
    masked = MaskedNetwork(network, 8, None, None)
    stream = MaskStream(masked, True, "softmax")
    jobs = [job(0, 5, [1]), job(1, 5, [2])]
    for each in jobs:
        stream.push(each)
    network.fail_at = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream.run(drain=True))
    masked.size = 3
    assert [finished.number for finished in stream.run(drain=True)] == [0, 1]
    assert network.shapes == [(3, 3, *SIZE)] * 4
    for each in jobs:
        assert torch.allclose(each.logit, expected_logits(each), rtol=1e-5)


def test_an_image_without_masks_passes_through_in_order() -> None:
    network = Network()
    stream = make_stream(network, 2)
    empty = job(1, 3, [0], grid=(1, 1))
    assert empty.left == 0
    for each in (job(0, 3, [0]), empty, job(2, 1, [0])):
        stream.push(each)
    assert [finished.number for finished in stream.run(drain=False)] == [0, 1, 2]


def test_the_null_mask_is_scored_once_and_before_the_jobs_that_need_it() -> None:
    network = Network()
    stream = make_stream(network, 4)
    with_constant = []
    for number in range(3):
        each = job(number, 4, [2, 0])
        each.activation[1] = 7.0
        each = MaskJob(
            number,
            GROUP,
            each.image,
            each.activation,
            distinct_masks(each.activation[None])[0],
            each.target,
            each.classes,
        )
        stream.push_null(each.image, CLASSES, GROUP)
        stream.push(each)
        with_constant.append(each)
    finished = list(stream.run(drain=True))
    assert [each.number for each in finished] == [0, 1, 2]
    assert stream.masks_scored == 1 + 3 * 3
    assert not network.seen[0][0].any()
    for each in finished:
        scores = channel_scores(each, stream.null_logits, "softmax")
        assert scores.logit[:, 1].tolist() == [0, 0]
        assert scores.probability is not None
        assert scores.probability[:, 1].tolist() == [0.25, 0.25]
        assert scores.constant.tolist() == [False, True, False, False]


def test_scores_per_channel() -> None:
    network = Network()
    stream = make_stream(network, 16)
    each = job(0, 5, [3, 1])
    each.activation[2] = each.activation[0] * 2  # the same mask
    each = MaskJob(
        0, GROUP, each.image, each.activation, distinct_masks(each.activation[None])[0], each.target, each.classes
    )
    stream.push(each)
    list(stream.run(drain=True))
    assert stream.masks_scored == 4
    masks = functional.interpolate(
        each.masks.grids[each.masks.channel][:, None], SIZE, mode="bilinear", align_corners=False
    )
    logits = Network()(each.image * masks).double()
    for activation, chance in (("softmax", logits.softmax(1)), ("sigmoid", logits.sigmoid())):
        scores = channel_scores(each, None, activation)
        assert torch.allclose(scores.logit.double(), logits[:, [3, 1]].T, rtol=1e-5)
        assert scores.probability is not None
        assert torch.allclose(scores.probability.double(), chance[:, [3, 1]].T, rtol=1e-4)
    assert channel_scores(each, None, None).probability is None
