"""The Score-CAM benchmark on a small network."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from benchmarks import inputs, score_cam
from pipeline.cam.masks import distinct_masks
from pipeline.models.optimise import outputs
from tests.benchmarks.conftest import NET, NORMALISED, Document, by_work

pytestmark = pytest.mark.filterwarnings("ignore")
ARGUMENTS = ("--model", NET, "--size", 48, "--mask-batch", 16, "--eager", "--together", *NORMALISED)


def test_maps_agree_and_five_classes_are_charged_five_passes(document: Callable[..., Document]) -> None:
    found = document(score_cam.main, *ARGUMENTS, "--count", 2)
    one, five = by_work(found, score_cam.ONE_WORK), by_work(found, score_cam.FIVE_WORK)
    limit = next(peer for peer in one if peer.endswith(score_cam.LIMIT))
    assert set(one) == set(five) == {"grad-cam", "torchcam", limit}
    for peer in ("grad-cam", "torchcam"):
        assert one[peer]["agreement"] < 1e-3
        assert five[peer]["peer_s"] == pytest.approx(5 * one[peer]["peer_s"])
    assert five["torchcam"]["agreement"] < 1e-3
    assert five["grad-cam"]["agreement"] is None
    assert one[limit]["peer_s"] == five[limit]["peer_s"]
    assert any("192 channels of 2 image(s)" in note for note in found["notes"])


def test_cpu_seconds_leave_out_the_time_asleep(
    document: Callable[..., Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(case: score_cam.Case, forward: object) -> Callable[[], None]:
        return lambda: time.sleep(1.0)

    monkeypatch.setattr(score_cam, "bare", slow)
    found = document(score_cam.main, *ARGUMENTS, "--clock", "cpu")
    limit = next(row for row in found["rows"] if row["peer"].endswith(score_cam.LIMIT))
    assert limit["peer_s"] < 0.5
    assert "seconds are CPU seconds of the process, summed over its threads" in found["notes"]


def test_all_passes_of_the_peers_are_run(document: Callable[..., Document]) -> None:
    found = document(score_cam.main, *ARGUMENTS, "--all-passes")
    assert not any("are counted as" in note for note in found["notes"])
    five, one = by_work(found, score_cam.FIVE_WORK)["torchcam"], by_work(found, score_cam.ONE_WORK)["torchcam"]
    assert five["peer_s"] != 5 * one["peer_s"]


def test_bare_forwards_are_as_many_as_the_distinct_masks_need() -> None:
    options = score_cam.PARSER.parse_args(["--size", "48", *NORMALISED])
    subject = inputs.load_subject(inputs.model_config(NET, options))
    images = inputs.generated_images(2, (48, 48))
    case = score_cam.make_case(subject, images, 16)
    _, grids = outputs(subject.replica.model, subject.replica.layers, images)
    masks = distinct_masks(grids[subject.layer])
    nulls = any(each.has_null for each in masks)
    assert case.masks == sum(len(each.grids) for each in masks) + nulls
    shapes: list[torch.Size] = []
    handle = subject.replica.model.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    forwards = score_cam.bare(case, case.make_forward())()
    handle.remove()
    assert forwards == len(shapes) == -(-case.masks // 16)
    assert set(shapes) == {torch.Size([16, 3, 48, 48])}
    assert not torch.equal(case.pool[0], case.pool[1])
