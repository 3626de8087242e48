"""Sessions: streaming, and the same bits in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.attributor import Attributor
from pipeline.cam.base import MapBatch, Selection
from pipeline.cam.eigen_cam import EigenCAM
from pipeline.cam.selection import select_lists
from schemas.errors import InputError
from tests.pipeline.cam import nets

METHODS = [
    "grad_cam",
    "grad_cam_pp",
    "layer_cam",
    "hires_cam",
    "xgrad_cam",
    "eigen_cam",
    {"name": "layer_cam", "label": "fused", "fuse": "tanh_max"},
    {"name": "smooth_grad_cam_pp", "samples": 3},
    "score_cam",
    {"name": "score_cam", "label": "paper", "convention": "paper"},
    {"name": "score_cam", "label": "torchcam", "convention": "torchcam", "fuse": "max"},
]

Maps = dict[tuple[str, str, int, int], Tensor]


def make_attributor(kind: str = "gap", *, batch_size: int | None = 8, mask_batch: int = 8) -> Attributor:
    model = nets.make(kind)
    methods = [*METHODS, "cam"] if kind == "gap" else METHODS
    if kind == "token":
        methods = [each for each in METHODS if not isinstance(each, dict) or "fuse" not in each]
    return Attributor(
        model.to(memory_format=torch.channels_last),
        methods,
        layers=nets.target_layers(model),
        head=model.head() if kind == "gap" else None,
        batch_size=batch_size,
        mask_batch=mask_batch,
    )


def collect(attributor: Attributor, batches: list[list[int]], targets: dict[int, list[int]]) -> Maps:
    """Run the images of a pool in batches; return (method, layer, image of the pool, class) -> map."""
    pool = nets.images(12)
    session = attributor.session()
    order: list[int] = []
    finished: list[MapBatch] = []
    for batch in batches:
        output = session.add(pool[batch], [100 + image for image in batch], select_lists([targets[i] for i in batch]))
        order += batch
        finished += output.maps
    finished += session.finish()
    maps: Maps = {}
    for each in finished:
        assert each.maps.dtype == torch.float32
        assert not each.maps.requires_grad
        for row, (number, target) in enumerate(zip(each.image.tolist(), each.target.tolist(), strict=True)):
            key = (each.method, each.layer, order[number], target)
            assert key not in maps
            maps[key] = each.maps[row]
    return maps


def outputs(attributor: Attributor) -> int:
    return sum(len(info.layers) for info in attributor.method_infos())


@pytest.mark.parametrize("kind", ["gap", "inplace", "token"])
def test_bits_do_not_depend_on_the_company(kind: str) -> None:
    attributor = make_attributor(kind)
    alone = collect(attributor, [[0]], {0: [2]})
    assert len(alone) == outputs(attributor)
    everyone = {image: [2, 4, 1] if image % 2 else [2] for image in range(12)}
    everyone[0] = [0, 1, 2, 3, 4]
    groupings = [
        [[3, 5, 7, 9, 1, 11, 2, 0]],  # another place in a full batch
        [[4, 0], [6], [1, 2, 3]],  # a batch that is filled up
        [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 0, 11]],
    ]
    for grouping in groupings:
        found = collect(attributor, grouping, everyone)
        images = [image for batch in grouping for image in batch]
        assert len(found) == outputs(attributor) * sum(len(everyone[image]) for image in images)
        for key, expected in alone.items():
            assert torch.equal(found[key], expected), key
    # And all images of two groupings agree with each other.
    left = collect(attributor, [[0, 1, 2], [3, 4]], everyone)
    right = collect(attributor, [[4], [2, 3, 1, 0]], everyone)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key


def test_other_batch_sizes_agree_within_rounding() -> None:
    targets = {image: [1, 3] for image in range(5)}
    expected = collect(make_attributor(), [list(range(5))], targets)
    for batch_size, mask_batch in ((None, 3), (5, 16)):
        found = collect(make_attributor(batch_size=batch_size, mask_batch=mask_batch), [list(range(5))], targets)
        assert found.keys() == expected.keys()
        for key in expected:
            assert nets.difference(found[key], expected[key]) < 1e-4, key


def test_maps_come_in_the_order_of_the_selection_with_running_numbers() -> None:
    model = nets.make("inplace")
    attributor = Attributor(
        model, ["grad_cam", "score_cam"], layers=nets.target_layers(model)[1:], batch_size=4, mask_batch=20
    )
    session = attributor.session()
    first = session.add(nets.images(3), None, Selection(torch.tensor([0, 0, 2]), torch.tensor([4, 1, 2])))
    assert [each.method for each in first.maps] == ["grad_cam", "score_cam"]
    assert first.logits.shape == (3, 5)
    assert first.maps[0].image.tolist() == [0, 0, 2]
    assert first.maps[0].target.tolist() == [4, 1, 2]
    # 12 masks per image: the second image's fill is not complete yet.
    assert first.maps[1].image.tolist() == [0, 0]
    second = session.add(nets.images(2, seed=1), None, lambda logits: select_lists([[3], []]))
    assert second.maps[0].image.tolist() == [3]
    assert second.selection.target.tolist() == [3]
    rest = second.maps[1:] + session.finish()
    assert [image for each in rest for image in each.image.tolist()] == [2, 3]
    assert session.finish() == []


def test_the_default_target_is_the_predicted_class() -> None:
    model = nets.make("inplace")
    attributor = Attributor(model, layers=nets.target_layers(model)[1:])
    output = attributor.session().add(nets.images(4))
    assert output.selection.target.tolist() == output.logits.argmax(1).tolist()
    chosen = attributor.session(lambda logits: select_lists([[0]] * len(logits))).add(nets.images(4))
    assert chosen.selection.target.tolist() == [0] * 4


def test_mask_batch_may_change_at_run_time() -> None:
    attributor = make_attributor("inplace", mask_batch=8)
    batches: list[int] = []
    attributor.model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    session = attributor.session()
    session.add(nets.images(2), [1, 2])
    attributor.mask_batch = 3
    session.add(nets.images(2), [1, 2])
    session.finish()
    assert batches[-1] == 3
    with pytest.raises(InputError, match="mask_batch: 0"):
        attributor.mask_batch = 0


def test_a_failing_batch_does_not_disturb_the_session() -> None:
    attributor = make_attributor("inplace")
    session = attributor.session()
    images = nets.images(2)
    with pytest.raises(InputError, match="class 9 of image 1"):
        session.add(images, [1, 2], select_lists([[0], [9]]))
    output = session.add(images, [1, 2], select_lists([[0], [1]]))
    assert output.maps[0].image.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "seeds", "message"),
    [
        (torch.zeros(3, 20, 24), [1], "images: a preprocessed float tensor"),
        (torch.zeros(1, 3, 20, 24, dtype=torch.uint8), [1], "uint8"),
        (torch.zeros(0, 3, 20, 24), [], "images: a preprocessed"),
        ([1], [1], "not list"),
        (torch.zeros(9, 3, 20, 24), list(range(9)), "9 in one batch, but batch_size is 8"),
        (torch.zeros(1, 3, 21, 24), [1], "images of one session must have one size"),
        (torch.zeros(2, 3, 20, 24), [1], "image_seeds: 1 for 2 images"),
        (torch.zeros(2, 3, 20, 24), None, "image_seeds: a method draws noise"),
    ],
)
def test_images_that_do_not_fit(images: Tensor, seeds: list[int] | None, message: str) -> None:
    session = make_attributor("inplace").session()
    session.add(nets.images(1), [0])
    with pytest.raises(InputError, match=message):
        session.add(images, seeds)


def test_a_head_that_contradicts_the_logits() -> None:
    model = nets.make("gap")
    head = model.head()
    wrong = type(head)("features", head.weight * 2, head.bias)
    with pytest.raises(InputError, match=r"head: the model's logits are not mean\(features\)"):
        Attributor(model, ["grad_cam"], layers=nets.target_layers(model), head=wrong)(nets.images(1))


def test_autocast_of_the_caller_touches_the_network_only() -> None:
    model = nets.make("inplace")
    attributor = Attributor(model, ["grad_cam", "score_cam"], layers=nets.target_layers(model)[1:])
    exact = attributor(nets.images(2), [1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attributor(nets.images(2), [1, 2])
    for name in ("grad_cam", "score_cam"):
        assert found[name].dtype == torch.float32
        assert not torch.equal(found[name], exact[name])
        flat = torch.stack([found[name].flatten(), exact[name].flatten()])
        assert torch.corrcoef(flat)[0, 1] > 0.98


class Peak(nn.Module):
    """Counts the bytes of masked images that a forward is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.largest = 0

    def forward(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, images.numel())
        return self.model(images)


def test_masked_images_never_exceed_one_chunk() -> None:
    model = nets.GapNet(channels=64).eval()
    peak = Peak(model)
    attributor = Attributor(peak, ["score_cam"], layers=nets.target_layers(model), batch_size=2, mask_batch=2)
    attributor(nets.images(4), [[0, 1, 2, 3, 4]] * 4)
    assert peak.largest == 2 * 3 * 20 * 24


def test_class_independent_maps_are_computed_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.make("inplace")
    calls: list[int] = []
    original = EigenCAM.maps

    def counted(self: EigenCAM, *arguments: Any) -> Tensor:
        calls.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(EigenCAM, "maps", counted)
    attributor = Attributor(model, ["eigen_cam"], layers=nets.target_layers(model)[1:])
    maps = attributor(nets.images(2), [[0, 1, 2], [3]])["eigen_cam"]
    assert len(calls) == 1
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[3])


def test_no_graph_is_kept_where_the_head_gives_the_gradient() -> None:
    model = nets.make("gap")
    seen: list[bool] = []
    model.fc.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    for layers in (nets.target_layers(model)[1:], nets.target_layers(model)):
        Attributor(model, ["grad_cam", "layer_cam"], layers=layers, head=model.head())(nets.images(1), [0])
    assert seen == [False, True]


def test_masks_are_counted_without_the_filling() -> None:
    model = nets.make("inplace")
    attributor = Attributor(model, ["score_cam"], layers=nets.target_layers(model)[1:], mask_batch=7)
    session = attributor.session()
    assert session.masks_scored == 0
    session.add(nets.images(2))
    assert session.masks_scored == 21
    session.finish()
    assert session.masks_scored == 24
