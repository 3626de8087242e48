"""What the benchmarks are fed: images of tars, models in two forms, and options that are wrong."""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import inputs, methods
from pipeline.cam.base import Selection
from schemas.errors import InputError
from tests.benchmarks.conftest import NET, NORMALISED


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """Two tars: images of brightness 0, 1 and 2, and other members between them."""
    number = 0
    for shard, count in enumerate((2, 1)):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for _ in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (40, 30), (number, number, number)).save(buffer, "png")
                for suffix, data in (("cls", b"3"), ("png", buffer.getvalue())):
                    member = tarfile.TarInfo(f"image-{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                number += 1
    return str(tmp_path / "shard-*.tar")


def options(**changes: object) -> argparse.Namespace:
    parsed = methods.PARSER.parse_args(["--model", NET, "--size", "32", *NORMALISED])
    return argparse.Namespace(**(vars(parsed) | changes))


def test_images_come_in_the_order_of_the_tars(tars: str) -> None:
    found = [Image.open(io.BytesIO(data)).getpixel((0, 0)) for data in inputs.encoded_images(tars, 3)]
    assert found == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    subject = inputs.load_subject(inputs.model_config(NET, options()))
    images = inputs.load_images(subject.replica, options(images=tars, count=2))
    assert images.shape == (2, 3, 32, 32)
    assert images[0].mean() < images[1].mean()


def test_too_few_images_and_none_are_said(tars: str) -> None:
    with pytest.raises(InputError, match="has 3 images, --count asks for 4"):
        inputs.encoded_images(tars, 4)
    with pytest.raises(InputError, match="matches no tar"):
        inputs.encoded_images(tars.replace("shard-", "nothing-"), 1)


def test_generated_images_are_normalised_and_the_same_each_time() -> None:
    images = inputs.generated_images(2, (20, 30))
    assert images.shape == (2, 3, 20, 30)
    assert torch.allclose(images.mean((1, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(images.std((1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.equal(images, inputs.generated_images(2, (20, 30)))
    assert not torch.equal(images[0], images[1])


def test_both_forms_of_a_model_give_the_same_logits_and_only_the_plain_one_has_gradients() -> None:
    subject = inputs.load_subject(inputs.model_config(NET, options()))
    images = inputs.generated_images(2, (32, 32))
    with torch.no_grad():
        assert torch.allclose(subject.plain(images), subject.replica.model(images), atol=1e-4)
    assert all(parameter.requires_grad for parameter in subject.plain.parameters())
    assert not any(parameter.requires_grad for parameter in subject.replica.model.parameters())
    assert any(isinstance(module, nn.BatchNorm2d) for module in subject.plain.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in subject.replica.model.modules())


def test_the_model_in_a_weights_uri_is_replaced(tmp_path: Path) -> None:
    config = inputs.model_config("resnet18", options(weights=f"{tmp_path}/{{model}}.safetensors"))
    assert config.name == "torchvision:resnet18"
    assert config.weights == f"{tmp_path}/resnet18.safetensors"


def test_a_subject_whose_forms_disagree_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = inputs.load_replica

    def other_weights(config: object, **options: bool) -> object:
        replica = original(config, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            replica.model.head.bias.add_(1.0)  # type: ignore[union-attr,operator]
        return replica

    monkeypatch.setattr(inputs, "load_replica", other_weights)
    with pytest.raises(InputError, match="different logits"):
        inputs.load_subject(inputs.model_config(NET, options()))


def test_places_are_found_in_any_order() -> None:
    selection = Selection(torch.tensor([0, 0, 1, 1]), torch.tensor([4, 7, 2, 9]))
    assert inputs.places(selection, [7, 2]) == [1, 2]


def test_wrong_input_ends_with_2_and_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    assert (
        methods.main(["--model", NET, "--size", "32", *NORMALISED, "--images", "/nowhere/*.tar", "--threads", "1"]) == 2
    )
    assert "benchmarks.methods: --images: '/nowhere/*.tar' matches no tar" in capsys.readouterr().err
    assert torch.get_num_threads() == before
    with pytest.raises(SystemExit):
        methods.main(["--count", "0"])
